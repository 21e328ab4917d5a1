//! `tp-plan`: which tensor-parallel degrees work, what a rank holds, and what stands in the way.

use safequant::audit::parallel::plan;
use safequant::audit::report::tp_plan as record_of;
use safequant::audit::{Subject, Wanted};
use safequant::container::{Checkpoint, Limits};
use serde_json::json;

use crate::args::TpPlanArgs;
use crate::exit::Failure;
use crate::output::{self, Message, Output, Text, bytes, count};

/// Prints the plan.
///
/// # Errors
/// What cannot be opened; standard output.
pub(crate) fn run(args: &TpPlanArgs, output: Output) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&args.source, &Limits::default())?;
    let wanted = Wanted {
        tensor_parallel: args.tp.clone(),
        runtimes: Vec::new(),
    };
    let subject = Subject::new(&checkpoint, Vec::new(), wanted);
    if args.json {
        let mut record = json!({
            "schema_version": output::SCHEMA_VERSION,
            "command": "tp-plan",
            "source": args.source.to_string_lossy(),
        });
        output::extend(&mut record, record_of(&subject, &args.tp));
        return Ok(output::json(&record)?);
    }
    let mut text = Text::default();
    degrees(&mut text, &subject, output);
    Ok(output::data(text.as_str())?)
}

/// A paragraph for each degree that was asked for.
pub(super) fn degrees(text: &mut Text, subject: &Subject<'_>, output: Output) {
    if subject.wanted.tensor_parallel.is_empty() {
        return;
    }
    let plan = plan(subject, &subject.wanted.tensor_parallel);
    for degree in &plan.degrees {
        let answer = if degree.works {
            "works"
        } else {
            "does not work"
        };
        text.line(format_args!(
            "{} {answer}: a rank holds {} of {}",
            output.heading(&format!("TP {}", degree.degree)),
            bytes(degree.rank_bytes),
            bytes(plan.total_bytes)
        ));
        for obstacle in &degree.obstacles {
            let more = match obstacle.count {
                0 | 1 => String::new(),
                n => format!(" (and {} more modules)", count(n - 1)),
            };
            text.line(format_args!("  {}{more}", Message(&obstacle.message)));
            text.line(format_args!("      = help: {}", Message(&obstacle.fix)));
        }
    }
    text.line(format_args!(""));
}
