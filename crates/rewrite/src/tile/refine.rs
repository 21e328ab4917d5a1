//! Rows whose codes are chosen anew, under the scales that they have.

use std::ops::Range;

use safequant_kernels::Floats;
use safequant_quantize::{Loss, Recoder, Statistics};
use safequant_schemes::{CodeTile, Decoder, RowsOut, encode};

use super::{Done, StepContext};
use crate::Error;
use crate::scratch::Scratch;
use crate::steps::QuantizeWork;

/// Bytes of a part that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

impl StepContext<'_> {
    pub(super) fn refine(
        &self,
        (work, start): (&QuantizeWork, &Decoder<'_>),
        statistics: Option<&Statistics>,
        run: &Range<u64>,
        scratch: &mut Scratch,
        done: &mut Done,
    ) -> Result<(), Error> {
        let values = self.rows(work, run, scratch)?.widened(self.backend);
        self.check_finite(work, run, &values)?;
        let mut tile = start.codes(run.clone())?;
        if let Some(prepared) = statistics.and_then(|known| known.prepared.as_deref()) {
            let scheme = &work.layout.scheme;
            let recoder = Recoder::new(scheme, start.dequantizer(), self.backend);
            let recoder = recoder.map_err(|e| self.refused(e))?;
            let rows = recoder.recode(&values, &mut tile, prepared);
            for row in rows.map_err(|e| self.refused(e))? {
                done.start_losses.push(row.before);
                done.output_losses.push(row.after);
            }
        }
        self.add_losses(work, start, (&values, &tile), done)?;
        let mut regions = encode::encode_codes(&work.layout, &tile, self.backend)?;
        // Codes are the first output, wherever the layout has them.
        for region in &mut regions {
            region.part = 0;
        }
        self.write_regions(regions, done)
    }

    fn check_finite(
        &self,
        work: &QuantizeWork,
        run: &Range<u64>,
        values: &[f32],
    ) -> Result<(), Error> {
        let Some(at) = (self.backend.first_non_finite)(values) else {
            return Ok(());
        };
        let (at, columns) = (at as u64, work.layout.in_features().max(1));
        Err(self.refused(safequant_quantize::Error::NonFinite {
            row: run.start.saturating_add(at / columns),
            column: at % columns,
        }))
    }

    /// What each row's weights are off by.
    fn add_losses(
        &self,
        work: &QuantizeWork,
        start: &Decoder<'_>,
        (values, tile): (&[f32], &CodeTile),
        done: &mut Done,
    ) -> Result<(), Error> {
        let mut back = vec![0.0; values.len()];
        start.dequantizer().tile(tile, RowsOut::F32(&mut back))?;
        let columns = self.fits(work.layout.in_features())?.max(1);
        let rows = values.chunks(columns).zip(back.chunks(columns));
        let losses =
            rows.map(|(row, back)| Loss::of(Floats::F32(row), Floats::F32(back), self.backend));
        done.losses.extend(losses);
        Ok(())
    }

    /// Every part but the codes, byte for byte.
    pub(super) fn keep(&self, done: &mut Done) -> Result<(), Error> {
        let mut buffer = Vec::new();
        for (output, kept) in self.step.outputs.iter().enumerate().skip(1) {
            let Some(from) = self.checkpoint.tensor(&kept.tensor.name) else {
                continue;
            };
            let mut at = 0;
            while at < kept.len_bytes {
                let n = COPY_BYTES.min(kept.len_bytes - at);
                buffer.resize(self.fits(n)?, 0);
                from.read_exact_at(at, &mut buffer)?;
                self.write(output, at, &buffer, done)?;
                at += n;
            }
        }
        Ok(())
    }
}
