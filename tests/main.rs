//! One binary for all integration tests (style.md, §6).

mod cli;
mod hostile;
mod interop;
mod quantize;
mod registries;
mod rewrite;
