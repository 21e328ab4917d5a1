//! Packings, small-float codecs and (de)quantization arithmetic, as pure functions over slices.
//!
//! This crate answers one question: *how is it computed*. It knows no name, no file and no producer. What stands in
//! [`packing`], [`tile`], [`planes`] and [`portable`] is the specification in Rust: every faster path equals it bit for bit,
//! and is reached through a [`Backend`] only.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "this crate is bit manipulation; each cast is covered by an exhaustive or property test"
)]
#![expect(
    clippy::inline_always,
    reason = "the per-element functions must merge with their loops, or nothing is vectorized and layouts stay variables"
)]
#![cfg_attr(
    test,
    expect(clippy::float_cmp, reason = "results are defined to the last bit")
)]
#![deny(unsafe_code)] // opened in `arch/` only, per backend

mod arch;
pub mod backend;
pub mod blocks;
pub mod codebook;
pub mod dynamic_8bit;
pub mod e2m1;
pub mod e8m0;
pub mod encode;
pub mod levels;
pub mod matrix;
pub mod minifloat;
pub mod packing;
pub mod planes;
pub mod portable;
pub mod rows;
pub mod samples;
pub mod tile;

#[cfg(test)]
mod tests;

pub use backend::{BACKENDS, Backend, PORTABLE};
pub use blocks::{BlockFields, BlockFormat};
pub use codebook::Codebook;
pub use dynamic_8bit::{DYNAMIC_8BIT, Dynamic8BitRule};
pub use e2m1::E2M1Rule;
pub use e8m0::{E8M0Rule, MxScaleRule, UNSIGNED_E4M3};
pub use encode::{CodeForm, CodeRule, Difference, Floats, GroupRules};
pub use levels::Levels;
pub use matrix::{Matrix, MatrixMut, Product, Sign};
pub use minifloat::{
    E8M0Rounding, Layout, Minifloat, NanRule, OverflowRule, Specials, encode_e8m0,
};
pub use packing::Packing;
pub use planes::Planes;
pub use portable::beam::{Beam, MOST_HYPOTHESES};
pub use portable::feedback::{Feedback, GroupScales};
pub use portable::fit::{Candidate, FitSums};
pub use portable::points::{EdgeOf, EdgePoint, Edges, PointStep};
pub use portable::sweep::Sweep;
pub use rows::{CodedRows, FloatsMut, Stores};
pub use tile::{Tile, TileOrder};

/// A dense float type that results are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an F32.
    Bf16,
}

impl Float {
    /// Every dense float type.
    pub const ALL: &'static [Float] = &[Float::F32, Float::F16, Float::Bf16];

    /// Bytes per element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }
}
