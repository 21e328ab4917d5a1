//! Choosing codes and scales for rows of floats: pure algorithms, no file and no name.
#![forbid(unsafe_code)]

mod beam;
mod error;
mod factor;
mod feedback;
mod grid;
pub mod inputs;
mod lattice;
mod nested;
mod prepared;
pub mod quantizer;
pub mod quantizers;
pub mod recode;
mod refine;
pub mod report;
mod rules;
pub mod scaling;
mod search;

pub use error::Error;
pub use inputs::{Biases, Effort, Inputs, Needs, Order, OutputLoss, SecondMoment, Settings};
pub use nested::scale_sums;
pub use prepared::{DAMPING, Prepared};
pub use quantizer::{
    Division, NonFinite, Output, QUANTIZERS, Quantizer, RowWork, Rows, ScaleRule, Statistics,
    Target,
};
pub use quantizers::{RoundToNearest, Searched};
pub use recode::{Recoded, Recoder, can_recode};
pub use report::Loss;
