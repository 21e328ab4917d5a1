//! Codes of tables of sixteen values, for slices: what the scalar encoders define, one value after the other.

use crate::{Codebook, E2M1Rule};

/// E2M1 codes of `values` (no scaling): [`E2M1Rule::encode`] of each.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn encode_e2m1(rule: E2M1Rule, values: &[f32], out: &mut [u8]) {
    assert_eq!(values.len(), out.len(), "one code per value");
    for (code, &value) in out.iter_mut().zip(values) {
        *code = rule.encode(value);
    }
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
    for (code, &value) in out.iter_mut().zip(values) {
        *code = book.nearest(value * factor);
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

    #[test]
    fn the_product_is_f32() {
        let (value, absmax) = (0.3f32, 0.7f32);
        let mut out = [0];
        quantize_codebook(Codebook::Nf4, &[value], 1.0 / absmax, &mut out);
        assert_eq!(out[0], Codebook::Nf4.nearest(value * (1.0 / absmax)));
    }
}
