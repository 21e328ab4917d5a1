//! Small numbers of dtypes, and conversions.

use safequant_kernels::Float;
use safequant_schemes::{ScaleCoding, Scheme};

use super::unsupported;
use crate::Error;

/// The dtype of scales that are dense floats.
pub(super) fn float_scale(scheme: &Scheme) -> Result<Float, Error> {
    match scheme.scale {
        ScaleCoding::Float(float) => Ok(float),
        ScaleCoding::E8M0(_)
        | ScaleCoding::Minifloat(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => unsupported("this rule has no scales of this kind for these codes"),
    }
}

/// A scale in its stored dtype.
pub(super) fn stored(dtype: Float, scale: f32) -> Result<f32, f32> {
    let stored = dtype.nearest(scale);
    if stored.is_finite() {
        Ok(stored)
    } else {
        Err(scale)
    }
}

/// As [`stored`], and what would be 0 the smallest subnormal.
pub(super) fn stored_positive(dtype: Float, scale: f32) -> Result<f32, f32> {
    let stored = stored(dtype, scale)?;
    Ok(if stored == 0.0 {
        smallest_positive(dtype)
    } else {
        stored
    })
}

/// The nearest E4M3, at most 448; a NaN stays one.
///
/// As encoding and decoding would give it, without a code in between: the kept mantissa bits are rounded in place, or, for
/// subnormals, by adding a number whose last place is the smallest of them.
pub(crate) fn e4m3(value: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 0.015_625;
    const LARGEST: f32 = 448.0;
    /// Its last place is 2^-9.
    const UNIT: f32 = 16_384.0;
    const DROPPED: u32 = (1 << 20) - 1;
    let magnitude = value.abs();
    let rounded = if magnitude < SMALLEST_NORMAL {
        (magnitude + UNIT) - UNIT
    } else if magnitude < LARGEST {
        let bits = magnitude.to_bits();
        let carried = bits + (DROPPED >> 1) + (bits >> 20 & 1);
        f32::from_bits(carried & !DROPPED)
    } else if magnitude.is_nan() {
        return f32::from_bits(0x7fc0_0000);
    } else {
        LARGEST
    };
    rounded.copysign(value)
}

/// The distance from 1 to the next larger value.
pub(super) fn eps(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => f32::EPSILON,
        Float::F16 => half::f16::EPSILON.to_f32(),
        Float::Bf16 => half::bf16::EPSILON.to_f32(),
    }
}

/// The smallest subnormal.
pub(super) fn smallest_positive(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => f32::from_bits(1),
        Float::F16 => half::f16::from_bits(1).to_f32(),
        Float::Bf16 => half::bf16::from_bits(1).to_f32(),
    }
}

/// The smallest normal value (`tiny` of torch).
pub(super) fn smallest_normal(dtype: Float) -> f32 {
    match dtype {
        Float::F32 | Float::Bf16 => f32::MIN_POSITIVE,
        Float::F16 => half::f16::MIN_POSITIVE.to_f32(),
    }
}

/// An integer of at most 2^24 as F32.
#[expect(
    clippy::cast_precision_loss,
    reason = "codes and zero points have at most 9 bits"
)]
pub(super) fn exact_f32(n: i32) -> f32 {
    n as f32
}

/// The nearest integer, ties to even; NaN gives 0, as torch's conversion on x86 does after its wrap to 8 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a rounded value; the cast saturates"
)]
pub(super) fn nearest_i32(value: f32) -> i32 {
    value.round_ties_even() as i32
}

#[cfg(test)]
mod tests {
    use safequant_kernels::{Minifloat, NanRule, OverflowRule};

    use super::e4m3;

    /// Every 2^12-th pattern and its two neighbors: ties, the ends, NaN and infinities are among them.
    #[test]
    fn e4m3_is_what_encoding_and_decoding_give() {
        let format = Minifloat::E4M3;
        let mut n = 0;
        for bits in (0..=u32::MAX).step_by(1 << 12) {
            for bits in [bits.wrapping_sub(1), bits, bits + 1] {
                let value = f32::from_bits(bits);
                let code = format.encode(value, OverflowRule::Saturate, NanRule::Torch);
                assert_eq!(
                    e4m3(value).to_bits(),
                    format.decode(code).to_bits(),
                    "{bits:08x}"
                );
                n += 1;
            }
        }
        assert_eq!(n, 3 << 20);
    }
}
