//! `cargo xtask mutate`: every fault of `tests/audit/faults`, planted at a random place of every fixture that offers one.
//!
//! The tests plant each in three fixtures; this is the whole of it. What is printed: how many faults were planted and found, rule by
//! rule, and how many of the clean checkpoints have an error.

use crate::Outcome;
use crate::process::{cargo, run as run_command};

/// Runs the walk, with another seed for other places.
pub(crate) fn run(args: &[&str]) -> Outcome {
    let seed = match args {
        [] => "0",
        ["--seed", seed] if seed.parse::<u64>().is_ok() => seed,
        _ => return Err("usage: cargo xtask mutate [--seed N]".to_owned()),
    };
    let mut tests = cargo();
    tests
        .args([
            "test",
            "--locked",
            "-p",
            "safequant-tests",
            "--test",
            "all",
            "--",
        ])
        .args([
            "audit::planted_faults_are_found",
            "audit::clean_checkpoints_have_no_errors",
        ])
        .arg("--nocapture")
        .env("SAFEQUANT_MUTATE", "all")
        .env("SAFEQUANT_MUTATE_SEED", seed);
    run_command(&mut tests)
}
