//! MXFP4 and NVFP4.

use super::super::float4::{VALUES, half_e4m3, half_e8m0};
use super::super::layout::Block;
use super::max_magnitude;

/// The entry of the code book nearest to `x / scale`, the first of several.
fn nearest(x: f32, scale: f32) -> u8 {
    let mut best = (0, f32::INFINITY);
    for (code, &value) in (0..).zip(&VALUES) {
        let error = (f32::from(value) * scale - x).abs();
        if code == 0 || error < best.1 {
            best = (code, error);
        }
    }
    best.0
}

/// The scale is the power of two of the largest magnitude, less the 2 of the largest E2M1 (OCP's rule).
pub(super) fn mxfp4(x: &[f32], block: &mut Block) {
    let max = max_magnitude(x);
    let exponent = if max > 0.0 {
        log2_f32(max).floor() - 2.0 + 127.0
    } else {
        0.0
    };
    block.scales[0] = i16::from(exponent as u8);
    let scale = half_e8m0(exponent as u8);
    for (code, &x) in block.codes.iter_mut().zip(x) {
        *code = nearest(x, scale);
    }
}

/// The binary logarithm rounded to F32, as `log2f` gives it. The rounding matters: just below a power of two it goes up
/// to the integer.
fn log2_f32(value: f32) -> f32 {
    f64::from(value).log2() as f32
}

/// Per 16 elements the E4M3 that brings the largest magnitude to 6.
pub(super) fn nvfp4(x: &[f32], block: &mut Block) {
    for (group, x) in x.chunks_exact(16).enumerate() {
        let code = e4m3_half_up(max_magnitude(x) / 6.0);
        block.scales[group] = i16::from(code);
        let scale = half_e4m3(code);
        for (code, &x) in block.codes[16 * group..].iter_mut().zip(x) {
            *code = nearest(x, scale);
        }
    }
}

/// `ggml_fp32_to_ue4m3`: the next bit decides, so that ties go up and the bits below it do not count; at most 448.
fn e4m3_half_up(value: f32) -> u8 {
    if value.is_nan() || value <= 0.0 {
        return 0;
    }
    let value = value.min(448.0);
    let bits = value.to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((value * 512.0 + 0.5) as u8).min(7);
    }
    // Rounding the mantissa up to 8 carries into the exponent.
    let code = (exponent << 3) + (bits >> 20 & 7) as i32 + (bits >> 19 & 1) as i32;
    code.min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_codes_survive_and_ties_go_up() {
        for code in 0..0x7f {
            assert_eq!(e4m3_half_up(2.0 * half_e4m3(code)), code);
        }
        assert_eq!(e4m3_half_up(1.0625), 0x39);
        assert_eq!(e4m3_half_up(1e9), 0x7e);
        assert_eq!(e4m3_half_up(f32::NAN), 0);
    }

    #[test]
    fn logarithms_round_as_a_float_does() {
        // 2^10 less one ulp: the logarithm is nearer to 10 than to the float below 10.
        assert_eq!(log2_f32(1_023.999_94), 10.0);
        assert_eq!(log2_f32(0.999_999_94), -8.599_133e-8);
    }
}
