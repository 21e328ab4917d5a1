//! The passes of quantizing: `portable::encode`, from the stored bytes of the weight, eight values at a time.
//!
//! - [`extremes`](extremes::extremes): with the sign as a bit, floats are ordered as integers once the other bits of the
//!   negative ones are inverted; so minima and maxima are found without widening a value, sixteen at once.
//! - [`encode`](codes::encode): one loop per rule over [`lanes`]; four vectors of codes are packed into one of bytes.
//! - [`compare`](compare::compare): F64 sums in two vectors of four, in the order that `crate::encode::LANES` defines.

mod codes;
mod compare;
mod extremes;
mod lanes;
mod nearest_entry;
mod pack;
mod small_float;

pub(super) use self::codes::encode;
pub(super) use self::compare::compare;
pub(super) use self::extremes::extremes;
pub(super) use self::pack::pack;
