//! Values to codes with a scale that is already chosen, for one group.
//!
//! `arith` says in which type the reference calculates: [`Float::F32`] is plain F32; with [`Float::Bf16`] and
//! [`Float::F16`] the quotient and the sum are each rounded to that type, as torch does on tensors of it (double
//! rounding included: compressed-tensors.md §5). `values` and `scale` are then expected to be values of that type.

use super::minifloat;
use crate::{Float, Minifloat, NanRule, OverflowRule};

/// `value` to the nearest integer, ties to even.
#[inline(always)]
pub fn round_half_even(value: f32) -> f32 {
    value.round_ties_even()
}

/// Integer codes of one group: `out = rne(clamp(value / scale + zero, min_code, max_code)) - min_code`.
///
/// `zero` is in the same terms as `min_code` and `max_code` (signed schemes: -8, 7 and `zero` 0), and `out` holds the
/// stored code, which counts from `min_code`. Infinities are clamped. A quotient that is NaN gives `out` 0; callers
/// refuse NaN values and zero scales before.
///
/// The rule of GPTQ and AWQ, `clamp(rne(value / scale) + zero, 0, max)`, is this function with `zero` 0, `min_code`
/// `-zero` and `max_code` `max - zero`.
///
/// `values`, `out`: the same length.
///
/// # Panics
/// If the lengths differ, `min_code > max_code`, there are more than 256 codes, or one is beyond ±2^21.
#[inline(always)]
pub fn quantize_integer(
    arith: Float,
    values: &[f32],
    scale: f32,
    zero: i32,
    min_code: i32,
    max_code: i32,
    out: &mut [u8],
) {
    assert_eq!(values.len(), out.len(), "one code per value");
    let range = -(1 << 21)..=1 << 21;
    assert!(
        range.contains(&min_code) && range.contains(&max_code),
        "codes beyond 2^21"
    );
    assert!(
        min_code <= max_code && max_code - min_code <= 255,
        "codes of more than a byte"
    );
    let zero = zero as f32;
    let limits = (min_code, max_code);
    match arith {
        Float::F32 => integer_run(values, out, limits, |v| v / scale + zero),
        Float::F16 => {
            let zero = Float::F16.nearest(zero);
            let f16 = |v| Float::F16.nearest(v);
            integer_run(values, out, limits, |v| f16(f16(v / scale) + zero));
        }
        Float::Bf16 => {
            let zero = Float::Bf16.nearest(zero);
            let bf16 = |v| Float::Bf16.nearest(v);
            integer_run(values, out, limits, |v| bf16(bf16(v / scale) + zero));
        }
    }
}

#[inline(always)]
fn integer_run(
    values: &[f32],
    out: &mut [u8],
    (min_code, max_code): (i32, i32),
    scaled: impl Fn(f32) -> f32,
) {
    // Adding 1.5 * 2^23, whose last place is 1, makes the F32 adder round to the nearest even integer (for magnitudes up
    // to 2^22), and the sum's bits count from those of the constant. `round_ties_even` is a call without SSE4.1.
    const UNIT: f32 = 12_582_912.0;
    let (low, high) = (min_code as f32, max_code as f32);
    let base = (UNIT.to_bits() as i32).wrapping_add(min_code);
    for (code, &value) in out.iter_mut().zip(values) {
        let value = scaled(value);
        // These compare-and-selects are one instruction each, and NaN takes `low`.
        let value = if value > low { value } else { low };
        let value = if value < high { value } else { high };
        *code = ((value + UNIT).to_bits() as i32).wrapping_sub(base) as u8;
    }
}

/// Minifloat codes of one group: `out = encode(clamp(value / scale, -max, max))`, ties to the even code.
///
/// Infinities become the largest value with the sign; a quotient that is NaN becomes the format's NaN
/// ([`NanRule::Torch`]).
///
/// `values`, `out`: the same length.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn quantize_minifloat(
    arith: Float,
    format: Minifloat,
    values: &[f32],
    scale: f32,
    out: &mut [u8],
) {
    assert_eq!(values.len(), out.len(), "one code per value");
    match arith {
        Float::F32 => minifloat_run(format, values, out, |v| v / scale),
        Float::F16 => minifloat_run(format, values, out, |v| Float::F16.nearest(v / scale)),
        Float::Bf16 => minifloat_run(format, values, out, |v| Float::Bf16.nearest(v / scale)),
    }
}

#[inline(always)]
fn minifloat_run(format: Minifloat, values: &[f32], out: &mut [u8], scaled: impl Fn(f32) -> f32) {
    // Quotients of one chunk stay in the cache between the two loops.
    const CHUNK: usize = 256;
    let mut quotients = [0.0; CHUNK];
    for (values, out) in values.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let quotients = &mut quotients[..values.len()];
        for (quotient, &value) in quotients.iter_mut().zip(values) {
            *quotient = scaled(value);
        }
        // Saturating is clamping.
        minifloat::encode(
            format,
            OverflowRule::Saturate,
            NanRule::Torch,
            quotients,
            out,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_integer(arith: Float, v: f32, scale: f32, zero: i32, low: i32, high: i32) -> u8 {
        let t = arith.nearest(arith.nearest(v / scale) + arith.nearest(zero as f32));
        let t = if t.is_nan() {
            low as f32
        } else {
            t.clamp(low as f32, high as f32)
        };
        (round_half_even(t) as i32 - low) as u8
    }

    fn arith() -> impl Strategy<Value = Float> {
        proptest::sample::select(Float::ALL)
    }

    proptest! {
        #[test]
        fn integers_equal_the_definition(
            arith in arith(),
            values in proptest::collection::vec(-20f32..20.0, 0..300),
            scale in 0.01f32..3.0,
            zero in -130..260,
            low in -130..200,
            width in 0..256,
        ) {
            let values: Vec<f32> = values.iter().map(|&v| arith.nearest(v)).collect();
            let scale = arith.nearest(scale);
            let mut out = vec![0; values.len()];
            quantize_integer(arith, &values, scale, zero, low, low + width, &mut out);
            for (&v, &code) in values.iter().zip(&out) {
                prop_assert_eq!(code, naive_integer(arith, v, scale, zero, low, low + width));
            }
        }

        #[test]
        fn integers_equal_the_definition_for_any_bits(
            arith in arith(),
            bits in proptest::collection::vec(any::<u32>(), 0..40),
            scale in any::<u32>(),
            zero in any::<i32>(),
        ) {
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let scale = f32::from_bits(scale);
            let mut out = vec![0; values.len()];
            quantize_integer(arith, &values, scale, zero, -8, 7, &mut out);
            for (&v, &code) in values.iter().zip(&out) {
                prop_assert_eq!(code, naive_integer(arith, v, scale, zero, -8, 7));
            }
        }

        #[test]
        fn minifloats_equal_the_definition(
            arith in arith(),
            format in proptest::sample::select(Minifloat::ALL),
            values in proptest::collection::vec(
                prop_oneof![-1e3f32..1e3, any::<u32>().prop_map(f32::from_bits)], 0..600),
            scale in 0.001f32..10.0,
        ) {
            let mut out = vec![0; values.len()];
            quantize_minifloat(arith, format, &values, scale, &mut out);
            for (&v, &code) in values.iter().zip(&out) {
                let quotient = arith.nearest(v / scale);
                let expected = format.encode(quotient, OverflowRule::Saturate, NanRule::Torch);
                prop_assert_eq!(code, expected);
            }
        }
    }

    /// compressed-tensors.md §4: in BF16, -0.75 / scale is -7.5 and becomes -8; the exact quotient becomes -7.
    #[test]
    fn bf16_arithmetic_rounds_twice() {
        let values = [0.0, 0.1, -0.2, 0.3, -0.4, 0.5, -0.75, 0.7].map(|v| Float::Bf16.nearest(v));
        let scale = Float::Bf16.nearest(0.1001);
        let mut out = [0; 8];
        quantize_integer(Float::Bf16, &values, scale, 0, -8, 7, &mut out);
        assert_eq!(out.map(|c| i32::from(c) - 8), [0, 1, -2, 3, -4, 5, -8, 7]);
        quantize_integer(Float::F32, &values, scale, 0, -8, 7, &mut out);
        assert_eq!(out.map(|c| i32::from(c) - 8), [0, 1, -2, 3, -4, 5, -7, 7]);
    }

    #[test]
    fn a_zero_inside_the_clamp_gives_the_rule_of_gptq() {
        let (zero, max) = (5, 15);
        for n in -100..100 {
            let value = n as f32 / 4.0; // ties included
            let mut out = [0];
            quantize_integer(Float::F32, &[value], 1.0, 0, -zero, max - zero, &mut out);
            let expected = (round_half_even(value) as i32 + zero).clamp(0, max);
            assert_eq!(i32::from(out[0]), expected, "{value}");
        }
    }
}
