//! `cargo xtask generate`: the pages of `docs/` that come from the registries.
//!
//! A program of its own writes them (`xtask/generate`): the tasks know nothing of the engine, so that they are built in seconds and
//! the engine is built once, for its tests.

use crate::process::{command, run as run_command};
use crate::{Outcome, testing};

/// Writes the pages, or with `--check` compares them with what stands there.
pub(crate) fn run(args: &[&str]) -> Outcome {
    run_command(command(testing::binary("xtask-generate")?).args(args))
}
