//! Codes times scale.

/// `out[i] = f32(code - zero) * scale` for one group of integer codes.
///
/// The difference is exact for every `zero`; it is rounded once to F32 (which changes nothing below 2^24) and the product
/// once more.
///
/// `codes`, `out`: the same length. A signed code `q` is stored as `q + 2^(bits - 1)` and read with that `zero`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn dequantize_integer(codes: &[u8], zero: i32, scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one value per code");
    if zero < i32::MIN + 256 {
        // Here alone `code - zero` can leave i32. No real zero point does; a hostile one must not wrap.
        for (value, &code) in out.iter_mut().zip(codes) {
            *value = (i64::from(code) - i64::from(zero)) as f32 * scale;
        }
        return;
    }
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = i32::from(code).wrapping_sub(zero) as f32 * scale;
    }
}

/// `out[i] = table[code] * scale` for one group of minifloat or code book codes.
///
/// `codes`, `out`: the same length. With a `scale` of 1 the values come out unchanged (a NaN stays a NaN).
///
/// # Panics
/// If the lengths differ.
pub fn dequantize_table(codes: &[u8], table: &[f32; 256], scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one value per code");
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = table[usize::from(code)] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_equal_the_definition(
            codes in proptest::collection::vec(any::<u8>(), 0..100),
            zero in prop_oneof![any::<i32>(), -300..300i32, i32::MIN..i32::MIN + 300],
            scale in any::<f32>(),
        ) {
            let mut out = vec![0.0; codes.len()];
            dequantize_integer(&codes, zero, scale, &mut out);
            for (&code, value) in codes.iter().zip(out) {
                let expected = (i64::from(code) - i64::from(zero)) as f32 * scale;
                prop_assert_eq!(expected.to_bits(), value.to_bits());
            }
        }
    }

    /// awq.md §5, run there.
    #[test]
    fn awq_example() {
        let scale = 0.012_298_584;
        let mut out = [0.0; 4];
        for (zero, value) in [
            (1, -0.012_298_584),
            (4, -0.036_895_752),
            (7, -0.061_492_92),
            (10, -0.086_059_57),
        ] {
            let code = [(zero - 1) / 3];
            dequantize_integer(&code, i32::from(zero), scale, &mut out[..1]);
            let rounded = half::f16::from_f32(out[0]).to_f32();
            assert!((rounded - value).abs() < 1e-9, "{rounded} is not {value}");
        }
    }

    #[test]
    fn a_scale_of_one_gives_the_table() {
        let codes: Vec<u8> = (0..=255).collect();
        let table = crate::Minifloat::E4M3.table();
        let mut out = [0.0; 256];
        dequantize_table(&codes, table, 1.0, &mut out);
        for (value, expected) in out.iter().zip(table) {
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan());
        }
    }
}
