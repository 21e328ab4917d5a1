//! One tile of one step: read, compute, encode, write. Everything here runs on worker threads and keeps no state.

use std::ops::Range;
use std::sync::Arc;

use safequant_container::{Checkpoint, FileWriter, TensorRef};
use safequant_kernels::{Backend, Float};
use safequant_quantize::report::row_losses;
use safequant_quantize::{Loss, Quantizer, Rows, Statistics};
use safequant_schemes::{
    Decoder, EncodedRegion, Part, QuantizedTensor, RowsOut, Transcoder, encode,
};

use crate::Error;
use crate::convert::{carried_parts, counterpart};
use crate::steps::{DenseSource, QuantizeWork, Step, Work};

/// What all tiles of a step share.
pub(crate) struct StepContext<'p> {
    /// Index of the step in the job.
    pub(crate) index: usize,
    pub(crate) step: &'p Step,
    reader: Reader<'p>,
    writer: Option<Arc<FileWriter>>,
    quantizer: Option<&'static dyn Quantizer>,
    statistics: Option<Arc<Statistics>>,
    backend: &'static Backend,
    checkpoint: &'p Checkpoint,
}

/// Where a step reads.
enum Reader<'p> {
    Nothing,
    Plain(TensorRef<'p>, Option<Float>),
    Quantized(Box<Decoder<'p>>),
    Carried(Box<Decoder<'p>>, Box<Transcoder<'p>>),
}

/// Bytes of an output, written and ready to be digested.
pub(crate) struct Piece {
    /// Index into the step's outputs.
    pub(crate) output: usize,
    /// Where the bytes lie, if they lie together.
    pub(crate) offset: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A tile, done.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) pieces: Vec<Piece>,
    /// One per row, so that the sums over a weight do not depend on how it was cut.
    pub(crate) losses: Vec<Loss>,
    /// Scales that the stored dtype rounds to zero. No rule gives a group of zeros such a scale.
    pub(crate) n_zero_scales: u64,
}

impl<'p> StepContext<'p> {
    pub(crate) fn new(
        index: usize,
        step: &'p Step,
        checkpoint: &'p Checkpoint,
        writer: Option<Arc<FileWriter>>,
        quantizer: Option<&'static dyn Quantizer>,
        statistics: Option<Arc<Statistics>>,
    ) -> Result<Self, Error> {
        let backend = Backend::detect();
        let plain = |name: &str, float| {
            let found = checkpoint.tensor(name);
            found.map_or(Reader::Nothing, |tensor| Reader::Plain(tensor, float))
        };
        let reader =
            match &step.work {
                Work::Drop => Reader::Nothing,
                Work::Copy => plain(&step.name, None),
                Work::Dequantize(tensor, _) => {
                    Reader::Quantized(Box::new(Decoder::new(tensor, checkpoint, backend)?))
                }
                Work::Transcode(work) => {
                    let decoder = Decoder::new(&work.source, checkpoint, backend)?;
                    let transcoder = Transcoder::new(&work.source, &work.plain, &work.layout)
                        .map_err(|reason| Error::NotCarried {
                            module: step.name.clone(),
                            reason,
                        })?;
                    Reader::Carried(Box::new(decoder), Box::new(transcoder))
                }
                Work::Quantize(work) => match &work.source {
                    DenseSource::Plain(name, float) => plain(name, Some(*float)),
                    DenseSource::Quantized(tensor) => {
                        Reader::Quantized(Box::new(Decoder::new(tensor, checkpoint, backend)?))
                    }
                },
            };
        Ok(Self {
            index,
            step,
            reader,
            writer,
            quantizer,
            statistics,
            backend,
            checkpoint,
        })
    }

    /// Computes and writes one tile.
    pub(crate) fn run(&self, span: &Range<u64>) -> Result<Done, Error> {
        match &self.step.work {
            Work::Drop => Ok(Done::default()),
            Work::Copy => self.copy(span),
            Work::Dequantize(tensor, float) => self.dequantize(tensor, *float, span),
            Work::Quantize(work) => self.quantize(work, span),
            Work::Transcode(work) => self.transcode(&work.layout, span),
        }
    }

    fn copy(&self, span: &Range<u64>) -> Result<Done, Error> {
        let mut bytes = self.buffer(span.end - span.start)?;
        if let Reader::Plain(tensor, _) = &self.reader {
            tensor.read_exact_at(span.start, &mut bytes)?;
        }
        self.whole_piece(span.start, bytes)
    }

    fn dequantize(
        &self,
        tensor: &QuantizedTensor,
        float: Float,
        span: &Range<u64>,
    ) -> Result<Done, Error> {
        let row_bytes = tensor.in_features() * float.size_bytes() as u64;
        let mut bytes = self.buffer((span.end - span.start) * row_bytes)?;
        if let Reader::Quantized(decoder) = &self.reader
            && !bytes.is_empty()
        {
            decoder.rows(span.clone(), RowsOut::Bytes(float, &mut bytes))?;
        }
        self.whole_piece(span.start * row_bytes, bytes)
    }

    fn whole_piece(&self, offset: u64, bytes: Vec<u8>) -> Result<Done, Error> {
        self.write(0, offset, &bytes)?;
        let piece = Piece {
            output: 0,
            offset: Some(offset),
            bytes,
        };
        Ok(Done {
            pieces: vec![piece],
            ..Done::default()
        })
    }

    fn quantize(&self, work: &QuantizeWork, span: &Range<u64>) -> Result<Done, Error> {
        let Some(quantizer) = self.quantizer.filter(|_| !span.is_empty()) else {
            return Ok(Done::default());
        };
        let values = self.rows(work, span)?;
        let rows = self.as_rows(work, span, &values)?;
        let codes = quantizer
            .quantize(&work.target, rows, self.statistics.as_deref(), self.backend)
            .map_err(|e| self.refused(e))?;
        let losses =
            row_losses(&work.layout, &rows, &codes, self.backend).map_err(|e| self.refused(e))?;
        let n_zero_scales = codes.scales.iter().filter(|s| **s == 0.0).count() as u64;
        drop(values);
        let regions = encode::encode(&work.layout, &codes, self.backend)?;
        drop(codes);
        let pieces = regions.into_iter().map(|region| self.write_region(region));
        Ok(Done {
            pieces: pieces.collect::<Result<_, Error>>()?,
            losses,
            n_zero_scales,
        })
    }

    fn transcode(&self, layout: &QuantizedTensor, span: &Range<u64>) -> Result<Done, Error> {
        let Reader::Carried(decoder, transcoder) = &self.reader else {
            return Ok(Done::default());
        };
        if span.is_empty() {
            return Ok(Done::default());
        }
        let tile = decoder.codes(span.clone())?;
        let (carried, _) = transcoder.tile(&tile)?;
        drop(tile);
        let regions = encode::encode(layout, &carried, self.backend)?;
        drop(carried);
        let pieces = regions.into_iter().map(|region| self.write_region(region));
        Ok(Done {
            pieces: pieces.collect::<Result<_, Error>>()?,
            ..Done::default()
        })
    }

    /// Statistics of one tile.
    pub(crate) fn observe(&self, span: &Range<u64>) -> Result<Statistics, Error> {
        let (Work::Quantize(work), Some(quantizer)) = (&self.step.work, self.quantizer) else {
            return Ok(Statistics::default());
        };
        if span.is_empty() {
            return Ok(Statistics::default());
        }
        let values = self.rows(work, span)?;
        let rows = self.as_rows(work, span, &values)?;
        quantizer
            .observe(&work.target, rows, self.backend)
            .map_err(|e| self.refused(e))
    }

    /// The parts that no tile fills.
    pub(crate) fn constants(&self) -> Result<Vec<Piece>, Error> {
        let layout = match &self.step.work {
            Work::Quantize(work) => &work.layout,
            Work::Transcode(work) => &work.layout,
            Work::Copy | Work::Drop | Work::Dequantize(..) => return Ok(Vec::new()),
        };
        let regions = encode::constant_regions(layout).into_iter();
        let mut pieces: Vec<Piece> = regions
            .map(|region| self.write_region(region))
            .collect::<Result<_, Error>>()?;
        if let (Reader::Carried(decoder, _), Work::Transcode(work)) =
            (&self.reader, &self.step.work)
        {
            let region = match decoder.group_index() {
                Some(index) => encode::group_index_region(layout, index),
                None => encode::trivial_index_region(layout),
            };
            if let Some(region) = region {
                pieces.push(self.write_region(region)?);
            }
            for (output, part) in carried_parts(layout) {
                pieces.extend(self.carry(&work.source, output, part)?);
            }
        }
        Ok(pieces)
    }

    /// A part that is copied from the source's.
    fn carry(
        &self,
        source: &QuantizedTensor,
        output: usize,
        part: &Part,
    ) -> Result<Option<Piece>, Error> {
        let from = counterpart(source, part).and_then(|p| self.checkpoint.tensor(&p.name));
        let Some(from) = from else { return Ok(None) };
        let bytes = from.read_all(from.info.len_bytes())?;
        self.write(output, 0, &bytes)?;
        Ok(Some(Piece {
            output,
            offset: Some(0),
            bytes,
        }))
    }

    fn as_rows<'v>(
        &self,
        work: &QuantizeWork,
        span: &Range<u64>,
        values: &'v [f32],
    ) -> Result<Rows<'v>, Error> {
        Ok(Rows {
            values,
            in_features: self.fits(work.layout.in_features())?,
            first_row: span.start,
            out_features: work.layout.out_features(),
            source: work.source.float(),
        })
    }

    fn rows(&self, work: &QuantizeWork, span: &Range<u64>) -> Result<Vec<f32>, Error> {
        let columns = work.layout.in_features();
        let n_values = (span.end - span.start) * columns;
        let mut values = vec![0.0_f32; self.fits(n_values)?];
        match &self.reader {
            Reader::Plain(tensor, Some(float)) => {
                let size = float.size_bytes() as u64;
                let mut bytes = self.buffer(n_values * size)?;
                tensor.read_exact_at(span.start * columns * size, &mut bytes)?;
                (self.backend.widen)(*float, &bytes, &mut values);
            }
            Reader::Quantized(decoder) => {
                decoder.rows(span.clone(), RowsOut::F32(&mut values))?;
            }
            Reader::Plain(_, None) | Reader::Nothing | Reader::Carried(..) => {}
        }
        Ok(values)
    }

    fn write_region(&self, region: EncodedRegion) -> Result<Piece, Error> {
        let row_len = region.row_len;
        let width = region.columns.end - region.columns.start;
        let offset = region.rows.start * row_len + region.columns.start;
        let n_rows = region.rows.end - region.rows.start;
        let lies_together = n_rows <= 1 || width == row_len;
        if lies_together {
            self.write(region.part, offset, &region.bytes)?;
        } else {
            let lines = region.bytes.chunks_exact(self.fits(width.max(1))?);
            for (row, line) in (region.rows.start..).zip(lines) {
                self.write(region.part, row * row_len + region.columns.start, line)?;
            }
        }
        Ok(Piece {
            output: region.part,
            offset: lies_together.then_some(offset),
            bytes: region.bytes,
        })
    }

    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        if let Some(writer) = self.writer.as_ref().filter(|_| !bytes.is_empty()) {
            let (_, tensor) = self.step.outputs[output].at;
            writer.write_at(tensor, offset, bytes)?;
        }
        Ok(())
    }

    /// Digests an output as the file holds it: for parts whose bytes did not come in order.
    pub(crate) fn digest_file(&self, output: usize, buffer: &mut [u8]) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        if let Some(writer) = &self.writer {
            digest_tensor(writer, &self.step.outputs[output], buffer, &mut hasher)?;
        }
        Ok(crate::journal::hex(&hasher))
    }

    fn refused(&self, source: safequant_quantize::Error) -> Error {
        Error::Quantize {
            module: self.step.name.clone(),
            source,
        }
    }

    fn buffer(&self, len_bytes: u64) -> Result<Vec<u8>, Error> {
        Ok(vec![0; self.fits(len_bytes)?])
    }

    fn fits(&self, n: u64) -> Result<usize, Error> {
        usize::try_from(n).map_err(|_| Error::AddressSpace {
            module: self.step.name.clone(),
            bytes: n,
        })
    }
}

/// Feeds a written tensor to a hasher.
pub(crate) fn digest_tensor(
    writer: &FileWriter,
    output: &crate::steps::Output,
    buffer: &mut [u8],
    hasher: &mut blake3::Hasher,
) -> Result<(), Error> {
    let mut at = 0;
    while at < output.len_bytes {
        let left = usize::try_from(output.len_bytes - at).unwrap_or(usize::MAX);
        let n = left.min(buffer.len());
        writer.read_at(output.at.1, at, &mut buffer[..n])?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(())
}

impl Step {
    /// Tiles it is cut into; at least one, so that every step passes through the pipeline.
    pub(crate) fn n_tiles(&self) -> u64 {
        let (n_matrices, rows) = self.cut();
        let per_matrix = rows.div_ceil(self.tiling.per_tile.max(1));
        (n_matrices * per_matrix).max(1)
    }

    /// The rows (bytes, for a copy) of a tile; no tile crosses from one matrix of a stack to the next.
    pub(crate) fn tile(&self, i: u64) -> Range<u64> {
        let (_, rows) = self.cut();
        span(rows, self.tiling.per_tile.max(1), i)
    }

    /// Matrices, and rows of each.
    fn cut(&self) -> (u64, u64) {
        match &self.work {
            Work::Drop => (0, 0),
            Work::Copy => (1, self.source_bytes),
            Work::Dequantize(tensor, _) => (tensor.n_matrices(), tensor.out_features()),
            Work::Quantize(work) => (work.layout.n_matrices(), work.layout.out_features()),
            Work::Transcode(work) => (work.layout.n_matrices(), work.layout.out_features()),
        }
    }
}

/// Tile `i` of a stack of matrices with `rows` rows each.
fn span(rows: u64, per_tile: u64, i: u64) -> Range<u64> {
    let per_matrix = rows.div_ceil(per_tile).max(1);
    let base = (i / per_matrix) * rows;
    let start = ((i % per_matrix) * per_tile).min(rows);
    base + start..base + (start + per_tile).min(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_and_never_two_matrices() {
        for (n_matrices, rows, per_tile) in
            [(1, 10, 3), (3, 10, 4), (4, 1, 8), (2, 8, 8), (5, 7, 1)]
        {
            let n_tiles = n_matrices * u64::div_ceil(rows, per_tile);
            let mut next = 0;
            for i in 0..n_tiles {
                let tile = span(rows, per_tile, i);
                assert_eq!(tile.start, next, "{n_matrices} x {rows} by {per_tile}");
                assert_eq!(tile.start / rows, (tile.end - 1) / rows);
                assert_eq!((tile.start % rows) % per_tile, 0);
                next = tile.end;
            }
            assert_eq!(next, n_matrices * rows);
        }
        assert_eq!(span(0, 1, 0), 0..0);
    }
}
