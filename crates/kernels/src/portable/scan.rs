//! One pass over values.

/// The quiet NaN that every scan returns, whatever NaN it met.
const NAN: f32 = f32::from_bits(0x7fc0_0000);
/// Independent minima and maxima, so that the order of comparing is not a chain of one per value.
const LANES: usize = 16;

/// Smallest and largest value of a slice, 0 and 0 for an empty one; NaN and NaN if any value is NaN.
///
/// A zero comes out as plus zero: which of the two signs is met first would depend on the vector width.
pub fn min_max(values: &[f32]) -> (f32, f32) {
    let Some(&first) = values.first() else {
        return (0.0, 0.0);
    };
    let mut low = [first; LANES];
    let mut high = [first; LANES];
    let mut nan = [0u32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut last = [first; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter().chain([&last]) {
        for lane in 0..LANES {
            let value = chunk[lane];
            low[lane] = if value < low[lane] { value } else { low[lane] };
            high[lane] = if value > high[lane] {
                value
            } else {
                high[lane]
            };
            nan[lane] |= u32::from(value.is_nan());
        }
    }
    if nan.iter().any(|&n| n != 0) {
        return (NAN, NAN);
    }
    let low = low.iter().fold(first, |a, &b| if b < a { b } else { a });
    let high = high.iter().fold(first, |a, &b| if b > a { b } else { a });
    (low + 0.0, high + 0.0)
}

/// Largest magnitude of a slice, 0 for an empty one; infinity counts; NaN if any value is NaN.
pub fn absmax(values: &[f32]) -> f32 {
    // Magnitudes of floats are ordered as their bits are, NaN above infinity.
    let magnitude = |value: f32| (value.to_bits() & 0x7fff_ffff) as i32;
    let mut largest = [0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(magnitude(chunk[lane]));
        }
    }
    let bits = largest
        .into_iter()
        .chain(rest.iter().map(|&v| magnitude(v)))
        .max()
        .unwrap_or(0);
    let value = f32::from_bits(bits as u32);
    if value.is_nan() { NAN } else { value }
}

/// Index of the first value that is NaN or infinite.
#[inline(always)]
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const BLOCK: usize = 256;
    let is_bad = |value: &f32| value.to_bits() & 0x7f80_0000 == 0x7f80_0000;
    values.chunks(BLOCK).enumerate().find_map(|(i, block)| {
        // The fold has no early exit and is vectorized; the search runs at most once.
        let any = block.iter().fold(false, |any, value| any | is_bad(value));
        any.then(|| block.iter().position(is_bad))
            .flatten()
            .map(|at| i * BLOCK + at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn floats() -> impl Strategy<Value = Vec<f32>> {
        let finite = prop_oneof![8 => -1e3f32..1e3, 1 => Just(-0.0), 1 => Just(0.0)];
        let value = prop_oneof![200 => finite, 1 => any::<u32>().prop_map(f32::from_bits)];
        proptest::collection::vec(value, 0..600)
    }

    proptest! {
        #[test]
        fn min_max_equals_the_definition(values in floats()) {
            let (low, high) = min_max(&values);
            if values.iter().any(|v| v.is_nan()) {
                prop_assert_eq!([low.to_bits(), high.to_bits()], [0x7fc0_0000; 2]);
            } else if !values.is_empty() {
                prop_assert_eq!(low, values.iter().copied().fold(f32::INFINITY, f32::min));
                prop_assert_eq!(high, values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                prop_assert!(!(low == 0.0 && low.is_sign_negative()));
                prop_assert!(!(high == 0.0 && high.is_sign_negative()));
            }
        }

        #[test]
        fn absmax_equals_the_definition(values in floats()) {
            let largest = absmax(&values);
            if values.iter().any(|v| v.is_nan()) {
                prop_assert_eq!(largest.to_bits(), 0x7fc0_0000);
            } else {
                prop_assert_eq!(largest, values.iter().map(|v| v.abs()).fold(0.0, f32::max));
            }
        }

        #[test]
        fn first_non_finite_equals_the_definition(values in floats()) {
            prop_assert_eq!(first_non_finite(&values), values.iter().position(|v| !v.is_finite()));
        }
    }

    #[test]
    fn an_empty_slice_has_zeros() {
        assert_eq!(
            (min_max(&[]), absmax(&[]), first_non_finite(&[])),
            ((0.0, 0.0), 0.0, None)
        );
    }
}
