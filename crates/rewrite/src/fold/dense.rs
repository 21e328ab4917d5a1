//! What becomes of tensors that stay dense: norms and biases that are divided, routers whose columns are multiplied. All of it exactly.

use safequant_container::Checkpoint;
use safequant_kernels::{Backend, Float};
use safequant_schemes::scheme::float_of;

use super::pairs::Gain;
use super::refused;
use crate::Error;
use crate::steps::{Step, Work};

/// A dense tensor, read whole.
pub(super) struct Dense {
    float: Float,
    pub(super) values: Vec<f32>,
}

impl Dense {
    /// Reads what a step copies.
    ///
    /// # Errors
    /// [`Error::Fold`] for what is no dense float, or is not copied.
    pub(super) fn read(checkpoint: &Checkpoint, step: &Step) -> Result<Self, Error> {
        let tensor = match step.work {
            Work::Copy => checkpoint.tensor(&step.name),
            Work::Drop
            | Work::Dense(_)
            | Work::Quantize(_)
            | Work::Transcode(_)
            | Work::Content(_) => None,
        };
        let found = tensor.and_then(|tensor| Some((tensor, float_of(tensor.info.dtype)?)));
        let (tensor, float) = found.ok_or_else(|| {
            let reason = "expected a tensor in F32, F16 or BF16 that is copied".to_owned();
            refused(&step.name, reason)
        })?;
        let bytes = tensor.read_all(tensor.info.len_bytes())?;
        let mut values = vec![0.0; bytes.len() / float.size_bytes()];
        (Backend::detect().widen)(float, &bytes, &mut values);
        Ok(Self { float, values })
    }

    fn stored(&self, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let backend = Backend::detect();
        let mut bytes = vec![0; values.len() * self.float.size_bytes()];
        (backend.round)(self.float, values, &mut bytes);
        let mut back = vec![0.0; values.len()];
        (backend.widen)(self.float, &bytes, &mut back);
        (bytes, back)
    }

    /// The norm divided by scales, as it is stored, and the scales that this amounts to: the gain before over the gain after, so that
    /// the rounding of the norm is part of them. A feature whose gain leaves no such number keeps it.
    pub(super) fn divided_gain(&self, gain: Gain, scales: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let of = |weight: f32| match gain {
            Gain::Weight => weight,
            Gain::OnePlusWeight => 1.0 + weight,
        };
        let both = self.values.iter().zip(scales);
        let divided = both.map(|(&weight, &scale)| match gain {
            Gain::Weight => weight / scale,
            // A weight near zero would lose bits beside the one.
            Gain::OnePlusWeight if is_one(scale) => weight,
            Gain::OnePlusWeight => of(weight) / scale - 1.0,
        });
        let divided: Vec<f32> = divided.collect();
        let (_, back) = self.stored(&divided);
        let ratio = |(before, after): (&f32, &f32)| {
            let ratio = if before.to_bits() == after.to_bits() {
                1.0
            } else {
                of(*before) / of(*after)
            };
            Some(ratio).filter(|r| (LEAST..=LEAST.recip()).contains(r))
        };
        let ratios: Vec<Option<f32>> = self.values.iter().zip(&back).map(ratio).collect();
        let kept = ratios.iter().zip(self.values.iter().zip(&back));
        let kept: Vec<f32> = kept
            .map(|(ratio, (before, after))| if ratio.is_some() { *after } else { *before })
            .collect();
        let scales = ratios.iter().map(|ratio| ratio.unwrap_or(1.0)).collect();
        (self.stored(&kept).0, scales)
    }

    /// Values times powers of two, `scales` repeated row after row; and for each scale whether all products are exact.
    pub(super) fn multiplied(&self, scales: &[f32]) -> (Vec<u8>, Vec<bool>) {
        let width = scales.len().max(1);
        let mut products = self.values.clone();
        for row in products.chunks_mut(width) {
            let both = row.iter_mut().zip(scales);
            both.for_each(|(value, scale)| *value *= scale);
        }
        let (bytes, back) = self.stored(&products);
        let mut exact = vec![true; scales.len()];
        for (before, after) in self.values.chunks(width).zip(back.chunks(width)) {
            for (at, (before, after)) in before.iter().zip(after).enumerate() {
                let (Some(exact), Some(scale)) = (exact.get_mut(at), scales.get(at)) else {
                    continue;
                };
                *exact &= (after / scale).to_bits() == before.to_bits();
            }
        }
        (bytes, exact)
    }
}

fn is_one(scale: f32) -> bool {
    scale.to_bits() == 1.0_f32.to_bits()
}

/// The least ratio of gains; scales are between 1/16 and 16, and rounding adds little to that.
const LEAST: f32 = 1.0 / 32.0;

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact by construction")]
mod tests {
    use super::*;

    fn dense(float: Float, values: &[f32]) -> Dense {
        let values = values.to_vec();
        let (_, values) = Dense { float, values }.stored_values();
        Dense { float, values }
    }

    impl Dense {
        fn stored_values(&self) -> (Vec<u8>, Vec<f32>) {
            self.stored(&self.values)
        }
    }

    fn back(float: Float, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / float.size_bytes()];
        (Backend::detect().widen)(float, bytes, &mut values);
        values
    }

    #[test]
    fn the_stored_gain_times_the_scale_is_the_gain_before() {
        let scales = [1.0, 0.3, 1.7, 15.0, 0.0625, 2.0];
        for float in [Float::Bf16, Float::F16, Float::F32] {
            for gain in [Gain::Weight, Gain::OnePlusWeight] {
                let norm = dense(float, &[0.9, -0.4, 1.3, 0.02, 2.5, 0.0]);
                let (bytes, actual) = norm.divided_gain(gain, &scales);
                let after = back(float, &bytes);
                let of = |w: f32| match gain {
                    Gain::Weight => w,
                    Gain::OnePlusWeight => 1.0 + w,
                };
                for (i, (before, after)) in norm.values.iter().zip(&after).enumerate() {
                    approx::assert_relative_eq!(
                        of(*after) * actual[i],
                        of(*before),
                        max_relative = 1e-6
                    );
                    // A scale is never far from what was asked for, or is none.
                    let near = (actual[i] / scales[i] - 1.0).abs() < 0.05;
                    assert!(
                        near || actual[i] == 1.0,
                        "{float:?} {gain:?} {i}: {actual:?}"
                    );
                }
                assert_eq!(actual[0], 1.0);
            }
        }
    }

    #[test]
    fn gains_that_cannot_be_divided_stay() {
        // 1e-7 is a subnormal number of F16: a sixteenth of it is zero.
        let norm = dense(Float::F16, &[1e-7, 0.0, -1.0]);
        let (bytes, actual) = norm.divided_gain(Gain::Weight, &[16.0, 16.0, 16.0]);
        assert_eq!(actual, vec![1.0, 1.0, 16.0]);
        assert_eq!(back(Float::F16, &bytes)[..2], norm.values[..2]);
        // A gain of 1 + (-1) = 0 stays zero.
        let norm = dense(Float::Bf16, &[-1.0]);
        let (bytes, actual) = norm.divided_gain(Gain::OnePlusWeight, &[3.0]);
        assert_eq!((back(Float::Bf16, &bytes), actual), (vec![-1.0], vec![1.0]));
    }

    #[test]
    fn what_a_power_of_two_would_round_is_told() {
        let router = dense(Float::F16, &[1.0, 6e-8, 0.5, 1e-7]);
        let (bytes, exact) = router.multiplied(&[4.0, 0.25]);
        assert_eq!(exact, vec![true, false]);
        assert_eq!(back(Float::F16, &bytes)[..1], [4.0]);
    }
}
