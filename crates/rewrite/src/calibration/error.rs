//! What can be wrong with calibration statistics.

use std::fmt;
use std::path::Path;

use safequant_container::ErrorGroup;

/// Everything that reading or writing statistics can answer instead of a result.
///
/// Fields keep names as they stand in the file; messages show them escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container.
    #[error(transparent)]
    Container(#[from] safequant_container::Error),
    /// The system refused an operation.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Memory in proportion to the file was not to be had.
    #[error("{file}: no memory for {len_bytes} bytes")]
    OutOfMemory {
        /// The file.
        file: String,
        /// The request.
        len_bytes: u64,
    },
    /// The file is of another kind.
    #[error("{file}: expected {expected}, found {found}")]
    Kind {
        /// The file.
        file: String,
        /// What was expected.
        expected: &'static str,
        /// What the file says that it is.
        found: String,
    },
    /// A key of the metadata is missing or has a value that means nothing.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Metadata {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A tensor or an entry has the wrong name, dtype or shape, or is missing.
    #[error("{file}: {}: expected {expected}, found {found}", Shown(tensor))]
    Layout {
        /// The file.
        file: String,
        /// The tensor or entry.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A number cannot be a statistic of anything.
    #[error(
        "{file}: {}: {statistic}: expected {expected}, found {found}",
        Shown(module)
    )]
    Value {
        /// The file.
        file: String,
        /// The module.
        module: String,
        /// The statistic.
        statistic: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found, and where.
        found: String,
    },
    /// The statistics of a module are of another width than its weight.
    #[error(
        "{file}: {}: expected statistics of {expected} input features, found {found}",
        Shown(module)
    )]
    Width {
        /// The file.
        file: String,
        /// The module.
        module: String,
        /// Input features of the weight.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// The old binary form of an importance matrix breaks off or contradicts itself.
    #[error("{file}: at byte {offset}: expected {expected}, found {found}")]
    Binary {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// Statistics cannot be written in the form that was asked for.
    #[error("{file}: {} cannot be written: {reason}", Shown(module))]
    Unwritable {
        /// The file.
        file: String,
        /// The module or entry.
        module: String,
        /// Why not.
        reason: String,
    },
}

/// A hostile name in a message: control and formatting characters escaped, and not too long.
struct Shown<'a>(&'a str);

/// Characters of a name that a message shows at most.
const MAX_SHOWN_CHARS: usize = 200;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars().take(MAX_SHOWN_CHARS) {
            write!(f, "{}", char.escape_debug())?;
        }
        match self.0.chars().nth(MAX_SHOWN_CHARS) {
            Some(_) => f.write_str("..."),
            None => Ok(()),
        }
    }
}

/// A text out of a file as part of a message.
pub(super) fn shown(text: &str) -> String {
    format!("\"{}\"", Shown(text))
}

impl Error {
    /// The stable name of the condition, for `--json` and for tests.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Container(error) => error.code(),
            Error::Io { .. } => "io_calibration",
            Error::OutOfMemory { .. } => "out_of_memory",
            Error::Kind { .. } => "calibration_kind",
            Error::Metadata { .. } => "calibration_metadata",
            Error::Layout { .. } => "calibration_layout",
            Error::Value { .. } => "calibration_value",
            Error::Width { .. } => "calibration_width",
            Error::Binary { .. } => "imatrix_binary",
            Error::Unwritable { .. } => "calibration_unwritable",
        }
    }

    /// The group this condition belongs to; decides the exit status.
    pub fn group(&self) -> ErrorGroup {
        match self {
            Error::Container(error) => error.group(),
            Error::Io { .. } | Error::OutOfMemory { .. } => ErrorGroup::Io,
            Error::Kind { .. }
            | Error::Metadata { .. }
            | Error::Layout { .. }
            | Error::Value { .. }
            | Error::Binary { .. } => ErrorGroup::Malformed,
            Error::Width { .. } | Error::Unwritable { .. } => ErrorGroup::Refused,
        }
    }

    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Error::Io {
            file: path.display().to_string(),
            action,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_escaped_and_cut() {
        let error = Error::Width {
            file: "f".to_owned(),
            module: format!("a\u{202e}\n{}", "x".repeat(1000)),
            expected: 1,
            found: 2,
        };
        let text = error.to_string();
        assert!(text.starts_with("f: a\\u{202e}\\nxxx"), "{text}");
        assert!(text.len() < 300 && text.contains("..."), "{text}");
    }
}
