//! `cargo xtask test`: every test of the workspace, then Python's own reader over what we write.

use std::path::PathBuf;

use crate::Outcome;
use crate::process::{cargo, command, run as run_command, run_and_read, target_dir};
use crate::{python, wheel};

/// The packages that are tested. `benches` has no tests (`tidy` holds that), and what it measures with changes the features of
/// what the other packages depend on.
const TESTED: [&str; 4] = ["--locked", "--workspace", "--exclude", "safequant-benches"];

/// Runs everything and ends with one line that sums up all runners.
pub(crate) fn run(args: &[&str]) -> Outcome {
    let python = python::environment("venv", "interop/requirements-test.txt")?;
    let mut tests = cargo();
    tests
        .arg("test")
        .args(TESTED)
        .arg("--no-fail-fast")
        .args(args);
    let (lines, succeeded) = run_and_read(tests.env("SAFEQUANT_TEST_PYTHON", &python))?;
    let total = Total::of(&lines);
    let python_checks = if args.is_empty() {
        run_python(&python).and_then(|()| wheel::test())
    } else {
        Ok(())
    };
    println!("\n{}", total.line());
    if !succeeded || total.failed > 0 || total.runners == 0 {
        return Err("cargo test failed".to_owned());
    }
    python_checks
}

/// Our own binary, checked by Python: our arithmetic over every fixture, `safetensors` over what we write.
fn run_python(python: &PathBuf) -> Outcome {
    let binary = binary("safequant")?;
    run_command(
        command(python)
            .arg("interop/check_dequant.py")
            .arg(&binary)
            .arg("fixtures"),
    )?;
    run_command(
        command(python)
            .arg("interop/check_container.py")
            .arg(&binary)
            .arg("fixtures/all-minilm-l6-v2"),
    )
}

/// Builds a program as the tests have built it, if they have not, and says where it is.
///
/// The packages are the same, and so is that a test is among what is built (one of the smallest): both decide which features the
/// dependencies have, and with others all of them and all of ours would be compiled once more.
pub(crate) fn binary(name: &str) -> Result<PathBuf, String> {
    run_command(
        cargo()
            .arg("build")
            .args(TESTED)
            .args(["--test", "vectors", "--bin", name]),
    )?;
    Ok(target_dir().join("debug").join(name))
}

/// The sum of all `test result:` lines.
#[derive(Debug, Default, PartialEq)]
struct Total {
    runners: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Total {
    fn of(lines: &[String]) -> Self {
        let mut total = Self::default();
        for line in lines
            .iter()
            .filter_map(|l| l.trim().strip_prefix("test result:"))
        {
            total.runners += 1;
            total.passed += count(line, "passed");
            total.failed += count(line, "failed");
            total.ignored += count(line, "ignored");
        }
        total
    }

    fn line(&self) -> String {
        let verdict = if self.failed == 0 && self.runners > 0 {
            "ok"
        } else {
            "FAILED"
        };
        let Self {
            runners,
            passed,
            failed,
            ignored,
        } = self;
        format!(
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; in {runners} runners"
        )
    }
}

/// The number before a word: `3 passed`.
fn count(line: &str, word: &str) -> usize {
    let before = line.split_once(word).map_or("", |(before, _)| before);
    before
        .split_whitespace()
        .next_back()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_runners_are_added() {
        let lines = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        let total = Total::of(&lines.map(str::to_owned));
        assert_eq!(
            total,
            Total {
                runners: 2,
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
        assert_eq!(
            total.line(),
            "test result: FAILED. 13 passed; 2 failed; 1 ignored; in 2 runners"
        );
    }
}
