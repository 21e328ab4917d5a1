//! Floats, and how they become codes: plain data for [`crate::Backend::extremes`] and [`crate::Backend::magnitudes`],
//! [`crate::Backend::encode`] and [`crate::Backend::compare`], the three passes of quantizing.
//!
//! Each reads the stored bytes of a dense weight themselves (nothing is widened to a buffer first) and is called for a few
//! thousand values, so that the passes after the first one find them in the cache. Codes leave the second pass as they are
//! stored. [`crate::portable::encode`] composes the primitives and is what every other way must equal bit for bit.

use std::borrow::Cow;
use std::ops::Range;

use crate::{Backend, Codebook, E2M1Rule, Float, Minifloat, Packing};

/// Floats that are read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// F32 values.
    F32(&'a [f32]),
    /// Little-endian bytes of a dense float type.
    Bytes(Float, &'a [u8]),
}

impl<'a> Floats<'a> {
    /// Elements.
    pub const fn len(self) -> usize {
        match self {
            Floats::F32(values) => values.len(),
            Floats::Bytes(float, bytes) => bytes.len() / float.size_bytes(),
        }
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Floats::F32(_) => 4,
            Floats::Bytes(float, _) => float.size_bytes(),
        }
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn cut(self, elements: Range<usize>) -> Self {
        match self {
            Floats::F32(values) => Floats::F32(&values[elements]),
            Floats::Bytes(float, bytes) => {
                let size = float.size_bytes();
                Floats::Bytes(float, &bytes[elements.start * size..elements.end * size])
            }
        }
    }

    /// All of them as F32: exact.
    pub fn widened(self, backend: &Backend) -> Cow<'a, [f32]> {
        match self {
            Floats::F32(values) => Cow::Borrowed(values),
            Floats::Bytes(float, bytes) => {
                let mut values = vec![0.0; self.len()];
                (backend.widen)(float, bytes, &mut values);
                Cow::Owned(values)
            }
        }
    }
}

/// How the codes of a group follow from its values, with the numbers that were chosen for it. `rne` is rounding to the
/// nearest integer, ties to even; every operation is one of the named dtype: calculated in F32, then rounded to it.
///
/// Codes are in the unsigned form (integers), or bit patterns; one per byte. Values are expected to be finite; another
/// one has the same code on every backend, but no meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CodeRule {
    /// `rne(clamp(value / divisor + zero, min, max)) - min`, quotient and sum in `arith`.
    Integer {
        /// Of quotient and sum.
        arith: Float,
        /// The scale.
        divisor: f32,
        /// Signed, as `min` and `max` are.
        zero: i32,
        /// The smallest signed code.
        min: i32,
        /// The largest signed code; at most 255 more than `min`, and like it within ±2^21.
        max: i32,
    },
    /// `clamp(rne(input(value) * factor + offset), min, max) - min`, product and sum in `arith`. Magnitudes beyond 1024 are
    /// clamped before they are rounded.
    Product {
        /// What the value is rounded to first.
        input: Float,
        /// Of product and sum.
        arith: Float,
        /// The reciprocal scale.
        factor: f32,
        /// What is added to the product.
        offset: f32,
        /// The smallest signed code.
        min: i32,
        /// The largest signed code.
        max: i32,
    },
    /// `clamp(rne((value + offset) / divisor), 0, max)`, sum and quotient in `arith`.
    Shifted {
        /// Of sum and quotient.
        arith: Float,
        /// What is added to the value.
        offset: f32,
        /// The scale.
        divisor: f32,
        /// The largest code.
        max: i32,
    },
    /// The code of the value that was already quantized, dequantized and rounded to `source`:
    /// `clamp(rne((source(divisor * (first - zero)) + divisor * zero) / divisor), 0, max)` with
    /// `first = clamp(rne(value / divisor) + zero, 0, max)`; sums, quotients and `divisor * zero` in `arith`.
    Repacked {
        /// The dtype of the weight.
        source: Float,
        /// Where sums, quotients and the shift are rounded.
        arith: Float,
        /// The scale.
        divisor: f32,
        /// In the unsigned form.
        zero: i32,
        /// The largest code.
        max: i32,
    },
    /// `encode(clamp(value / divisor))`, the quotient in `arith`.
    Divided {
        /// Of the quotient.
        arith: Float,
        /// Of the codes.
        format: Minifloat,
        /// The scale.
        divisor: f32,
    },
    /// `encode(clamp(value * factor))`, the product in `arith`.
    Multiplied {
        /// Of the product.
        arith: Float,
        /// Of the codes.
        format: Minifloat,
        /// The reciprocal scale.
        factor: f32,
    },
    /// `encode(value / divisor)`, the quotient in `arith`, with the E2M1 rule of a tool.
    E2M1 {
        /// Ties and zeros.
        rule: E2M1Rule,
        /// Of the quotient.
        arith: Float,
        /// The scale.
        divisor: f32,
    },
    /// The entry nearest to `value * factor`.
    Nearest {
        /// The table.
        book: Codebook,
        /// The reciprocal scale.
        factor: f32,
    },
    /// The entry nearest to `value / divisor`.
    NearestQuotient {
        /// The table.
        book: Codebook,
        /// The scale.
        divisor: f32,
    },
    /// `min((value * factor + offset) as i8, max)`: the sum toward zero, within a signed byte (what is negative then counts
    /// as a large code); a NaN is 0. ggml's way of rounding.
    Truncated {
        /// The reciprocal scale.
        factor: f32,
        /// What is added to the product.
        offset: f32,
        /// The largest code.
        max: u8,
    },
    /// `128 + (value * factor)` to the nearest integer, ties away from zero, within a signed byte; a NaN is 0.
    AwayFromZero {
        /// The reciprocal scale.
        factor: f32,
    },
    /// Every value gets this code.
    Constant {
        /// The code.
        code: u8,
    },
}

impl CodeRule {
    /// The number of the group: what its values are divided by or multiplied with. A constant has none.
    pub const fn number(self) -> f32 {
        match self {
            CodeRule::Integer { divisor, .. }
            | CodeRule::Shifted { divisor, .. }
            | CodeRule::Repacked { divisor, .. }
            | CodeRule::Divided { divisor, .. }
            | CodeRule::E2M1 { divisor, .. }
            | CodeRule::NearestQuotient { divisor, .. } => divisor,
            CodeRule::Product { factor, .. }
            | CodeRule::Multiplied { factor, .. }
            | CodeRule::Nearest { factor, .. }
            | CodeRule::Truncated { factor, .. }
            | CodeRule::AwayFromZero { factor } => factor,
            CodeRule::Constant { .. } => 0.0,
        }
    }

    /// The same rule with another [`CodeRule::number`].
    #[inline]
    #[must_use]
    pub const fn with_number(mut self, number: f32) -> Self {
        match &mut self {
            CodeRule::Integer { divisor, .. }
            | CodeRule::Shifted { divisor, .. }
            | CodeRule::Repacked { divisor, .. }
            | CodeRule::Divided { divisor, .. }
            | CodeRule::E2M1 { divisor, .. }
            | CodeRule::NearestQuotient { divisor, .. } => *divisor = number,
            CodeRule::Product { factor, .. }
            | CodeRule::Multiplied { factor, .. }
            | CodeRule::Nearest { factor, .. }
            | CodeRule::Truncated { factor, .. }
            | CodeRule::AwayFromZero { factor } => *factor = number,
            CodeRule::Constant { .. } => {}
        }
        self
    }
}

/// The rules of consecutive groups.
#[derive(Clone, Copy, Debug)]
pub enum GroupRules<'a> {
    /// One for each.
    Each(&'a [CodeRule]),
    /// One for all but for its number: [`CodeRule::with_number`] of each.
    Same(CodeRule, &'a [f32]),
}

impl GroupRules<'_> {
    /// Groups.
    pub const fn len(&self) -> usize {
        match self {
            GroupRules::Each(rules) => rules.len(),
            GroupRules::Same(_, numbers) => numbers.len(),
        }
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rule of a group.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn rule(&self, group: usize) -> CodeRule {
        match self {
            GroupRules::Each(rules) => rules[group],
            GroupRules::Same(rule, numbers) => rule.with_number(numbers[group]),
        }
    }
}

/// How codes are stored: each with some bits inverted (integers in two's complement), then packed as one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeForm {
    /// How they lie.
    pub packing: Packing,
    /// The bits that are inverted.
    pub flip: u8,
}

impl CodeForm {
    /// One to a byte, as rules give them.
    pub const BYTES: Self = Self {
        packing: Packing::Bytes,
        flip: 0,
    };
}

/// What [`crate::Backend::compare`] finds of a weight and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Sum of the squares of the weight.
    pub signal: f64,
    /// Sum of the squares of the differences.
    pub noise: f64,
    /// The largest magnitude of a difference, 0 if there is none; a difference that is NaN is passed over.
    pub max_error: f32,
    /// Finite values of the weight: the others are left out of all sums.
    pub n_values: u64,
}

/// Sums of [`Difference`] that run side by side: value `i` belongs to sum `i % LANES`.
pub(crate) const LANES: usize = 8;

/// The sum of such sums: one order for every backend.
pub(crate) fn sum_of_lanes(lanes: &[f64; LANES]) -> f64 {
    let pair = |lane: usize| lanes[lane] + lanes[lane + 4];
    (pair(0) + pair(2)) + (pair(1) + pair(3))
}
