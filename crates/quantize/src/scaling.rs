//! Scaling of input features (AWQ, arXiv 2306.00978): columns that see large inputs are multiplied by a scale before they are quantized, and
//! whatever makes those inputs is divided by it. `(W S) (S^-1 x) = W x`, but the errors of rounding `W S` weigh less where it matters.
//!
//! Candidates follow `AutoAWQ`'s `_compute_best_scale`: powers of the mean magnitude of each input, normalized so that the smallest and the largest
//! scale lie on either side of 1.

use safequant_kernels::{Backend, Matrix, MatrixMut, Product, Sign};

use crate::{Inputs, SecondMoment};

/// Candidates of exponents: `step / STEPS` for each step below it, of which the first, 0, is no scaling.
pub const STEPS: u32 = 20;

/// The largest scale; its inverse is the smallest. Beyond it scales that are stored as F16 come near to the end of their range.
const LARGEST: f64 = 16.0;

/// What columns are multiplied by at one step, `[K]`, from the mean magnitude of each input feature. Features that were never seen stay as they
/// are. Scales have the eight significant bits of BF16, which is more than the choice is worth, so that a last bit of a power does not tell two
/// machines apart.
pub fn scales(mean_abs: &[f64], step: u32) -> Vec<f32> {
    let exponent = f64::from(step) / f64::from(STEPS);
    let is_seen = |m: &f64| m.is_finite() && *m > 0.0;
    let raw: Vec<Option<f64>> = mean_abs
        .iter()
        .map(|m| is_seen(m).then(|| m.powf(exponent)))
        .collect();
    let seen = || raw.iter().flatten().copied();
    let (least, most) = (
        seen().fold(f64::INFINITY, f64::min),
        seen().fold(0.0, f64::max),
    );
    let middle = (least * most).sqrt();
    let scale = |raw: &Option<f64>| {
        let scale = raw.map_or(1.0, |raw| raw / middle);
        if !scale.is_finite() {
            return 1.0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a number between 1/16 and 16"
        )]
        let scale = scale.clamp(LARGEST.recip(), LARGEST) as f32;
        f32::from_bits(scale.to_bits() & 0xffff_0000)
    };
    raw.iter().map(scale).collect()
}

/// The power of two that is nearest to a scale, by ratio: multiplying with it rounds nothing.
pub fn power_of_two(scale: f32) -> f32 {
    /// The mantissa of the square root of two.
    const MIDDLE: u32 = 0x0035_04f3;
    const MANTISSA: u32 = 0x007f_ffff;
    let bits = scale.to_bits();
    let up = u32::from(bits & MANTISSA > MIDDLE);
    f32::from_bits(((bits >> 23) + up) << 23)
}

/// Scales as powers of two, from 1 to 16: a common factor changes nothing about what is lost, and from the least scale on every power can be
/// reached, while from the middle on both ends would leave 1 at once.
pub fn powers_of_two(scales: &mut [f32]) {
    #[expect(clippy::cast_possible_truncation, reason = "a small power of two")]
    const MOST: f32 = LARGEST as f32;
    let least = scales.iter().copied().fold(f32::INFINITY, f32::min);
    for scale in scales {
        *scale = power_of_two((*scale / least).min(MOST));
    }
}

/// What is known of inputs that are divided by scales: their mean squares.
pub fn scaled_inputs(inputs: &Inputs, scales: &[f32]) -> Inputs {
    let n = inputs.in_features;
    let diagonal: Vec<f32> = match &inputs.second_moment {
        SecondMoment::Diagonal(values) => values.clone(),
        SecondMoment::Full(values) => values
            .iter()
            .step_by(n.saturating_add(1))
            .copied()
            .collect(),
    };
    let divided = diagonal.iter().zip(scales).map(|(square, scale)| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a number of F32, times at most 256"
        )]
        let divided = (f64::from(*square) / f64::from(*scale).powi(2)) as f32;
        divided
    });
    Inputs {
        in_features: n,
        token_count: inputs.token_count,
        second_moment: SecondMoment::Diagonal(divided.collect()),
        mean: None,
        cross: None,
    }
}

/// `d H d^T` of each row of errors, `[rows, in_features]`; with the diagonal of `H` where there is no more.
pub fn output_noise(errors: &[f32], inputs: &Inputs, backend: &'static Backend) -> Vec<f64> {
    let n = inputs.in_features.max(1);
    let rows = errors.chunks_exact(n);
    match &inputs.second_moment {
        SecondMoment::Diagonal(diagonal) => {
            let weighed = |row: &[f32]| -> f64 {
                let terms = row.iter().zip(diagonal);
                terms
                    .map(|(d, h)| f64::from(*d).powi(2) * f64::from(*h))
                    .sum()
            };
            rows.map(weighed).collect()
        }
        SecondMoment::Full(moment) => {
            let mut sums = vec![0.0; rows.len()];
            if sums.is_empty() {
                return sums;
            }
            let (mut outputs, mut packed) = (Vec::new(), Vec::new());
            for start in (0..n).step_by(BLOCK) {
                let scratch = (&mut outputs, &mut packed);
                add_block(&mut sums, (errors, moment), (n, start), scratch, backend);
            }
            sums.into_iter().map(|sum| sum.max(0.0)).collect()
        }
    }
}

/// Columns of `H` that are multiplied at once.
const BLOCK: usize = 128;

/// The share of some columns of `H` in `e H e^T`, for each row `e`. What stands above the diagonal counts twice: `H` is symmetric.
fn add_block(
    sums: &mut [f64],
    (errors, moment): (&[f32], &[f32]),
    (n, start): (usize, usize),
    (outputs, packed): (&mut Vec<f32>, &mut Vec<f32>),
    backend: &'static Backend,
) {
    let size = BLOCK.min(n - start);
    let n_rows = sums.len();
    outputs.clear();
    outputs.resize(n_rows * size, 0.0);
    let mut add = |from: usize, depth: usize, outputs: &mut [f32]| {
        (backend.add_product)(Product {
            c: MatrixMut {
                values: outputs,
                shape: (n_rows, size),
                row_stride: size,
            },
            a: Matrix::of_rows(&errors[from..], (n_rows, depth), n),
            b: Matrix::of_rows(&moment[from * n + start..], (depth, size), n),
            sign: Sign::Plus,
            packed,
        });
    };
    add(0, start, outputs);
    for output in outputs.iter_mut() {
        *output *= 2.0;
    }
    add(start, size, outputs);
    let rows = errors.chunks_exact(n).zip(outputs.chunks_exact(size));
    for (sum, (errors, outputs)) in sums.iter_mut().zip(rows) {
        let terms = errors[start..].iter().zip(outputs);
        *sum += terms
            .map(|(error, output)| f64::from(*error) * f64::from(*output))
            .sum::<f64>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_no_scaling_and_the_others_straddle_one() {
        let mean_abs = [0.5, 2.0, 0.0, 8.0, f64::NAN];
        assert_eq!(scales(&mean_abs, 0), vec![1.0; 5]);
        for step in 1..STEPS {
            let found = scales(&mean_abs, step);
            assert!(found[0] < 1.0 && found[3] > 1.0, "{step}: {found:?}");
            assert_eq!(
                (found[2].to_bits(), found[4].to_bits()),
                (1.0_f32.to_bits(), 1.0_f32.to_bits())
            );
            // 2 is the middle of 0.5 and 8.
            assert!((found[1] - 1.0).abs() < 0.01, "{step}: {found:?}");
            assert!(
                (found[0] * found[3] - 1.0).abs() < 0.02,
                "{step}: {found:?}"
            );
        }
        let far = scales(&[1e-30, 1e30], 19);
        assert_eq!(far, vec![0.0625, 16.0]);
        assert_eq!(scales(&[0.0, 0.0], 7), vec![1.0, 1.0]);
    }

    #[test]
    fn powers_of_two_are_the_nearest_by_ratio() {
        for (scale, power) in [
            (1.0, 1.0),
            (1.41, 1.0),
            (1.42, 2.0),
            (0.7, 0.5),
            (0.71, 1.0),
            (16.0, 16.0),
            (0.0625, 0.0625),
        ] {
            assert_eq!(
                power_of_two(scale).to_bits(),
                f32::to_bits(power),
                "{scale}"
            );
        }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "powers of two are exact")]
    fn powers_begin_at_the_least_scale() {
        let mut scales = [0.7, 1.4, 2.9, 0.8, 15.0];
        powers_of_two(&mut scales);
        assert_eq!(scales, [1.0, 2.0, 4.0, 1.0, 16.0]);
    }

    #[test]
    fn noise_on_the_whole_moment_is_that_of_the_definition() {
        let inputs = |second_moment| Inputs {
            in_features: 2,
            token_count: Some(3),
            second_moment,
            mean: None,
            cross: None,
        };
        let errors = [1.0, 2.0, -1.0, 0.5];
        let full = inputs(SecondMoment::Full(vec![2.0, 0.5, 0.5, 4.0]));
        let backend = Backend::detect();
        let found = output_noise(&errors, &full, backend);
        assert_eq!(found, vec![2.0 + 2.0 + 16.0, 2.0 - 0.5 + 1.0]);
        let diagonal = inputs(SecondMoment::Diagonal(vec![2.0, 4.0]));
        assert_eq!(output_noise(&errors, &diagonal, backend), vec![18.0, 3.0]);
        let scaled = scaled_inputs(&full, &[2.0, 0.5]);
        assert_eq!(
            scaled.second_moment,
            SecondMoment::Diagonal(vec![0.5, 16.0])
        );
    }
}
