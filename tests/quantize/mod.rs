//! Quantizers against what the real tools wrote, and against themselves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod codes;
mod encoded;
mod fixture;
mod reference;
