//! `quantize` and `dequantize`: plan, and then print the plan or carry it out.

use std::path::Path;

use safequant::container::{Checkpoint, Limits, OsDisk};
use safequant::rewrite::{self, CancelToken, Plan, Summary};

use crate::exit::Failure;
use crate::output::{self, Output, Record};
use crate::plan::{Job, Mode};
use crate::progress::{Progress, Style};
use crate::signals::Listener;

mod planned;
mod summary;

/// Plans a job; prints the plan, or carries it out and prints what it did.
///
/// # Errors
/// Whatever the libraries refuse.
pub(crate) fn run(job: &Job, output: Output) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&job.source, &Limits::default())?;
    let plan = rewrite::plan(&checkpoint, &job.verb, &job.destination, &job.options)?;
    match job.mode {
        Mode::DryRun => planned::print(job, &plan, output),
        Mode::Run => carry_out(job, &plan, output),
    }
}

fn carry_out(job: &Job, plan: &Plan<'_>, output: Output) -> Result<(), Failure> {
    let progress = Progress::new(Style::choose(job.quiet, output), output);
    for note in &plan.notes {
        progress.remark(note);
    }
    let cancel = CancelToken::default();
    let listener = Listener::install(
        cancel.clone(),
        "stopping at the next tile; once more to stop at once. What is done is kept for --resume",
    )?;
    let result = rewrite::run(plan, &OsDisk, &progress, &cancel);
    drop(listener);
    progress.finish();
    let summary = result?;
    let elapsed = progress.elapsed();
    if !job.quiet {
        output::note(&summary::speed(&summary, elapsed));
    }
    summary::print(job, &summary, elapsed, output)
}

/// A path of the command line, for people and for JSON.
fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Members that the plan's and the summary's record share, and the rest of them.
fn record(job: &Job, rest: serde_json::Value) -> serde_json::Value {
    let mut record = serde_json::json!({
        "schema_version": output::SCHEMA_VERSION,
        "command": job.command,
        "dry_run": job.mode == Mode::DryRun,
        "source": path(&job.source),
        "destination": path(&job.destination),
    });
    output::extend(&mut record, rest);
    record
}

fn wants_json(job: &Job) -> bool {
    job.record == Record::Json
}

/// Names and lengths of output files, for JSON.
fn files_record(files: &[(String, u64)]) -> serde_json::Value {
    files
        .iter()
        .map(|(name, len_bytes)| serde_json::json!({ "name": name, "bytes": len_bytes }))
        .collect()
}

/// Bytes of all output files.
fn total(files: &[(String, u64)]) -> u64 {
    files.iter().map(|(_, len_bytes)| len_bytes).sum()
}

/// Figures that people ask for of a finished job.
fn weights(summary: &Summary) -> u64 {
    summary.modules.iter().map(|module| module.n_weights).sum()
}
