//! Hostile files: each with its expected error; every fixture truncated and bit-flipped.

#[path = "../../fuzz/harness.rs"]
#[expect(
    unreachable_pub,
    reason = "fuzz/ uses the same file as a public module"
)]
mod fuzz_harness;
mod mutations;
mod regressions;
mod spelling;
