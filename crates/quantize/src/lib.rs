//! Choosing codes and scales for rows of floats: pure algorithms, no file and no name.
#![forbid(unsafe_code)]

mod error;
pub mod quantizer;
pub mod quantizers;
pub mod report;

pub use error::Error;
pub use quantizer::{Division, QUANTIZERS, Quantizer, Rows, ScaleRule, Statistics, Target};
pub use report::Loss;
