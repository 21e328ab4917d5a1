//! The container against the official parser, against hostile bytes, and on real directories.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod checkpoint;
mod differential;
mod gguf;
mod hostile;
mod mutation;
mod peer;
mod round_trip;
