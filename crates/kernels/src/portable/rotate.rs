//! `ConvRot`: an orthogonal rotation of the columns of a row, in blocks (comfyui.md §3.2).
//!
//! ```text
//! y[i] = sum over j of x[j] * H[i, j]      H[i, j] = G^(-1/2) * (-1)^c
//! c = number of base-4 digit positions d with  i_d XOR j_d = 3
//! ```
//!
//! H is the Kronecker power of a 4 x 4 matrix whose anti-diagonal is -1 and whose other entries are 1: symmetric, and its own
//! inverse. It is *not* a Sylvester or Walsh matrix. One digit is a butterfly of four values,
//!
//! ```text
//! y[a] = ((x[0] + x[1]) + (x[2] + x[3])) - 2 * x[3 - a]
//! ```
//!
//! and G^(-1/2) is a power of two, so only the sums round. The library sums in an unspecified order; the functions here that
//! end in one rounding give the value that no order of summation changes. Digits are taken lowest first.

use crate::Float;

/// Whether blocks of this many columns can be rotated: a power of 4 from 4 to 65536.
pub const fn is_group(group: usize) -> bool {
    matches!(group.checked_ilog2(), Some(log) if log >= 2 && log <= 16 && log.is_multiple_of(2))
        && group.is_power_of_two()
}

/// Rotates each block of `group` values in place, in F32.
///
/// # Panics
/// If `group` is not a power of 4 from 4 to 65536, or does not divide the length.
#[inline(always)]
pub fn rotate(values: &mut [f32], group: usize) {
    check(values.len(), values.len(), group);
    let factor = 1.0 / (group as f32).sqrt();
    for block in values.chunks_exact_mut(group) {
        butterflies(block, |[a, b, c, d]| {
            let sum = (a + b) + (c + d);
            [sum - 2.0 * d, sum - 2.0 * c, sum - 2.0 * b, sum - 2.0 * a]
        });
        for value in block {
            *value *= factor;
        }
    }
}

/// Rotates each block of `group` values with sums in F64 and rounds each result once to `float`.
///
/// The sums are exact, hence independent of any order, when the values are BF16 or F16 and their nonzero magnitudes in a
/// block span less than 2^(52 - 8 - log2(group)) (BF16) or 2^(52 - 11 - log2(group)) (F16).
///
/// `values`, `out`: the same length.
///
/// # Panics
/// If the lengths differ, `group` is not a power of 4 from 4 to 65536, or does not divide the length.
#[inline(always)]
pub fn rotate_rounded(float: Float, values: &[f32], group: usize, out: &mut [f32]) {
    check(values.len(), out.len(), group);
    let factor = 1.0 / (group as f64).sqrt();
    let mut block = vec![0.0; group];
    for (values, out) in values.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        for (wide, &value) in block.iter_mut().zip(values) {
            *wide = f64::from(value);
        }
        butterflies(&mut block, |[a, b, c, d]| {
            let sum = (a + b) + (c + d);
            [sum - 2.0 * d, sum - 2.0 * c, sum - 2.0 * b, sum - 2.0 * a]
        });
        for (out, &wide) in out.iter_mut().zip(&block) {
            *out = float.nearest_f64(wide * factor);
        }
    }
}

/// Rotates each block of `group` signed codes as integers, then scales: one rounding per value, in F32.
///
/// `out[i] = scale * (sum of ±codes) / sqrt(group)`. `codes`, `out`: the same length; `scale`: of this row.
///
/// # Panics
/// If the lengths differ, `group` is not a power of 4 from 4 to 65536, or does not divide the length.
#[inline(always)]
pub fn rotate_codes(codes: &[i8], scale: f32, group: usize, out: &mut [f32]) {
    check(codes.len(), out.len(), group);
    let factor = 1.0 / (group as f32).sqrt();
    let mut block = vec![0i32; group];
    for (codes, out) in codes.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        for (wide, &code) in block.iter_mut().zip(codes) {
            *wide = i32::from(code);
        }
        butterflies(&mut block, |[a, b, c, d]| {
            let sum = a + b + c + d;
            [sum - 2 * d, sum - 2 * c, sum - 2 * b, sum - 2 * a]
        });
        for (out, &sum) in out.iter_mut().zip(&block) {
            // The sum is at most 2^7 * 2^16 and the factor a power of two: both steps before the scale are exact.
            *out = sum as f32 * factor * scale;
        }
    }
}

/// Applies a butterfly of four along each base-4 digit of the index, lowest digit first.
#[inline(always)]
fn butterflies<T: Copy>(block: &mut [T], butterfly: impl Fn([T; 4]) -> [T; 4]) {
    let mut stride = 1;
    while stride < block.len() {
        for fours in block.chunks_exact_mut(4 * stride) {
            for i in 0..stride {
                let at = [0, 1, 2, 3].map(|digit| digit * stride + i);
                let values = butterfly(at.map(|index| fours[index]));
                for (index, value) in at.into_iter().zip(values) {
                    fours[index] = value;
                }
            }
        }
        stride *= 4;
    }
}

fn check(values: usize, out: usize, group: usize) {
    assert_eq!(values, out, "one result per value");
    assert!(
        is_group(group),
        "groups of {group} columns cannot be rotated"
    );
    assert!(
        values.is_multiple_of(group),
        "{values} values in groups of {group}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, as a sum in order of the columns.
    fn naive(values: &[f64]) -> Vec<f64> {
        let group = values.len();
        let entry = |i: usize, j: usize| {
            let digits = (0..8).filter(|d| (i ^ j) >> (2 * d) & 3 == 3).count();
            if digits % 2 == 0 { 1.0 } else { -1.0 }
        };
        (0..group)
            .map(|i| {
                (0..group).map(|j| values[j] * entry(i, j)).sum::<f64>() / (group as f64).sqrt()
            })
            .collect()
    }

    fn groups() -> impl Strategy<Value = usize> {
        proptest::sample::select(vec![4usize, 16, 64, 256])
    }

    /// comfyui.md §11, run there.
    #[test]
    fn comfy_kitchen_examples() {
        let mut values = [3.0, -1.0, 2.0, 0.5];
        rotate(&mut values, 4);
        assert_eq!(values, [1.75, 0.25, 3.25, -0.75]);
        let mut out = [0.0; 4];
        rotate_codes(&[68, 10, 127, -29], 0.025_590_552, 4, &mut out);
        // The library rounds each product and sum: at most 8e-7 of the largest value apart (comfyui.md §3.2).
        let library = [2.994_094_4, -0.998_031_5, 1.996_063, 0.511_811];
        for (found, expected) in out.iter().zip(library) {
            assert!((found - expected).abs() <= 8e-7 * 2.994_094_4, "{out:?}");
        }
        assert_eq!(out[0], (117.0 * f64::from(0.025_590_552_f32)) as f32);
    }

    #[test]
    fn groups_are_powers_of_four() {
        let valid: Vec<usize> = (0..=300).filter(|&group| is_group(group)).collect();
        assert_eq!(valid, [4, 16, 64, 256]);
        assert!(is_group(65536) && !is_group(1 << 17) && !is_group(1 << 18));
    }

    #[test]
    #[should_panic(expected = "groups of 8 columns cannot be rotated")]
    fn a_wrong_group_panics() {
        rotate(&mut [0.0; 8], 8);
    }

    proptest! {
        #[test]
        fn integers_equal_the_definition(
            group in groups(),
            bytes in proptest::collection::vec(any::<i8>(), 512),
            scale in 1e-4f32..1.0,
        ) {
            let mut out = vec![0.0; bytes.len()];
            rotate_codes(&bytes, scale, group, &mut out);
            for (codes, out) in bytes.chunks(group).zip(out.chunks(group)) {
                let wide: Vec<f64> = codes.iter().map(|&code| f64::from(code)).collect();
                for (found, exact) in out.iter().zip(naive(&wide)) {
                    prop_assert_eq!(*found, (exact * f64::from(scale)) as f32);
                }
            }
        }

        #[test]
        fn rounded_equals_the_definition(
            float in proptest::sample::select(Float::ALL),
            group in groups(),
            values in proptest::collection::vec(-2f32..2.0, 256),
        ) {
            // A grid of 2^-10: every sum is exact in F64, so the naive order gives the same.
            let values: Vec<f32> = values.iter().map(|v| (v * 1024.0).round() / 1024.0).collect();
            let mut out = vec![0.0; values.len()];
            rotate_rounded(float, &values, group, &mut out);
            for (values, out) in values.chunks(group).zip(out.chunks(group)) {
                let wide: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
                for (found, exact) in out.iter().zip(naive(&wide)) {
                    prop_assert_eq!(*found, float.nearest(exact as f32));
                }
            }
        }

        #[test]
        fn twice_is_the_identity(group in groups(), values in proptest::collection::vec(-2f32..2.0, 256)) {
            let mut twice = values.clone();
            rotate(&mut twice, group);
            let once = twice.clone();
            rotate(&mut twice, group);
            for (found, value) in twice.iter().zip(&values) {
                prop_assert!((found - value).abs() < 1e-5);
            }
            for (values, once) in values.chunks(group).zip(once.chunks(group)) {
                let wide: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
                for (found, exact) in once.iter().zip(naive(&wide)) {
                    prop_assert!((f64::from(*found) - exact).abs() < 1e-5);
                }
            }
        }
    }
}
