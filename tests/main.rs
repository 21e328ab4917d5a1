//! One binary for all integration tests (style.md, §6).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it visited"
)]

mod audit;
mod hostile;
mod interop;
mod quantize;
mod registries;
mod rewrite;
