//! `python -m safequant`: the command line, in this process.

use pyo3::prelude::*;

/// Runs a command line, the program's name included, and gives its exit status (specs/cli/exit-status.md).
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| safequant_cli::main(arguments.into_iter().map(Into::into)).code())
}
