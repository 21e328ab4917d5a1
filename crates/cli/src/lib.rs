//! The `safequant` command line.
//!
//! Two steps: `args` is what was typed, `plan` what it means. `commands` has one file per verb, `output` is the one place
//! that writes text. The program knows no format: dtypes, conventions, schemes and quantizers come from the registries.
#![forbid(unsafe_code)]

mod args;
mod collapse;
mod commands;
mod describe;
mod exit;
mod output;
mod plan;
mod progress;
mod signals;

use std::ffi::OsString;

use clap::Parser;

use crate::args::{Cli, Color, FormatArg, Verb};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Record};

/// Runs a command line, program name included, and says how the process should end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitStatus {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitStatus(answer_of_clap(&error)),
    };
    let output = Output::new(cli.color);
    match run(cli.verb, output) {
        Ok(()) => ExitStatus(Exit::Done),
        Err((failure, record)) => {
            output.failure(&failure, record);
            ExitStatus(failure.exit())
        }
    }
}

/// How the process should end (specs/cli/exit-status.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(Exit);

impl ExitStatus {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        self.0.status()
    }
}

/// Runs a verb; beside a failure stands whether it is wanted as JSON too.
fn run(verb: Verb, output: Output) -> Result<(), (Failure, Record)> {
    let record = Record::of_switch;
    match verb {
        Verb::Inspect(args) => commands::inspect::run(&args, output),
        Verb::Audit(args) => {
            let record = record(args.format == FormatArg::Json);
            let job = plan::audit(args).map_err(|failure| (failure, record))?;
            commands::audit::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::TpPlan(args) => {
            let record = record(args.json);
            commands::tp_plan::run(&args, output).map_err(|failure| (failure, record))
        }
        Verb::Diff(args) => {
            let record = record(args.json);
            let job = plan::diff(args).map_err(|failure| (failure, record))?;
            commands::diff::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Explain(args) => {
            let explained = commands::explain::run(&args, output);
            explained.map_err(|failure| (failure, Record::None))
        }
        Verb::Quantize(args) => {
            let record = record(args.job.json);
            let job = plan::quantize(args).map_err(|failure| (failure, record))?;
            commands::job::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Refine(args) => {
            let record = record(args.job.json);
            let job = plan::refine(args).map_err(|failure| (failure, record))?;
            commands::job::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Dequantize(args) => {
            let record = record(args.job.json);
            let job = plan::dequantize(args);
            commands::job::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Convert(args) => {
            let record = record(args.job.json);
            let job = plan::convert(args).map_err(|failure| (failure, record))?;
            commands::job::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Repair(args) => {
            let record = record(args.json);
            let job = plan::repair(args).map_err(|failure| (failure, record))?;
            commands::repair::run(&job, output).map_err(|failure| (failure, record))
        }
        Verb::Bench(args) => {
            let record = record(args.json);
            commands::bench::run(&args, output).map_err(|failure| (failure, record))
        }
        Verb::Completions(args) => {
            commands::completions::run(&args).map_err(|failure| (failure, Record::None))
        }
    }
}

/// Help and version are answers, everything else is a usage error.
fn answer_of_clap(error: &clap::Error) -> Exit {
    let wrong_usage = error.use_stderr();
    let output = Output::new(Color::Auto);
    match output.clap(error).map_err(Failure::Output) {
        Ok(()) if wrong_usage => Exit::Usage,
        Ok(()) => Exit::Done,
        Err(failure) => {
            output.failure(&failure, Record::None);
            failure.exit()
        }
    }
}
