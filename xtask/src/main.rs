//! The project's own tasks: `cargo xtask check|test|generate|fixtures|interop|mutate|fuzz`.
//!
//! Everything here runs from a fresh clone with Rust alone; what needs Python makes its own virtual environment below
//! `target/`. Each task prints what it visited, so that a walk over nothing cannot pass for a success.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a task's report is its output")]

mod check;
mod fixtures;
mod fuzz;
mod generate;
mod imports;
mod interop;
mod mutate;
mod python;
mod rust_source;
mod testing;
mod tidy;
mod wheel;

use std::process::ExitCode;

use xtask::{Outcome, process};

const HELP: &str = "\
usage: cargo xtask TASK

  check [--no-test] [--only STEP]   everything CI runs: fmt, clippy, tests, docs, generated files, import table, tidy,
                                    fixtures, deny
  test [ARGS]                       cargo test --workspace, then Python's safetensors over what we write, then the Python package:
                                    its wheel in a fresh environment, its stubs, its notebook
  python                            the last part of `test` alone: the Python package
  stubs                             writes the stubs of the Python package's native module
  generate [--check]                docs/conventions.md, docs/conversions.md and docs/rules.md
  fixtures [--update]               fixtures/MANIFEST.toml against the files; --update recomputes the digests
  interop [--all] [--venv PATH]     what we write, read by compressed-tensors and transformers; the Python package beside torch,
                                    transformers and Ray; its types
  mutate [--seed N]                 plants every fault in every fixture, and counts what the auditor finds
  fuzz [--seconds N] [--target T] [--prepare]   the fuzz targets, one after the other
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.split_first() {
        Some((&"check", rest)) => check::run(rest),
        Some((&"test", rest)) => testing::run(rest),
        Some((&"generate", rest)) => generate::run(rest),
        Some((&"fixtures", rest)) => fixtures::run(rest),
        Some((&"interop", rest)) => interop::run(rest),
        Some((&"stubs", _)) => wheel::write_stubs(),
        Some((&"python", _)) => wheel::test(),
        Some((&"mutate", rest)) => mutate::run(rest),
        Some((&"fuzz", rest)) => fuzz::run(rest),
        Some((&("help" | "--help" | "-h"), _)) => {
            print!("{HELP}");
            Ok(())
        }
        Some((task, _)) => Err(format!("no task `{task}`\n\n{HELP}")),
        None => Err(HELP.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
