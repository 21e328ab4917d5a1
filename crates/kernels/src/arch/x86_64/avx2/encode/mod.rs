//! The passes of quantizing: `portable::encode`, from the stored bytes of the weight to the stored bytes of the codes.
//!
//! - [`extremes`](extremes::extremes) and [`magnitudes`](magnitudes::magnitudes): with the sign as a bit, floats are ordered
//!   as integers once the other bits of the negative ones are inverted, and magnitudes are as they stand; so they are found
//!   without widening a value, sixteen at once.
//! - [`encode`](packed::encode): 32 values at a time in registers, from the source to packed codes, wherever rule, groups and
//!   packing allow it; else [`codes`] group by group into a buffer, which is packed.
//! - [`encode_blocks`](blocks::encode_blocks): the same for ggml's blocks of 32; those of 256 search in lanes ([`k_quants`]).
//! - [`compare`](compare::compare): F64 sums in two vectors of four, in the order that `crate::encode::LANES` defines.

mod blocks;
mod codes;
mod compare;
mod extremes;
mod k_quants;
mod lanes;
mod magnitudes;
mod nearest_entry;
mod pack;
mod packed;
mod small_float;

pub(super) use self::blocks::encode_blocks;
pub(super) use self::compare::compare;
pub(super) use self::extremes::extremes;
pub(super) use self::magnitudes::magnitudes;
pub(super) use self::pack::pack;
pub(super) use self::packed::encode;
