//! Exit statuses, and the failures that lead to them (specs/cli/exit-status.md).

use std::io;

use safequant::container::{self, ErrorGroup};
use safequant::options::OptionError;
use safequant::{rewrite, schemes};

/// How the process ends. Never a panic, never 101, never a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Clean or done.
    Done,
    /// Findings of the level asked for, or differences.
    Findings,
    /// The input is malformed, unsupported or beyond a limit.
    Input,
    /// The environment failed: I/O, disk full, permission.
    Environment,
    /// Usage, or a refusal: would lose or overwrite something, or was canceled.
    Usage,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Findings => 1,
            Exit::Input => 2,
            Exit::Environment => 3,
            Exit::Usage => 4,
        }
    }

    /// The status of a library's error.
    pub(crate) const fn of_group(group: ErrorGroup) -> Self {
        match group {
            ErrorGroup::Malformed | ErrorGroup::Unsupported | ErrorGroup::Limit => Exit::Input,
            ErrorGroup::Io => Exit::Environment,
            ErrorGroup::Refused => Exit::Usage,
        }
    }
}

/// Why a verb did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The options as meant contradict each other or name something that does not exist.
    Usage {
        /// One line.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// A library refused.
    Library {
        /// The stable name of the condition.
        code: &'static str,
        /// Whose fault it is.
        group: ErrorGroup,
        /// One line: file, tensor or module, found, expected.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// There are findings, and they have been shown.
    Findings,
    /// A file could not be read or written.
    File {
        /// Its path.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Standard output could not be written; `BrokenPipe` means that the reader went away.
    Output(io::Error),
    /// The signal handlers could not be installed.
    Signals(io::Error),
}

impl Failure {
    /// A usage error with a hint.
    pub(crate) fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Failure::Usage {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// How the process ends because of it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Usage { .. } => Exit::Usage,
            Failure::Library { group, .. } => Exit::of_group(*group),
            Failure::Findings => Exit::Findings,
            // A reader that has seen enough (`| head`) is no failure.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Failure::Output(_) | Failure::Signals(_) | Failure::File { .. } => Exit::Environment,
        }
    }

    /// The stable name of the condition, for `--json`.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Failure::Usage { .. } => "usage",
            Failure::Library { code, .. } => code,
            Failure::Findings => "findings",
            Failure::File { .. } => "io",
            Failure::Output(_) => "io_stdout",
            Failure::Signals(_) => "io_signals",
        }
    }

    /// Whose fault it is, for `--json`.
    pub(crate) fn group(&self) -> &'static str {
        match self {
            Failure::Usage { .. } => "usage",
            Failure::Library { group, .. } => group_name(*group),
            Failure::Findings => "findings",
            Failure::Output(_) | Failure::Signals(_) | Failure::File { .. } => "io",
        }
    }

    /// One line.
    pub(crate) fn message(&self) -> String {
        match self {
            Failure::Usage { message, .. } | Failure::Library { message, .. } => message.clone(),
            Failure::Findings => "there are findings".to_owned(),
            Failure::File { path, source } => format!("{path}: {source}"),
            Failure::Output(error) => format!("standard output: {error}"),
            Failure::Signals(error) => format!("signal handlers: {error}"),
        }
    }

    /// What to do about it, if there is something to say.
    pub(crate) fn help(&self) -> Option<&str> {
        match self {
            Failure::Usage { help, .. } | Failure::Library { help, .. } => help.as_deref(),
            Failure::Findings | Failure::File { .. } | Failure::Output(_) | Failure::Signals(_) => {
                None
            }
        }
    }
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        Failure::usage(error.message, error.help)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

impl From<container::Error> for Failure {
    fn from(error: container::Error) -> Self {
        let (code, group) = (error.code(), error.group());
        Failure::Library {
            code,
            group,
            message: error.to_string(),
            help: None,
        }
    }
}

impl From<schemes::Error> for Failure {
    fn from(error: schemes::Error) -> Self {
        let (code, group) = (error.code(), error.group());
        Failure::Library {
            code,
            group,
            message: error.to_string(),
            help: None,
        }
    }
}

impl From<rewrite::Error> for Failure {
    fn from(error: rewrite::Error) -> Self {
        Failure::Library {
            code: error.code(),
            group: error.group(),
            message: error.to_string(),
            help: help(&error).map(str::to_owned),
        }
    }
}

/// What to do about an error that does not say so itself.
fn help(error: &rewrite::Error) -> Option<&'static str> {
    use rewrite::Error;
    if matches!(error, Error::MemoryTooSmall { .. }) {
        return Some("raise --memory");
    }
    if matches!(error, Error::NothingSelected { .. }) {
        return Some(
            "compare --targets and --ignore with the names that `safequant inspect` shows",
        );
    }
    if matches!(error, Error::NothingQuantized { .. }) {
        return Some("`safequant inspect` shows what the checkpoint holds");
    }
    if matches!(error, Error::DiskFull { .. }) {
        return Some("free some space, or choose another file system with -o");
    }
    if matches!(error, Error::Quantize { .. }) {
        return Some(
            "--ignore leaves the module dense; --nonfinite clamp replaces NaN and infinities",
        );
    }
    None
}

/// The word for a group in `--json`.
pub(crate) const fn group_name(group: ErrorGroup) -> &'static str {
    match group {
        ErrorGroup::Malformed => "malformed",
        ErrorGroup::Unsupported => "unsupported",
        ErrorGroup::Limit => "limit",
        ErrorGroup::Io => "io",
        ErrorGroup::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        let pipe = Failure::Output(io::ErrorKind::BrokenPipe.into());
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert_eq!((pipe.exit().status(), full.exit().status()), (0, 3));
    }

    #[test]
    fn groups_map_to_the_statuses_of_the_contract() {
        let statuses = [
            (ErrorGroup::Malformed, 2),
            (ErrorGroup::Unsupported, 2),
            (ErrorGroup::Limit, 2),
            (ErrorGroup::Io, 3),
            (ErrorGroup::Refused, 4),
        ];
        for (group, status) in statuses {
            assert_eq!(
                Exit::of_group(group).status(),
                status,
                "{}",
                group_name(group)
            );
        }
    }
}
