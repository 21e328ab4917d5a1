//! Dense floats to F32 and back, on little-endian byte slices.
//!
//! Widening is exact. Rounding is to nearest, ties to even, subnormals kept; what rounds beyond the largest finite value
//! becomes infinity. NaN stays NaN in both directions and becomes quiet; sign and the payload bits that fit are kept (as
//! the `half` crate does; libraries differ, float-codecs.md §4).

use super::minifloat::nearest_code;
use crate::Float;

/// Bytes of a [`Float`] array to F32.
///
/// `bytes`: `out.len()` little-endian elements of type `float`, no alignment needed. F32 comes out bit for bit,
/// signalling NaN included.
///
/// # Panics
/// If `bytes.len() != out.len() * float.size_bytes()`.
pub fn widen(float: Float, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        out.len() * float.size_bytes(),
        "bytes of {} values",
        out.len()
    );
    match float {
        Float::F32 => {
            for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(bytes);
            }
        }
        Float::F16 => {
            for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = f16_to_f32(u16::from_le_bytes(bytes));
            }
        }
        Float::Bf16 => {
            for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = bf16_to_f32(u16::from_le_bytes(bytes));
            }
        }
    }
}

/// F32 values to the bytes of a [`Float`] array, each rounded once.
///
/// `bytes`: `values.len()` little-endian elements of type `float`, no alignment needed.
///
/// # Panics
/// If `bytes.len() != values.len() * float.size_bytes()`.
pub fn round(float: Float, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(
        bytes.len(),
        values.len() * float.size_bytes(),
        "bytes of {} values",
        values.len()
    );
    match float {
        Float::F32 => {
            for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        Float::F16 => {
            for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = f32_to_f16(value).to_le_bytes();
            }
        }
        Float::Bf16 => {
            for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = f32_to_bf16(value).to_le_bytes();
            }
        }
    }
}

impl Float {
    /// The value of this type nearest to `value`, as F32: what a calculation in this type would hold.
    ///
    /// [`round`] and [`widen`] in one, without leaving 32-bit lanes (`quantize_integer` with F16: 0.33 to 0.55 G/s).
    #[inline(always)]
    pub fn nearest(self, value: f32) -> f32 {
        match self {
            Float::F32 => value,
            Float::F16 => nearest_f16(value),
            Float::Bf16 => nearest_bf16(value),
        }
    }

    /// [`Float::nearest`] of an F64, rounded once: not the same as rounding to F32 first.
    #[inline(always)]
    pub fn nearest_f64(self, value: f64) -> f32 {
        match self {
            Float::F32 => value as f32,
            Float::F16 => nearest_f16(to_odd(value)),
            Float::Bf16 => nearest_bf16(to_odd(value)),
        }
    }
}

/// An F64 as F32, rounded to the neighbor whose last bit is one unless it is exact: the last bit then says "more follows",
/// and rounding again to a type at least two bits narrower is rounding once.
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    let bits = near.to_bits();
    let back = f64::from(near);
    let is_even = bits & 1 == 0;
    if is_even && back.abs() > value.abs() {
        f32::from_bits(bits - 1)
    } else if is_even && back.abs() < value.abs() {
        f32::from_bits(bits + 1)
    } else {
        near
    }
}

#[inline(always)]
fn nearest_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let is_nan = bits & MAGNITUDE > INFINITY;
    f32::from_bits(if is_nan { bits | QUIET } else { rounded } & 0xffff_0000)
}

#[inline(always)]
fn nearest_f16(value: f32) -> f32 {
    const DROPPED: u32 = 0x1fff; // 23 - 10 mantissa bits
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    let normal = (magnitude + 0x0fff + (magnitude >> 13 & 1)) & !DROPPED;
    let normal = if normal > MAX_F16 { INFINITY } else { normal };
    // The last place of 0.5 is 2^-24, the smallest subnormal: the F32 adder rounds.
    let subnormal = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    let nan = (magnitude | QUIET) & !DROPPED;
    let rounded = if magnitude < MIN_NORMAL_F16 {
        subnormal
    } else {
        normal
    };
    let rounded = if magnitude > INFINITY { nan } else { rounded };
    f32::from_bits(rounded | bits & !MAGNITUDE)
}

/// BF16 bits to F32, exact; a signalling NaN becomes quiet.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    let wide = u32::from(bits) << 16;
    let quiet = if wide & MAGNITUDE > INFINITY {
        QUIET
    } else {
        0
    };
    f32::from_bits(wide | quiet)
}

/// F32 to BF16 bits, to nearest even; NaN keeps its sign and upper payload and becomes quiet.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let is_nan = bits & MAGNITUDE > INFINITY;
    ((if is_nan { bits | QUIET } else { rounded }) >> 16) as u16
}

/// F16 bits to F32, exact; a signalling NaN becomes quiet.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    let rebias = (127 - 15) << 23;
    let normal = (magnitude << 13) + rebias;
    // Infinity and NaN: the exponent field goes from 31 to 255 instead of 143.
    let special = (magnitude << 13) | INFINITY | if magnitude > 0x7c00 { QUIET } else { 0 };
    // `mantissa * 2^-24`, by putting the mantissa under the bits of 2^-1 (whose last place is 2^-24).
    let subnormal = (f32::from_bits(0x3f00_0000 | magnitude) - 0.5).to_bits();
    let wide = if magnitude < 0x0400 {
        subnormal
    } else {
        normal
    };
    let wide = if magnitude >= 0x7c00 { special } else { wide };
    f32::from_bits(wide | sign)
}

/// F32 to F16 bits, to nearest even; NaN keeps its sign and upper payload and becomes quiet.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    let code = nearest_code(magnitude, 10, 15).min(0x7c00);
    let nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
    let code = if magnitude > INFINITY { nan } else { code };
    (code | bits >> 16 & 0x8000) as u16
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
/// F32 bits of 65504.
const MAX_F16: u32 = 0x477f_e000;
/// F32 bits of 2^-14.
const MIN_NORMAL_F16: u32 = 0x3880_0000;
/// The bit that makes an F32 NaN quiet.
const QUIET: u32 = 0x0040_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn all_65536_inputs_widen_as_in_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (b, h) = (
                bf16::from_bits(bits).to_f32(),
                f16::from_bits(bits).to_f32(),
            );
            assert_eq!(bf16_to_f32(bits).to_bits(), b.to_bits(), "bf16 {bits:04x}");
            assert_eq!(f16_to_f32(bits).to_bits(), h.to_bits(), "f16 {bits:04x}");
        }
    }

    /// Every value and every tie between two neighbors, with the F32 before and after each, of both signs.
    fn ties_and_neighbors(widen: fn(u16) -> f32, largest: u16) -> Vec<f32> {
        let mut inputs = Vec::new();
        for code in 0..=largest {
            let (low, high) = (widen(code), widen(code + 1));
            let high = if high.is_infinite() {
                low + (low - widen(code - 1))
            } else {
                high
            };
            for center in [low, low + (high - low) / 2.0] {
                let bits = center.to_bits();
                inputs.extend([bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits));
            }
        }
        let negative: Vec<f32> = inputs.iter().map(|v| -v).collect();
        inputs.extend(negative);
        inputs
    }

    /// [`Float::nearest`] is rounding and widening.
    fn check_nearest(value: f32) {
        let bf16 = bf16_to_f32(f32_to_bf16(value));
        assert_eq!(
            Float::Bf16.nearest(value).to_bits(),
            bf16.to_bits(),
            "bf16 {value:e}"
        );
        let f16 = f16_to_f32(f32_to_f16(value));
        assert_eq!(
            Float::F16.nearest(value).to_bits(),
            f16.to_bits(),
            "f16 {value:e}"
        );
    }

    #[test]
    fn every_tie_rounds_as_in_the_half_crate() {
        let inputs = ties_and_neighbors(bf16_to_f32, 0x7f7e);
        assert_eq!(inputs.len(), 12 * 0x7f7f);
        for value in inputs {
            check_nearest(value);
            assert_eq!(
                f32_to_bf16(value),
                bf16::from_f32(value).to_bits(),
                "bf16 {value:e}"
            );
        }
        let inputs = ties_and_neighbors(f16_to_f32, 0x7bff);
        assert_eq!(inputs.len(), 12 * 0x7c00);
        for value in inputs {
            check_nearest(value);
            assert_eq!(
                f32_to_f16(value),
                f16::from_f32(value).to_bits(),
                "f16 {value:e}"
            );
        }
    }

    #[test]
    fn nan_stays_nan_whatever_its_payload() {
        for payload in (0..23).map(|bit| 1u32 << bit).chain([0x7f_ffff, 0x40_0001]) {
            for sign in [0, 1 << 31] {
                let value = f32::from_bits(INFINITY | payload | sign);
                assert_eq!(
                    f32_to_bf16(value),
                    bf16::from_f32(value).to_bits(),
                    "{payload:x}"
                );
                assert_eq!(
                    f32_to_f16(value),
                    f16::from_f32(value).to_bits(),
                    "{payload:x}"
                );
                check_nearest(value);
                assert!(bf16::from_bits(f32_to_bf16(value)).is_nan());
                assert!(f16::from_bits(f32_to_f16(value)).is_nan());
            }
        }
    }

    /// Every 2^10-th pattern and a prime offset, so that all exponents and many mantissas are met.
    #[test]
    fn a_dense_sweep_rounds_as_in_the_half_crate() {
        for bits in (0..=u32::MAX).step_by(1021) {
            let value = f32::from_bits(bits);
            check_nearest(value);
            assert_eq!(
                f32_to_bf16(value),
                bf16::from_f32(value).to_bits(),
                "bf16 {bits:08x}"
            );
            assert_eq!(
                f32_to_f16(value),
                f16::from_f32(value).to_bits(),
                "f16 {bits:08x}"
            );
        }
    }

    #[test]
    fn f64_is_rounded_once() {
        let mut cases = 0;
        for float in [Float::F16, Float::Bf16] {
            for bits in (0..=0x7f7f_ffffu32).step_by(65_521) {
                let low = f32::from_bits(bits);
                let low = float.nearest(low);
                let next = match float {
                    Float::F16 => f16_to_f32(f32_to_f16(low) + 1),
                    Float::Bf16 | Float::F32 => bf16_to_f32(f32_to_bf16(low) + 1),
                };
                if !next.is_finite() || !low.is_finite() {
                    continue;
                }
                let tie = f64::midpoint(f64::from(low), f64::from(next));
                let is_even = float.nearest(tie as f32) == low;
                let above = f64::from_bits(tie.to_bits() + 1);
                let below = f64::from_bits(tie.to_bits() - 1);
                for sign in [1.0, -1.0] {
                    let nearest = |v: f64| float.nearest_f64(v * f64::from(sign)) * sign;
                    assert_eq!(nearest(below), low, "{float:?} {tie:e}");
                    assert_eq!(nearest(above), next, "{float:?} {tie:e}");
                    assert_eq!(nearest(tie), if is_even { low } else { next });
                    assert_eq!(nearest(f64::from(low)), low);
                }
                cases += 1;
            }
            assert_eq!(float.nearest_f64(1e300), f32::INFINITY);
            assert_eq!(float.nearest_f64(-1e300), f32::NEG_INFINITY);
            assert!(float.nearest_f64(f64::NAN).is_nan());
            assert_eq!(float.nearest_f64(f64::MIN_POSITIVE).to_bits(), 0);
        }
        assert!(cases > 40_000, "{cases}");
        assert_eq!(Float::F32.nearest_f64(0.1), 0.1f32);
    }

    #[test]
    fn slices_are_little_endian_and_need_no_alignment() {
        let bytes = [0xff, 0x80, 0x3f, 0x00, 0xc0];
        let mut out = [0.0; 2];
        widen(Float::Bf16, &bytes[1..], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        let mut back = [0; 5];
        round(Float::Bf16, &out, &mut back[1..]);
        assert_eq!(back[1..], bytes[1..]);
    }
}
