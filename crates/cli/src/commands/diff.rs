//! `diff`: what two checkpoints have in common and what not.

use std::path::Path;

use safequant::audit::diff::{self, Diff, Options};
use safequant::container::{Checkpoint, Limits};
use safequant::schemes::{Model, Pattern};

use crate::exit::Failure;
use crate::output::{self, Output, Record};
use crate::plan::Diffing;

mod text;

/// Compares two checkpoints and shows what differs.
///
/// # Errors
/// [`Failure::Findings`] where they differ; what stood in the way of comparing them.
pub(crate) fn run(job: &Diffing, output: Output) -> Result<(), Failure> {
    let found = compare(&job.sources, &job.options)?;
    match job.record {
        Record::Json => output::json(&record(job, &found))?,
        Record::None => text::print(job, &found, output)?,
    }
    if found.is_equal() {
        Ok(())
    } else {
        Err(Failure::Findings)
    }
}

fn record(job: &Diffing, found: &Diff) -> serde_json::Value {
    let [a, b] = &job.sources;
    let (a, b) = (a.to_string_lossy(), b.to_string_lossy());
    let filter = job.options.select.as_ref().map(Pattern::text);
    diff::json(found, [&a, &b], filter)
}

fn compare([a, b]: &[std::path::PathBuf; 2], options: &Options) -> Result<Diff, Failure> {
    let open = |path: &Path| -> Result<(Checkpoint, Model), Failure> {
        let checkpoint = Checkpoint::open(path, &Limits::default())?;
        let model = Model::bind(&checkpoint)?;
        Ok((checkpoint, model))
    };
    let (a, b) = (open(a)?, open(b)?);
    Ok(diff::diff((&a.0, &a.1), (&b.0, &b.1), options)?)
}
