//! From the stored matrix to the weight: rotations, factors per input feature, low-rank products.

use safequant_kernels::Float;

use super::{Dequantizer, Prepared, Row, ScaleAt, length};
use crate::{Arithmetic, ColumnFactor, Rotation};

impl Dequantizer {
    /// From the stored matrix to the weight.
    pub(super) fn undo_basis(&self, prepared: &Prepared<'_>, row: &Row, values: &mut [f32]) {
        if let Rotation::ConvRot { size } = self.scheme.basis.rotation {
            let result = prepared.row.unwrap_or(Float::F32);
            round_all(prepared.row, values);
            let rotated = values.to_vec();
            (self.backend.rotate_rounded)(result, &rotated, length(size), values);
            if self.scale_at == ScaleAt::Rotated {
                let scale = prepared.factors[row.scale];
                for value in values.iter_mut() {
                    *value *= scale;
                }
            }
        }
        let rank = usize::try_from(self.scheme.basis.rank).unwrap_or(0);
        let is_probed = matches!(self.scheme.arithmetic, Arithmetic::Probed(_));
        match (self.scheme.basis.columns, prepared.row) {
            (ColumnFactor::None | ColumnFactor::Inputs, _) if rank == 0 => {}
            (_, Some(float)) if is_probed => self.probe_row(float, row, rank, values),
            (columns, _) => {
                round_all(prepared.row, values);
                for (k, value) in values.iter_mut().enumerate() {
                    let wide = f64::from(*value);
                    let wide = match columns {
                        ColumnFactor::None | ColumnFactor::Inputs => wide,
                        ColumnFactor::Multiply => wide * f64::from(self.extras.columns[k]),
                        ColumnFactor::Divide => wide / f64::from(self.extras.columns[k]),
                    };
                    // Nothing is added where there is nothing: a zero keeps its sign.
                    *value = Float::F32.nearest_f64(match rank {
                        0 => wide,
                        _ => wide + self.low_rank(row, rank, k),
                    });
                }
            }
        }
    }

    /// The row's entry of the low-rank product for one input feature; its products are exact.
    fn low_rank(&self, row: &Row, rank: usize, column: usize) -> f64 {
        if rank == 0 {
            return 0.0;
        }
        let up = &self.extras.up[row.local * rank..(row.local + 1) * rank];
        let down = &self.extras.down[column * rank..(column + 1) * rank];
        let products = up.iter().zip(down);
        products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    /// [`Arithmetic::Probed`] in its own dtype.
    fn probe_row(&self, float: Float, row: &Row, rank: usize, values: &mut [f32]) {
        for (k, value) in values.iter_mut().enumerate() {
            let product = float.nearest(float.nearest(*value) * self.probes[k]);
            let added = float.nearest(Float::F32.nearest_f64(self.low_rank(row, rank, k)));
            *value = product + added;
        }
    }
}

/// What 1 becomes that is divided by `factor` and goes through a quantizer of four bits on its own, every step rounded.
pub(super) fn probe(float: Float, factor: f32) -> f32 {
    let round = |value: f32| float.nearest(value);
    let smooth = round(1.0 / factor);
    let absmax = smooth.abs().max(round(1e-10));
    let scale = round(absmax / 7.0);
    let code = round(smooth / scale).round_ties_even().clamp(-7.0, 7.0);
    round(code * scale)
}

/// Rounds all values, where there is something to round to.
fn round_all(float: Option<Float>, values: &mut [f32]) {
    if let Some(float) = float {
        for value in values {
            *value = float.nearest(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// comfy-kitchen 0.2.40: `quantize_svdquant_w4a4(eye(64), ..)` in BF16.
    #[test]
    fn a_probe_is_one_in_seven_steps() {
        assert_eq!(probe(Float::F32, 0.5).to_bits(), 2.0_f32.to_bits());
        assert_eq!(probe(Float::Bf16, -0.5).to_bits(), (-2.0_f32).to_bits());
        let third = probe(Float::Bf16, 3.0);
        assert!((third - 1.0 / 3.0).abs() < 1e-3);
    }
}
