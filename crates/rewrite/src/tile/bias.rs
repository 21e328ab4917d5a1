//! Biases that make up for what the mean input loses: `b + (W - Q) mean(x)`.

use std::ops::Range;

use safequant_kernels::CodeForm;
use safequant_quantize::Rows;
use safequant_quantize::report::stored_row_shifts;
use safequant_schemes::CodeTile;

use super::{Done, StepContext};
use crate::Error;
use crate::steps::{BiasWork, QuantizeWork};

impl StepContext<'_> {
    /// Writes the biases of some rows. The losses of their outputs, which were those about the mean, become those of the outputs.
    pub(super) fn correct_bias(
        &self,
        (work, bias): (&QuantizeWork, &BiasWork),
        (rows, tile, codes): (&Rows<'_>, &CodeTile, (&[u8], CodeForm)),
        run: &Range<u64>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let mean = &bias.mean;
        let shifts = stored_row_shifts(&work.layout, rows, (tile, codes), mean, self.backend);
        let shifts = shifts.map_err(|e| self.refused(e))?;
        let size = bias.float.size_bytes();
        let mut bytes = vec![0; shifts.len() * size];
        let at = run.start * size as u64;
        if let Some(stored) = self.checkpoint.tensor(&bias.name) {
            stored.read_exact_at(at, &mut bytes)?;
        }
        let mut had = vec![0.0; shifts.len()];
        (self.backend.widen)(bias.float, &bytes, &mut had);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounded to what the bias is stored in"
        )]
        let wanted: Vec<f32> = (had.iter().zip(&shifts))
            .map(|(had, shift)| (f64::from(*had) + shift.lost) as f32)
            .collect();
        let (mut rounded, mut has) = (vec![0; bytes.len()], vec![0.0; had.len()]);
        (self.backend.round)(bias.float, &wanted, &mut rounded);
        (self.backend.widen)(bias.float, &rounded, &mut has);
        let stored = bytes.chunks_mut(size).zip(rounded.chunks(size));
        for ((stored, rounded), (has, had)) in stored.zip(has.iter_mut().zip(&had)) {
            if has.is_finite() {
                stored.copy_from_slice(rounded);
            } else {
                // What the dtype cannot hold is no bias: the one that is there stays.
                *has = *had;
            }
        }
        let output = self.step.outputs.len() - 1;
        let first = done.output_losses.len().saturating_sub(shifts.len());
        let biases = shifts.iter().zip(had.iter().zip(&has));
        for (loss, (shift, (had, has))) in done.output_losses[first..].iter_mut().zip(biases) {
            let left = f64::from(*has) - f64::from(*had) - shift.lost;
            loss.signal += shift.output.powi(2);
            loss.noise += left.powi(2);
        }
        self.write(output, at, &bytes, done)
    }
}
