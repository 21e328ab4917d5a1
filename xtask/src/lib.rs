//! What the tasks share with the program that writes pages of `docs/`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a task's report is its output")]

pub mod process;

/// What a task answers: a message that says what is wrong and what to do.
pub type Outcome = Result<(), String>;
