//! What real tools wrote: every fixture is opened, bound, decoded and compared with the numbers of its producer.

#![expect(clippy::float_cmp, reason = "conversions keep values exactly")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod awq;
mod bitsandbytes;
mod comfyui;
mod converting;
mod decoding;
mod dense;
mod encoding;
pub(crate) mod fixture;
mod forms;
mod marlin;
mod memory;
mod mlx;
mod refusals;
mod slicing;
mod taking_over;
mod writing;
