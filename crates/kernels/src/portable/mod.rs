//! The arithmetic in plain Rust: the reference that every backend equals bit for bit.
//!
//! Loops here have no branch and no bounds check per element, so that rustc vectorizes them for the baseline
//! instruction set. There is no fused multiply-add but in [`product`], [`feedback`] and [`sweep`]; the only sums are those, [`fit`]'s, [`points`]', and those of [`rotate`] and
//! [`encode::compare`]: their order is part of their definition.

pub mod affine;
pub mod beam;
pub mod convert;
pub mod encode;
pub mod feedback;
pub mod fit;
pub mod indexed;
pub mod lookup;
pub mod minifloat;
pub mod points;
pub mod product;
pub mod quantize;
pub mod rotate;
pub mod rows;
pub mod scan;
pub mod sweep;
