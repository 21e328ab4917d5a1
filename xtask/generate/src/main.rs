//! What `cargo xtask generate` runs: the pages of `docs/` that come from the registries.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a task's report is its output")]

mod conventions;
mod conversions;
mod rules;

use std::process::ExitCode;

use xtask::Outcome;
use xtask::process::root;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("generate: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the pages, or with `--check` compares them with what stands there.
fn run(args: &[&str]) -> Outcome {
    let pages = [
        (conventions::PAGE, conventions::page()),
        (conversions::PAGE, conversions::page()?),
        (rules::PAGE, rules::page()),
    ];
    for (name, page) in pages {
        let path = root().join(name);
        match args {
            [] => std::fs::write(&path, page).map_err(|e| format!("{name}: {e}"))?,
            ["--check"] => {
                let stands = std::fs::read_to_string(&path).map_err(|e| format!("{name}: {e}"))?;
                if stands != page {
                    return Err(format!("{name} is not current: run `cargo xtask generate`"));
                }
            }
            _ => return Err(format!("generate: unexpected arguments {args:?}")),
        }
        println!("{name} is current");
    }
    Ok(())
}
