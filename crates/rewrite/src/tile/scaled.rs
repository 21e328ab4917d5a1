//! What scaled rows would be off by: for choosing scales, with nothing written.

use std::ops::Range;

use safequant_kernels::Floats;
use safequant_quantize::Statistics;
use safequant_quantize::report::dequantize_tile;

use super::StepContext;
use crate::Error;
use crate::scratch::Scratch;
use crate::steps::QuantizeWork;

impl StepContext<'_> {
    /// Rows of a weight, in F32.
    pub(crate) fn weights(
        &self,
        work: &QuantizeWork,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>, Error> {
        let values = self.rows(work, run, scratch)?;
        Ok(values.widened(self.backend).into_owned())
    }

    /// `W - Q(W S) S^-1` of some rows.
    pub(crate) fn scaled_errors(
        &self,
        work: &QuantizeWork,
        run: &Range<u64>,
        (values, scales): (&[f32], &[f32]),
        statistics: &Statistics,
    ) -> Result<Vec<f32>, Error> {
        let width = scales.len().max(1);
        let mut scaled = values.to_vec();
        for row in scaled.chunks_mut(width) {
            let both = row.iter_mut().zip(scales);
            both.for_each(|(value, scale)| *value *= scale);
        }
        let rows = self.as_rows(work, run, Floats::F32(&scaled))?;
        let quantizer = work.matrix(0).method.0;
        let tile = quantizer.quantize(&work.target, rows, Some(statistics), self.backend);
        let tile = tile.map_err(|e| self.refused(e))?;
        let back = dequantize_tile(&work.layout, &tile, self.backend);
        let back = back.map_err(|e| self.refused(e))?;
        drop(scaled);
        let mut errors = values.to_vec();
        for (row, back) in errors.chunks_mut(width).zip(back.chunks(width)) {
            let all = row.iter_mut().zip(back).zip(scales);
            all.for_each(|((value, back), scale)| *value -= back / scale);
        }
        Ok(errors)
    }
}
