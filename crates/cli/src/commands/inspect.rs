//! `inspect`: what is this. Reads headers and documents, never the weights.

use safequant::container::{Checkpoint, ErrorGroup, Limits};
use safequant::schemes::Model;

use crate::args::InspectArgs;
use crate::exit::Failure;
use crate::output::{self, Output, Record};
use crate::plan;

mod json;
mod report;
mod text;

use report::Report;

/// Prints what a checkpoint is. One whose convention is not supported is shown as a container, with the reason, and that
/// is a success; one whose convention is malformed is shown so too, but the failure is reported.
///
/// # Errors
/// The failure, and whether it still has to be said in JSON.
pub(crate) fn run(args: &InspectArgs, output: Output) -> Result<(), (Failure, Record)> {
    let record = Record::of_switch(args.json);
    let (report, failure) = report(args).map_err(|failure| (failure, record))?;
    let printed = match record {
        Record::Json => output::json(&json::record(args, &report, failure.as_ref())),
        Record::None => text::print(args, &report, failure.as_ref(), output),
    };
    printed.map_err(|error| (Failure::Output(error), Record::None))?;
    match failure {
        Some(failure) if !is_unsupported(&failure) => Err((failure, Record::None)),
        Some(_) | None => Ok(()),
    }
}

/// What is there, and why the conventions could not be bound, if they could not.
fn report(args: &InspectArgs) -> Result<(Report, Option<Failure>), Failure> {
    let filter = plan::filter(args.filter.as_deref())?;
    let checkpoint = Checkpoint::open(&args.source, &Limits::default())?;
    match Model::bind(&checkpoint) {
        Ok(model) => Ok((Report::new(&checkpoint, &model, filter.as_ref())?, None)),
        Err(error) => {
            let report = Report::of_container(&checkpoint, filter.as_ref())?;
            Ok((report, Some(error.into())))
        }
    }
}

fn is_unsupported(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Library {
            group: ErrorGroup::Unsupported,
            ..
        }
    )
}
