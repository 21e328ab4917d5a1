//! Codes of tables of sixteen values, for slices: what the scalar encoders define, one value after the other.

use super::minifloat;
use crate::{Codebook, E2M1Rule, Minifloat, NanRule, OverflowRule};

/// E2M1 codes of `values` (no scaling): [`E2M1Rule::encode`] of each.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn encode_e2m1(rule: E2M1Rule, values: &[f32], out: &mut [u8]) {
    assert_eq!(values.len(), out.len(), "one code per value");
    match rule {
        E2M1Rule::EvenSigned => nearest_even(values, out),
        E2M1Rule::EvenPlusZero => {
            nearest_even(values, out);
            for (code, &value) in out.iter_mut().zip(values) {
                *code = if value == 0.0 { 0 } else { *code };
            }
        }
        // The rule is a constant in each loop, or there would be a branch for every value.
        E2M1Rule::TowardZeroMinusZero => {
            for (code, &value) in out.iter_mut().zip(values) {
                *code = E2M1Rule::TowardZeroMinusZero.encode(value);
            }
        }
        E2M1Rule::TowardZeroUnsigned => {
            for (code, &value) in out.iter_mut().zip(values) {
                *code = E2M1Rule::TowardZeroUnsigned.encode(value);
            }
        }
    }
}

#[inline(always)]
fn nearest_even(values: &[f32], out: &mut [u8]) {
    let (overflow, nan) = (OverflowRule::Saturate, NanRule::Torch);
    minifloat::encode(Minifloat::E2M1, overflow, nan, values, out);
}

/// Codes of `values * factor` of one group, the product in F32: [`Codebook::nearest`] of each. What lies beyond the book's
/// ends takes the end, as if it had been clamped.
///
/// bitsandbytes' `factor` is `1 / absmax` in F32, for blocks of zeros `1 / 1e-38`; where a reference divides, the caller does so before,
/// and `factor` is 1.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn quantize_codebook(book: Codebook, values: &[f32], factor: f32, out: &mut [u8]) {
    assert_eq!(values.len(), out.len(), "one code per value");
    let Some(thresholds) = book.thresholds() else {
        for (code, &value) in out.iter_mut().zip(values) {
            *code = book.nearest(value * factor);
        }
        return;
    };
    for (code, &value) in out.iter_mut().zip(values) {
        *code = thresholds.count(value * factor);
    }
    for code in out {
        *code = thresholds.order[usize::from(*code)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default of bitsandbytes clamps absmax to 1e-38: zeros stay zeros.
    #[test]
    fn a_block_of_zeros_has_the_code_of_zero() {
        let mut out = [0xff; 4];
        quantize_codebook(Codebook::Nf4, &[0.0, -0.0, 0.0, 0.0], 1.0 / 1e-38, &mut out);
        assert_eq!(out, [7; 4]);
        quantize_codebook(Codebook::BnbFp4, &[0.0; 4], 1.0 / 1e-38, &mut out);
        assert_eq!(out, [0; 4]);
    }

    /// Every 2^12-th pattern and its two neighbors.
    #[test]
    fn slices_encode_as_single_values_do() {
        let mut values = Vec::new();
        for bits in (0..=u32::MAX).step_by(1 << 12) {
            values.extend([bits.wrapping_sub(1), bits, bits + 1].map(f32::from_bits));
        }
        assert_eq!(values.len(), 3 << 20);
        let mut out = vec![0xff; values.len()];
        for &rule in E2M1Rule::ALL {
            encode_e2m1(rule, &values, &mut out);
            for (value, &code) in values.iter().zip(&out) {
                assert_eq!(
                    code,
                    rule.encode(*value),
                    "{rule:?} {:08x}",
                    value.to_bits()
                );
            }
        }
        for &book in Codebook::ALL {
            quantize_codebook(book, &values, 0.37, &mut out);
            for (value, &code) in values.iter().zip(&out) {
                let bits = value.to_bits();
                assert_eq!(code, book.nearest(value * 0.37), "{book:?} {bits:08x}");
            }
        }
    }

    #[test]
    fn the_product_is_f32() {
        let (value, absmax) = (0.3f32, 0.7f32);
        let mut out = [0];
        quantize_codebook(Codebook::Nf4, &[value], 1.0 / absmax, &mut out);
        assert_eq!(out[0], Codebook::Nf4.nearest(value * (1.0 / absmax)));
    }
}
