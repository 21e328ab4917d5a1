//! `cargo xtask check`: everything CI runs.

use crate::Outcome;
use crate::process::{self, cargo, is_installed};

/// A step by its name.
type Step = (&'static str, fn() -> Outcome);

/// The steps, in order; each by the name that `--only` takes.
const STEPS: &[Step] = &[
    ("fmt", fmt),
    ("tidy", crate::tidy::check),
    ("imports", crate::imports::check),
    ("fixtures", || crate::fixtures::run(&[])),
    ("clippy", clippy),
    ("generate", || crate::generate::run(&["--check"])),
    ("docs", docs),
    ("deny", deny),
    ("test", || crate::testing::run(&[])),
];

/// Runs every step, or one; all of them run even if one fails, so that one round shows everything.
fn run_steps(skip: Option<&str>, only: Option<&str>) -> Outcome {
    let chosen = |name: &str| only.is_none_or(|o| o == name) && skip != Some(name);
    let mut failed = Vec::new();
    let mut done = 0;
    for (name, step) in STEPS.iter().filter(|(name, _)| chosen(name)) {
        println!("\n== {name}");
        done += 1;
        if let Err(message) = step() {
            eprintln!("{name}: {message}");
            failed.push(*name);
        }
    }
    println!(
        "\ncheck: {done} steps, {} failed {}",
        failed.len(),
        failed.join(", ")
    );
    match (done, failed.is_empty()) {
        (0, _) => Err(format!(
            "no such step; there are {}",
            STEPS.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
        )),
        (_, true) => Ok(()),
        (_, false) => Err(format!("check failed: {}", failed.join(", "))),
    }
}

/// Reads the arguments and runs.
pub(crate) fn run(args: &[&str]) -> Outcome {
    match args {
        [] => run_steps(None, None),
        ["--no-test"] => run_steps(Some("test"), None),
        ["--only", step] => run_steps(None, Some(step)),
        _ => Err(format!("check: unexpected arguments {args:?}")),
    }
}

/// Prints faults, one line each, and answers whether there were none.
pub(crate) fn verdict(faults: &[String]) -> Outcome {
    for fault in faults {
        println!("  {fault}");
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("{} faults", faults.len()))
    }
}

fn fmt() -> Outcome {
    process::run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Outcome {
    process::run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn docs() -> Outcome {
    let mut doc = cargo();
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
    ]))
}

/// Licenses, sources and advisories of what we depend on.
///
/// The advisories come from a database on the network: where it cannot be fetched, only that part is skipped, loudly.
fn deny() -> Outcome {
    if !is_installed("cargo", &["deny", "--version"]) {
        warn_skipped(
            "cargo-deny is not installed: licenses, sources and advisories",
            "cargo install cargo-deny --locked",
        );
        return Ok(());
    }
    process::run(cargo().args([
        "deny",
        "--workspace",
        "--log-level",
        "error",
        "check",
        "licenses",
        "bans",
        "sources",
    ]))?;
    if !is_installed("cargo", &["deny", "fetch", "db"]) {
        warn_skipped(
            "the advisory database cannot be fetched: advisories",
            "cargo deny fetch db",
        );
        return Ok(());
    }
    process::run(cargo().args([
        "deny",
        "--workspace",
        "check",
        "--disable-fetch",
        "advisories",
    ]))
}

fn warn_skipped(what: &str, remedy: &str) {
    println!("******** SKIPPED: {what} were NOT checked; `{remedy}` helps.");
}
