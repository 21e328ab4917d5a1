//! The built binary from outside: help, exit statuses, JSON, hostile input, signals.
#![expect(
    clippy::unwrap_used,
    reason = "this whole crate is tests; not every helper is marked as one"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests make the files that the program then reads"
)]

mod audit;
mod bench;
mod convert;
mod diff;
mod exit_status;
mod help;
mod hostile;
mod jobs;
mod json;
mod readme;
mod repair;
mod schema;
mod support;
