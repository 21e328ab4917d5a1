//! What quantizing rows would lose: for choosing among schemes, with nothing written.

use std::ops::Range;

use safequant_quantize::Statistics;
use safequant_quantize::report::dequantize_tile;

use super::StepContext;
use crate::Error;
use crate::scratch::Scratch;
use crate::steps::Work;

impl StepContext<'_> {
    /// For each row of a tile the sums of squares of its weights and of what they would be off by, each weighted by its column.
    pub(crate) fn lost(
        &self,
        span: &Range<u64>,
        statistics: Option<&Statistics>,
        weights: &[f32],
        scratch: &mut Scratch,
    ) -> Result<Vec<(f64, f64)>, Error> {
        let mut lost = Vec::new();
        let Work::Quantize(work) = &self.step.work else {
            return Ok(lost);
        };
        let quantizer = work.matrix(work.matrix_of(span.start)).method.0;
        for run in self.step.runs(span) {
            let values = self.rows(work, &run, scratch)?;
            let rows = self.as_rows(work, &run, values)?;
            let tile = quantizer.quantize(&work.target, rows, statistics, self.backend);
            let tile = tile.map_err(|e| self.refused(e))?;
            let back = dequantize_tile(&work.layout, &tile, self.backend);
            let back = back.map_err(|e| self.refused(e))?;
            let values = values.widened(self.backend);
            let width = rows.in_features.max(1);
            let pairs = values.chunks(width).zip(back.chunks(width));
            lost.extend(pairs.map(|(row, back)| sums(row, back, weights)));
        }
        Ok(lost)
    }
}

/// Values that are not finite (clamped ones) are left out.
fn sums(row: &[f32], back: &[f32], weights: &[f32]) -> (f64, f64) {
    let (mut signal, mut noise) = (0.0, 0.0);
    let values = row.iter().zip(back).zip(weights);
    for ((value, back), weight) in values.filter(|((value, _), _)| value.is_finite()) {
        let (value, weight) = (f64::from(*value), f64::from(*weight));
        signal += weight * value * value;
        noise += weight * (value - f64::from(*back)).powi(2);
    }
    (signal, noise)
}
