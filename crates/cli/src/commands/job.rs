//! `quantize` and `dequantize`: plan, and then print the plan or carry it out.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use safequant::container::{Checkpoint, Limits, OsDisk};
use safequant::recipe::Recipe;
use safequant::rewrite::{self, CancelToken, Destination, Plan, Summary, Verb};

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
    let verb = mixed(job, &checkpoint)?;
    let plan = rewrite::plan(&checkpoint, &verb, &job.destination, &job.options)?;
    save(job, &verb)?;
    match job.mode {
        Mode::DryRun => planned::print(job, &plan, output),
        Mode::Run => carry_out(job, &plan, output),
    }
}

/// The verb, its schemes mixed if they are to be.
fn mixed(job: &Job, checkpoint: &Checkpoint) -> Result<Verb, Failure> {
    let (Some(target), Verb::Quantize(recipe)) = (job.target_bits, &job.verb) else {
        return Ok(job.verb.clone());
    };
    let cancel = CancelToken::default();
    let listener = Listener::install(cancel.clone(), "stopping at the next module")?;
    let found = rewrite::mixed::choose(checkpoint, recipe, target, &job.options, &cancel);
    drop(listener);
    let found = found?;
    let mut recipe = found.recipe.clone();
    recipe.notes.push(found.note());
    Ok(Verb::Quantize(recipe))
}

/// Writes the recipe, if it is to be.
fn save(job: &Job, verb: &Verb) -> Result<(), Failure> {
    let (Some(path), Verb::Quantize(recipe)) = (&job.save_recipe, verb) else {
        return Ok(());
    };
    let failed = |source| Failure::File {
        path: self::path(path),
        source,
    };
    let replaces = job.options.destination == Destination::Replace;
    let mut options = OpenOptions::new();
    options.write(true).truncate(true);
    options.create(replaces).create_new(!replaces);
    let mut file = options.open(path).map_err(failed)?;
    let text = Recipe::of(recipe).to_json();
    file.write_all(text.as_bytes()).map_err(failed)
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
