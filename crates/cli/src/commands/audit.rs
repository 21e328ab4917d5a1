//! `audit`: surveys a checkpoint, asks the rules, shows what they found.

use std::path::Path;

use safequant::audit::report::{self, About};
use safequant::audit::{self, Finding, Options, Report, Severity, Subject};
use safequant::container::{Checkpoint, ErrorGroup, Limits};
use safequant::schemes::Model;

use crate::args::FormatArg;
use crate::exit::Failure;
use crate::output::{self, Output, counted};
use crate::plan::{Audit, Baseline};

mod baseline;
mod text;

/// Runs an audit and shows its report.
///
/// # Errors
/// [`Failure::Findings`] where there are findings of the level asked for; whatever stood in the way of auditing.
pub(crate) fn run(job: &Audit, output: Output) -> Result<(), Failure> {
    let limits = Limits::default();
    let (checkpoint, problems) = audit::survey(&job.source, &limits)?;
    let subject = Subject::new(&checkpoint, problems, job.wanted.clone());
    let options = Options {
        depth: job.depth,
        rules: job.rules.clone(),
    };
    let mut report = audit::audit(subject, &options);
    let losses = match &job.reference {
        None => None,
        Some(path) => {
            let reference = Checkpoint::open(path, &limits)?;
            let model = Model::bind(&reference)?;
            let ours = (&checkpoint, &report.subject.model);
            Some(audit::losses(ours, (&reference, &model), &report.measured)?)
        }
    };
    let known = match &job.baseline {
        Baseline::None => 0,
        Baseline::Read(path) => baseline::leave_out(path, &mut report.findings)?,
        Baseline::Write(path) => {
            baseline::write(path, &report.findings)?;
            let n = output::len(report.findings.len());
            output::note(&format!(
                "{} in {}",
                counted(n, "finding"),
                path.to_string_lossy()
            ));
            return Ok(());
        }
    };
    let about = About {
        source: job.source.to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        known,
        losses,
    };
    show(job, &report, &about, output)?;
    verdict(job, &report)
}

fn show(job: &Audit, report: &Report<'_>, about: &About, output: Output) -> Result<(), Failure> {
    let text = match job.format {
        FormatArg::Text => text::render(report, about, output),
        FormatArg::Json => output::json_text(&report::json(report, about)),
        FormatArg::Sarif => output::json_text(&report::sarif(report, about)),
        FormatArg::Github => report::github(report, about),
        FormatArg::Junit => report::junit(report, about),
        FormatArg::Html => report::html(report, about),
    };
    match &job.output {
        None => output::data(&text)?,
        Some(path) => {
            write_file(path, text.as_bytes())?;
            output::note(&format!("{}, {}", summary(report), path.to_string_lossy()));
        }
    }
    Ok(())
}

/// The counts in one line.
fn summary(report: &Report<'_>) -> String {
    let of = |severity: Severity, noun| counted(output::len(report.count(severity)), noun);
    format!(
        "{}, {}, {}",
        of(Severity::Error, "error"),
        of(Severity::Warning, "warning"),
        of(Severity::Note, "note")
    )
}

/// What the exit status says: what could not be audited comes before what was found.
fn verdict(job: &Audit, report: &Report<'_>) -> Result<(), Failure> {
    let mut unclaimed: Vec<_> = report.unclaimed().collect();
    unclaimed.sort_by_key(|error| error.group() != ErrorGroup::Io);
    if let Some(error) = unclaimed.first() {
        return Err(Failure::Library {
            code: error.code(),
            group: error.group(),
            message: error.to_string(),
            help: None,
        });
    }
    let is_failure = |finding: &Finding| job.fail_on.is_some_and(|level| finding.severity >= level);
    if report.findings.iter().any(is_failure) {
        return Err(Failure::Findings);
    }
    Ok(())
}

/// Writes a file beside its place and moves it there, so that nobody reads half of it.
#[expect(
    clippy::disallowed_methods,
    reason = "a report is no part of a checkpoint"
)]
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |source| Failure::File {
        path: path.to_string_lossy().into_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begun = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = std::fs::write(&begun, bytes).and_then(|()| std::fs::rename(&begun, path));
    if written.is_err() {
        drop(std::fs::remove_file(&begun));
    }
    written.map_err(failed)
}
