//! Minifloat codes of slices: the fast form of [`Minifloat::encode`].
//!
//! [`Minifloat::encode`] shifts by an amount that depends on the value, which the baseline vector sets cannot do per
//! lane. This form departs from it in two places, and gives the same codes for all 2^32 inputs:
//!
//! 1. A value that is normal in the target is rounded in place: adding half a unit minus one plus the lowest kept bit,
//!    then dropping the bits below, is round-half-even, and a carry runs into the exponent as it should.
//! 2. A value that is subnormal in the target is added to a power of two whose last place is the target's smallest
//!    subnormal: the F32 adder then does the rounding, to nearest even, and the code is what the sum's bits grew by.

use crate::minifloat::{Layout, Specials};
use crate::{Minifloat, NanRule, OverflowRule};

/// Codes of `values` (no scaling): [`Minifloat::encode`] of each.
///
/// `values`, `out`: the same length; one code per byte.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn encode(
    format: Minifloat,
    overflow: OverflowRule,
    nan: NanRule,
    values: &[f32],
    out: &mut [u8],
) {
    assert_eq!(values.len(), out.len(), "one code per value");
    let special = Lanes::new(format, overflow, nan);
    // One arm per format makes the layout a constant in each copy of the loop.
    match format {
        Minifloat::E4M3 => encode_run(Layout::E4M3, special, values, out),
        Minifloat::E5M2 => encode_run(Layout::E5M2, special, values, out),
        Minifloat::E4M3Fnuz => encode_run(Layout::E4M3_FNUZ, special, values, out),
        Minifloat::E5M2Fnuz => encode_run(Layout::E5M2_FNUZ, special, values, out),
        Minifloat::E2M3 => encode_run(Layout::E2M3, special, values, out),
        Minifloat::E3M2 => encode_run(Layout::E3M2, special, values, out),
        Minifloat::E2M1 => encode_run(Layout::E2M1, special, values, out),
        // A scale per 16 or 32 values: not worth a vector form.
        Minifloat::E8M0 => {
            for (code, &value) in out.iter_mut().zip(values) {
                *code = format.encode(value, overflow, nan);
            }
        }
    }
}

/// The codes of overflow and NaN as vector lanes.
#[derive(Clone, Copy)]
struct Lanes {
    overflow: u32,
    nan_positive: u32,
    nan_negative: u32,
}

impl Lanes {
    fn new(format: Minifloat, overflow: OverflowRule, nan: NanRule) -> Lanes {
        let codes = format.special_codes(overflow, nan);
        Lanes {
            overflow: codes.overflow.into(),
            nan_positive: codes.nan_positive.into(),
            nan_negative: codes.nan_negative.into(),
        }
    }
}

#[inline(always)]
fn encode_run(layout: Layout, special: Lanes, values: &[f32], out: &mut [u8]) {
    for (code, value) in out.iter_mut().zip(values) {
        *code = encode_lane(layout, special, value.to_bits()) as u8;
    }
}

#[inline(always)]
fn encode_lane(layout: Layout, special: Lanes, bits: u32) -> u32 {
    let magnitude = bits & 0x7fff_ffff;
    let code = nearest_code(magnitude, layout.mantissa_bits, layout.bias);
    let code = if code > u32::from(layout.max_code) {
        special.overflow
    } else {
        code
    };
    let sign = (bits >> 31) << (layout.bits() - 1);
    let sign = if layout.specials == Specials::Fnuz && code == 0 {
        0
    } else {
        sign
    };
    let nan = if bits >> 31 == 0 {
        special.nan_positive
    } else {
        special.nan_negative
    };
    if magnitude > 0x7f80_0000 {
        nan
    } else {
        code | sign
    }
}

/// The magnitude bits of an F32 rounded to a format with fewer exponent and mantissa bits: its code with an exponent
/// that has no upper end. The caller deals with what is beyond its largest code, infinity and NaN included.
#[inline(always)]
pub(super) fn nearest_code(magnitude: u32, mantissa_bits: u32, bias: u32) -> u32 {
    let shift = 23 - mantissa_bits;
    let rounded = magnitude + ((1 << (shift - 1)) - 1) + (magnitude >> shift & 1);
    let normal = (rounded >> shift).wrapping_sub((127 - bias) << mantissa_bits);
    // Its last place is 2^(1 - bias - mantissa_bits), the smallest subnormal of the format.
    let unit = (127 + 1 + shift - bias) << 23;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(unit))
        .to_bits()
        .wrapping_sub(unit);
    let smallest_normal = (127 + 1 - bias) << 23;
    if magnitude < smallest_normal {
        subnormal
    } else {
        normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: Minifloat, inputs: &[f32]) {
        let mut out = vec![0; inputs.len()];
        for &overflow in OverflowRule::ALL {
            for &nan in NanRule::ALL {
                encode(format, overflow, nan, inputs, &mut out);
                for (&value, &code) in inputs.iter().zip(&out) {
                    let expected = format.encode(value, overflow, nan);
                    let bits = value.to_bits();
                    assert_eq!(code, expected, "{format:?} {overflow:?} {nan:?} {bits:08x}");
                }
            }
        }
    }

    /// Every 2^12-th pattern (all exponents, the upper mantissa bits that decide) and its two neighbors.
    #[test]
    fn slices_encode_as_single_values_do() {
        let mut inputs = Vec::new();
        for bits in (0..=u32::MAX).step_by(1 << 12) {
            inputs.extend([bits.wrapping_sub(1), bits, bits + 1].map(f32::from_bits));
        }
        assert_eq!(inputs.len(), 3 << 20);
        for &format in Minifloat::ALL {
            check(format, &inputs);
        }
    }
}
