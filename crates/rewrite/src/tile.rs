//! One tile of one step: read, compute, encode, write. Everything here runs on worker threads and keeps no state.

use std::ops::Range;
use std::sync::Arc;

use safequant_container::{Checkpoint, FileWriter, TensorRef};
use safequant_kernels::{Backend, Float, Floats, PORTABLE};
use safequant_quantize::report::row_losses;
use safequant_quantize::{Loss, Quantizer, Rows, Statistics};
use safequant_schemes::{
    Decoder, EncodedRegion, Granularity, Part, QuantizedTensor, RowsOut, ScaleCoding, Transcoder,
    Values, encode,
};

use crate::Error;
use crate::convert::{carried_parts, counterpart};
use crate::steps::{Carried, DenseSource, DenseWork, QuantizeWork, Step, Work, layout_of};

/// What all tiles of a step share.
pub(crate) struct StepContext<'p> {
    /// Index of the step in the job.
    pub(crate) index: usize,
    pub(crate) step: &'p Step,
    /// One for the whole weight, or one for each member of a stack.
    readers: Vec<Reader<'p>>,
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

/// Rows of a weight to quantize.
enum Dense {
    /// As the file has them.
    Stored(Float, Vec<u8>),
    /// Of a weight that is quantized already.
    Decoded(Vec<f32>),
}

impl Dense {
    fn floats(&self) -> Floats<'_> {
        match self {
            Dense::Stored(float, bytes) => Floats::Bytes(*float, bytes),
            Dense::Decoded(values) => Floats::F32(values),
        }
    }
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
    /// Scales that the stored dtype rounds to zero, of groups that are not all zeros.
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
        let dense = |source: &'p DenseSource| -> Result<Reader<'p>, Error> {
            Ok(match source {
                DenseSource::Plain(name, float) => plain(name, Some(*float)),
                DenseSource::Quantized(tensor) => {
                    Reader::Quantized(Box::new(Decoder::new(tensor, checkpoint, backend)?))
                }
            })
        };
        let readers = match &step.work {
            Work::Drop | Work::Content(_) => vec![Reader::Nothing],
            Work::Copy => vec![plain(&step.name, None)],
            Work::Dense(work) => work.sources.iter().map(dense).collect::<Result<_, _>>()?,
            Work::Quantize(work) => work.sources.iter().map(dense).collect::<Result<_, _>>()?,
            Work::Transcode(work) => {
                let carried =
                    |member: &'p Carried| carried(&step.name, member, checkpoint, backend);
                work.members.iter().map(carried).collect::<Result<_, _>>()?
            }
        };
        Ok(Self {
            index,
            step,
            readers,
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
            Work::Dense(work) => self.dense(work, span),
            Work::Quantize(work) => self.quantize(work, span),
            Work::Transcode(work) => self.transcode(&work.layout, span),
            Work::Content(bytes) => self.whole_piece(0, bytes.clone()),
        }
    }

    /// The reader of the member of the stack that a run of rows belongs to, and the rows in it.
    fn member(&self, span: &Range<u64>) -> (&Reader<'p>, Range<u64>) {
        let (n_matrices, rows) = self.step.cut();
        let each = (n_matrices * rows / self.readers.len().max(1) as u64).max(1);
        let index = span.start / each;
        let reader = usize::try_from(index)
            .ok()
            .and_then(|i| self.readers.get(i));
        let base = index * each;
        (
            reader.unwrap_or(&Reader::Nothing),
            span.start - base..span.end - base,
        )
    }

    /// Puts whole rows of one matrix in the step's order.
    fn reorder<T: Copy>(&self, values: &mut [T], span: &Range<u64>) {
        let (_, n_rows) = self.step.cut();
        let first = span.start % n_rows.max(1);
        let rows = first..first + (span.end - span.start);
        self.step.rows.apply(values, &rows, n_rows);
    }

    fn copy(&self, span: &Range<u64>) -> Result<Done, Error> {
        let mut bytes = self.buffer(span.end - span.start)?;
        if let (Reader::Plain(tensor, _), _) = self.member(span) {
            tensor.read_exact_at(span.start, &mut bytes)?;
        }
        self.whole_piece(span.start, bytes)
    }

    fn dense(&self, work: &DenseWork, span: &Range<u64>) -> Result<Done, Error> {
        let row_bytes = work.shape[2] * work.float.size_bytes() as u64;
        let mut bytes = self.buffer((span.end - span.start) * row_bytes)?;
        if bytes.is_empty() {
            return self.whole_piece(span.start * row_bytes, bytes);
        }
        match (self.member(span), work.values) {
            ((Reader::Quantized(decoder), rows), Values::Same) => {
                decoder.rows(rows, RowsOut::Bytes(work.float, &mut bytes))?;
            }
            ((Reader::Plain(tensor, Some(from)), rows), Values::Same) if *from == work.float => {
                tensor.read_exact_at(rows.start * row_bytes, &mut bytes)?;
            }
            (_, change) => {
                let mut values = self.floats(work.shape[2], span)?;
                match change {
                    Values::Same => {}
                    Values::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
                }
                (self.backend.round)(work.float, &values, &mut bytes);
            }
        }
        self.reorder(&mut bytes, span);
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
        let rows = self.as_rows(work, span, values.floats())?;
        let codes = quantizer
            .quantize(&work.target, rows, self.statistics.as_deref(), self.backend)
            .map_err(|e| self.refused(e))?;
        let losses =
            row_losses(&work.layout, &rows, &codes, self.backend).map_err(|e| self.refused(e))?;
        let n_zero_scales = zero_scales(&work.layout, &codes.scales, values.floats());
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
        let (Reader::Carried(decoder, transcoder), rows) = self.member(span) else {
            return Ok(Done::default());
        };
        if span.is_empty() {
            return Ok(Done::default());
        }
        let tile = decoder.codes(rows)?;
        let (mut carried, _) = transcoder.tile(&tile)?;
        drop(tile);
        carried.rows = span.clone();
        carried.reorder(layout, self.step.rows);
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
        let rows = self.as_rows(work, span, values.floats())?;
        quantizer
            .observe(&work.target, rows, self.backend)
            .map_err(|e| self.refused(e))
    }

    /// The parts that no tile fills.
    pub(crate) fn constants(&self) -> Result<Vec<Piece>, Error> {
        let Some(layout) = layout_of(self.step) else {
            return Ok(Vec::new());
        };
        let regions = encode::constant_regions(layout).into_iter();
        let mut pieces: Vec<Piece> = regions
            .map(|region| self.write_region(region))
            .collect::<Result<_, Error>>()?;
        if let [Reader::Carried(decoder, _)] = self.readers.as_slice() {
            let region = match decoder.group_index() {
                Some(index) => encode::group_index_region(layout, index),
                None => encode::trivial_index_region(layout),
            };
            if let Some(region) = region {
                pieces.push(self.write_region(region)?);
            }
            for (output, part) in carried_parts(layout) {
                pieces.extend(self.carry(decoder.tensor, output, part)?);
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
        values: Floats<'v>,
    ) -> Result<Rows<'v>, Error> {
        Ok(Rows {
            values,
            in_features: self.fits(work.layout.in_features())?,
            first_row: span.start,
            out_features: work.layout.out_features(),
            source: work.sources.first().map_or(Float::F32, DenseSource::float),
        })
    }

    /// Rows of a weight to quantize, in the order in which they are written.
    fn rows(&self, work: &QuantizeWork, span: &Range<u64>) -> Result<Dense, Error> {
        let columns = work.layout.in_features();
        if let (Reader::Plain(tensor, Some(float)), rows) = self.member(span) {
            let row = columns * float.size_bytes() as u64;
            let mut bytes = self.buffer((span.end - span.start) * row)?;
            tensor.read_exact_at(rows.start * row, &mut bytes)?;
            self.reorder(&mut bytes, span);
            return Ok(Dense::Stored(*float, bytes));
        }
        let mut values = self.floats(columns, span)?;
        self.reorder(&mut values, span);
        Ok(Dense::Decoded(values))
    }

    /// Rows as the source has them.
    fn floats(&self, columns: u64, span: &Range<u64>) -> Result<Vec<f32>, Error> {
        let n_values = (span.end - span.start) * columns;
        let mut values = vec![0.0_f32; self.fits(n_values)?];
        match self.member(span) {
            (Reader::Plain(tensor, Some(float)), rows) => {
                let size = float.size_bytes() as u64;
                let mut bytes = self.buffer(n_values * size)?;
                tensor.read_exact_at(rows.start * columns * size, &mut bytes)?;
                (self.backend.widen)(*float, &bytes, &mut values);
            }
            (Reader::Quantized(decoder), rows) => {
                decoder.rows(rows, RowsOut::F32(&mut values))?;
            }
            (Reader::Plain(_, None) | Reader::Nothing | Reader::Carried(..), _) => {}
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

/// Scales of zero, but for those of groups of zeros (ggml gives them such a scale) and for integers below a super-scale, to which
/// small groups are rounded by design.
fn zero_scales(layout: &QuantizedTensor, scales: &[f32], values: Floats<'_>) -> u64 {
    let scheme = &layout.scheme;
    if scheme.scale == ScaleCoding::Integer {
        return 0;
    }
    let columns = usize::try_from(layout.in_features())
        .unwrap_or(usize::MAX)
        .max(1);
    let size = match scheme.granularity {
        Granularity::Group { size } => usize::try_from(size).unwrap_or(usize::MAX).min(columns),
        Granularity::Channel => columns,
        Granularity::Tensor
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => {
            return scales.iter().filter(|s| **s == 0.0).count() as u64;
        }
    };
    let size = size.max(1);
    let per_row = columns.div_ceil(size);
    let is_lost = |i: usize| {
        let (row, start) = (i / per_row * columns, i % per_row * size);
        let group = row + start..row + (start + size).min(columns);
        let values = values.cut(group).widened(&PORTABLE);
        values.iter().any(|v| *v != 0.0)
    };
    let zeros = scales.iter().enumerate().filter(|(_, s)| **s == 0.0);
    zeros.filter(|(i, _)| is_lost(*i)).count() as u64
}

/// The reader of a weight whose codes stay.
fn carried<'p>(
    name: &str,
    member: &'p Carried,
    checkpoint: &'p Checkpoint,
    backend: &'static Backend,
) -> Result<Reader<'p>, Error> {
    let decoder = Decoder::new(&member.source, checkpoint, backend)?;
    let transcoder = Transcoder::new(&member.source, &member.plain, &member.layout);
    let transcoder = transcoder.map_err(|reason| Error::NotCarried {
        module: name.to_owned(),
        reason,
    })?;
    Ok(Reader::Carried(Box::new(decoder), Box::new(transcoder)))
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
            Work::Dense(work) => (work.shape[0], work.shape[1]),
            Work::Quantize(work) => (work.layout.n_matrices(), work.layout.out_features()),
            Work::Transcode(work) => (work.layout.n_matrices(), work.layout.out_features()),
            Work::Content(_) => (1, 1),
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

    #[test]
    fn a_scale_of_zero_is_lost_unless_its_group_is_all_zeros() {
        let writer = crate::recipe::writer_of("gguf").unwrap();
        let preset = safequant_schemes::Preset::by_name("Q8_0").unwrap();
        let layout = writer.lay_out("m", &[2, 64], &preset, Float::F32).unwrap();
        let mut values = [0.0_f32; 128];
        values[0] = 1e-12;
        values[127] = 1.0;
        let scales = [0.0, 0.0, 0.0, 0.5];
        assert_eq!(zero_scales(&layout, &scales, Floats::F32(&values)), 1);
        assert_eq!(zero_scales(&layout, &scales, Floats::F32(&[0.0; 128])), 0);
    }
}
