//! One tile of one step: read, compute, encode, write, digest. Everything here runs on worker threads and keeps no state.
//!
//! A tile is what is handed to a worker. It is worked off in *runs* of rows, so small that what is read, computed and written
//! stays in a core's cache.

mod bias;
mod cut;
mod lost;
mod put;
mod refine;
mod scaled;

use std::mem::take;
use std::ops::Range;
use std::sync::Arc;

use safequant_container::{Checkpoint, FileWriter, TensorRef};
use safequant_kernels::{Backend, CodeForm, Float, Floats, PORTABLE, Stores};
use safequant_quantize::report::stored_row_losses;
use safequant_quantize::{Loss, Output, OutputLoss, Rows, Statistics, scale_sums};
use safequant_schemes::{
    Decoder, Granularity, Part, QuantizedTensor, RowsOut, ScaleCoding, Transcoder, Values, encode,
};

use crate::Error;
use crate::convert::{carried_parts, counterpart};
use crate::scratch::{Buffer, Scratch};
use crate::steps::{Carried, DenseSource, DenseWork, QuantizeWork, Step, Work, layout_of};
use crate::subtree::Segment;

pub(crate) use put::digest_tensor;

/// What all tiles of a step share.
pub(crate) struct StepContext<'p> {
    /// Index of the step in the job.
    pub(crate) index: usize,
    pub(crate) step: &'p Step,
    /// One for the whole weight, or one for each member of a stack.
    readers: Vec<Reader<'p>>,
    writer: Option<Arc<FileWriter>>,
    backend: &'static Backend,
    checkpoint: &'p Checkpoint,
    /// Of the codes that are to be better.
    start: Option<Box<Decoder<'p>>>,
}

/// Where a step reads.
enum Reader<'p> {
    Nothing,
    Plain(TensorRef<'p>, Option<Float>),
    Quantized(Box<Decoder<'p>>),
    Carried(Box<Decoder<'p>>, Box<Transcoder<'p>>),
}

/// A tile, done.
pub(crate) struct Done {
    /// What was written to each output of the step.
    pub(crate) segments: Vec<Segment>,
    /// One per row, so that the sums over a weight do not depend on how it was cut.
    pub(crate) losses: Vec<Loss>,
    /// What each row's outputs lose, where the quantizer knows it.
    pub(crate) output_losses: Vec<OutputLoss>,
    /// What each row's outputs lost before, where codes are chosen anew.
    pub(crate) start_losses: Vec<OutputLoss>,
    /// Scales that the stored dtype rounds to zero, of groups that are not all zeros.
    pub(crate) n_zero_scales: u64,
}

impl Done {
    fn new(step: &Step) -> Self {
        let outputs = step.outputs.iter();
        Self {
            segments: outputs.map(|o| Segment::new(o.len_bytes)).collect(),
            losses: Vec::new(),
            output_losses: Vec::new(),
            start_losses: Vec::new(),
            n_zero_scales: 0,
        }
    }

    fn finish(mut self) -> Self {
        self.segments.iter_mut().for_each(Segment::finish);
        self
    }
}

impl<'p> StepContext<'p> {
    pub(crate) fn new(
        index: usize,
        step: &'p Step,
        checkpoint: &'p Checkpoint,
        writer: Option<Arc<FileWriter>>,
    ) -> Result<Self, Error> {
        let backend = Backend::detect();
        let origin = step
            .quantizing()
            .map_or(checkpoint, |work| work.origin(checkpoint));
        let plain = |name: &str, float| {
            let found = origin.tensor(name);
            found.map_or(Reader::Nothing, |tensor| Reader::Plain(tensor, float))
        };
        let dense = |source: &'p DenseSource| -> Result<Reader<'p>, Error> {
            Ok(match source {
                DenseSource::Plain(name, float) => plain(name, Some(*float)),
                DenseSource::Quantized(tensor) => {
                    Reader::Quantized(Box::new(Decoder::new(tensor, origin, backend)?))
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
        let start = match step.quantizing() {
            Some(work) if work.start.is_some() => {
                Some(Box::new(Decoder::new(&work.layout, checkpoint, backend)?))
            }
            Some(_) | None => None,
        };
        Ok(Self {
            index,
            step,
            readers,
            writer,
            backend,
            checkpoint,
            start,
        })
    }

    /// Computes and writes one tile, run by run. `statistics`: what is known of the matrix that it is of.
    pub(crate) fn run(
        &self,
        span: &Range<u64>,
        statistics: Option<&Statistics>,
        scratch: &mut Scratch,
    ) -> Result<Done, Error> {
        let mut done = Done::new(self.step);
        for run in self.step.runs(span) {
            match &self.step.work {
                Work::Drop => {}
                Work::Copy => self.copy(&run, scratch, &mut done)?,
                Work::Dense(work) => self.dense(work, &run, scratch, &mut done)?,
                Work::Quantize(work) => match &self.start {
                    None => self.quantize((work, statistics), &run, scratch, &mut done)?,
                    Some(start) => {
                        self.refine((work, start), statistics, &run, scratch, &mut done)?;
                    }
                },
                Work::Transcode(work) => self.transcode(&work.layout, &run, &mut done)?,
                Work::Content(bytes) => self.write(0, 0, bytes, &mut done)?,
            }
        }
        Ok(done.finish())
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

    fn copy(&self, run: &Range<u64>, scratch: &mut Scratch, done: &mut Done) -> Result<(), Error> {
        let bytes = scratch.encoded.lend(self.fits(run.end - run.start)?);
        let (Reader::Plain(tensor, _), _) = self.member(run) else {
            bytes.fill(0);
            return self.write(0, run.start, bytes, done);
        };
        // They are read for their digest; the system copies them once less than writing them would.
        tensor.read_exact_at(run.start, bytes)?;
        if let Some(writer) = &self.writer {
            let (_, output) = self.step.outputs[0].at;
            writer.copy_at(output, run.start, (*tensor, run.start), bytes)?;
        }
        done.segments[0].add(Some(run.start), bytes);
        Ok(())
    }

    fn dense(
        &self,
        work: &DenseWork,
        run: &Range<u64>,
        scratch: &mut Scratch,
        done: &mut Done,
    ) -> Result<(), Error> {
        let row_bytes = work.shape[2] * work.float.size_bytes() as u64;
        let len = self.fits((run.end - run.start) * row_bytes)?;
        let bytes = scratch.encoded.lend(len);
        if bytes.is_empty() {
            return Ok(());
        }
        match (self.member(run), work.values) {
            ((Reader::Quantized(decoder), rows), Values::Same) => {
                decoder.rows(rows, RowsOut::Bytes(work.float, bytes))?;
            }
            ((Reader::Plain(tensor, Some(from)), rows), Values::Same) if *from == work.float => {
                tensor.read_exact_at(rows.start * row_bytes, bytes)?;
            }
            (_, change) => {
                let (stored, floats) = (&mut scratch.stored, &mut scratch.floats);
                let values = self.floats(work.shape[2], run, stored, floats)?;
                match change {
                    Values::Same => {}
                    Values::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
                }
                (self.backend.round)(work.float, values, bytes);
            }
        }
        self.reorder(bytes, run);
        self.write(0, run.start * row_bytes, bytes, done)
    }

    fn quantize(
        &self,
        (work, statistics): (&QuantizeWork, Option<&Statistics>),
        run: &Range<u64>,
        scratch: &mut Scratch,
        done: &mut Done,
    ) -> Result<(), Error> {
        let (mut encoded, mut chosen) = (take(&mut scratch.encoded), take(&mut scratch.chosen));
        let mut output_losses = take(&mut scratch.output_losses);
        let values = self.rows(work, run, scratch)?;
        let rows = self.as_rows(work, run, values)?;
        let place = encode::code_form(&work.layout);
        let form = place.map_or(CodeForm::BYTES, |(_, form)| form);
        let codes = encoded.lend(form.packing.packed_len_bytes(values.len(), 1));
        let output = Output {
            codes,
            form,
            stores: Stores::Ordinary,
            tile: &mut chosen,
            output_losses: &mut output_losses,
        };
        let quantizer = work.matrix(work.matrix_of(run.start)).method.0;
        quantizer
            .quantize_into(&work.target, rows, statistics, output, self.backend)
            .map_err(|e| self.refused(e))?;
        let stored: (&[u8], CodeForm) = (codes, form);
        let losses = stored_row_losses(&work.layout, &rows, &chosen, stored, self.backend);
        done.losses.extend(losses.map_err(|e| self.refused(e))?);
        done.output_losses.extend_from_slice(&output_losses);
        if let Some(bias) = &work.bias {
            self.correct_bias((work, bias), (&rows, &chosen, stored), run, done)?;
        }
        done.n_zero_scales += zero_scales(&work.layout, &chosen.scales, values);
        if let Some((part, form)) = place {
            // Codes that lie row after row are written as the quantizer leaves them.
            let row_bytes = form.packing.packed_len_bytes(rows.in_features, 1) as u64;
            self.write(part, row_bytes * run.start, codes, done)?;
            let beside = encode::encode_beside(&work.layout, &chosen, self.backend)?;
            self.write_regions(beside, done)?;
        } else {
            codes.clone_into(&mut chosen.codes);
            let regions = encode::encode(&work.layout, &chosen, self.backend)?;
            chosen.codes.clear();
            self.write_regions(regions, done)?;
        }
        (scratch.encoded, scratch.chosen) = (encoded, chosen);
        scratch.output_losses = output_losses;
        Ok(())
    }

    fn transcode(
        &self,
        layout: &QuantizedTensor,
        run: &Range<u64>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let (Reader::Carried(decoder, transcoder), rows) = self.member(run) else {
            return Ok(());
        };
        let tile = decoder.codes(rows)?;
        let (mut carried, _) = transcoder.tile(&tile)?;
        drop(tile);
        carried.rows = run.clone();
        carried.reorder(layout, self.step.rows);
        let regions = encode::encode(layout, &carried, self.backend)?;
        drop(carried);
        self.write_regions(regions, done)
    }

    /// Statistics of one tile.
    pub(crate) fn observe(
        &self,
        span: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Statistics, Error> {
        let mut seen = Statistics::default();
        let Work::Quantize(work) = &self.step.work else {
            return Ok(seen);
        };
        let quantizer = work.matrix(work.matrix_of(span.start)).method.0;
        for run in self.step.runs(span) {
            let values = self.rows(work, &run, scratch)?;
            let rows = self.as_rows(work, &run, values)?;
            let observed = quantizer.observe(&work.target, rows, self.backend);
            seen.merge(&observed.map_err(|e| self.refused(e))?);
        }
        Ok(seen)
    }

    /// Sums of the scales of one tile, one for each block of scales that is quantized as one.
    pub(crate) fn scale_sums(
        &self,
        span: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Vec<f64>, Error> {
        let mut sums = Vec::new();
        let Work::Quantize(work) = &self.step.work else {
            return Ok(sums);
        };
        for run in self.step.runs(span) {
            let values = self.rows(work, &run, scratch)?;
            let rows = self.as_rows(work, &run, values)?;
            let found = scale_sums(&work.target, rows, self.backend);
            sums.extend(found.map_err(|e| self.refused(e))?);
        }
        Ok(sums)
    }

    /// The parts that no tile fills.
    pub(crate) fn constants(&self) -> Result<Done, Error> {
        let mut done = Done::new(self.step);
        if self.start.is_some() {
            self.keep(&mut done)?;
            return Ok(done.finish());
        }
        let Some(layout) = layout_of(self.step) else {
            return Ok(done);
        };
        self.write_regions(encode::constant_regions(layout), &mut done)?;
        if let [Reader::Carried(decoder, _)] = self.readers.as_slice() {
            let region = match decoder.group_index() {
                Some(index) => encode::group_index_region(layout, index),
                None => encode::trivial_index_region(layout),
            };
            if let Some(region) = region {
                self.write_region(&region, &mut done)?;
            }
            for (output, part) in carried_parts(layout) {
                self.carry(decoder.tensor, output, part, &mut done)?;
            }
        }
        Ok(done.finish())
    }

    /// A part that is copied from the source's.
    fn carry(
        &self,
        source: &QuantizedTensor,
        output: usize,
        part: &Part,
        done: &mut Done,
    ) -> Result<(), Error> {
        let from = counterpart(source, part).and_then(|p| self.checkpoint.tensor(&p.name));
        let Some(from) = from else { return Ok(()) };
        let bytes = from.read_all(from.info.len_bytes())?;
        self.write(output, 0, &bytes, done)
    }

    fn as_rows<'v>(
        &self,
        work: &QuantizeWork,
        run: &Range<u64>,
        values: Floats<'v>,
    ) -> Result<Rows<'v>, Error> {
        Ok(Rows {
            values,
            in_features: self.fits(work.layout.in_features())?,
            first_row: run.start,
            out_features: work.layout.out_features(),
            source: work.sources.first().map_or(Float::F32, DenseSource::float),
        })
    }

    /// Rows of a weight to quantize, in the order in which they are written.
    fn rows<'s>(
        &self,
        work: &QuantizeWork,
        run: &Range<u64>,
        scratch: &'s mut Scratch,
    ) -> Result<Floats<'s>, Error> {
        let columns = work.layout.in_features();
        let Scratch { stored, floats, .. } = scratch;
        if work.scaling.is_nothing()
            && let (Reader::Plain(tensor, Some(float)), rows) = self.member(run)
        {
            let row = columns * float.size_bytes() as u64;
            let bytes = stored.lend(self.fits((run.end - run.start) * row)?);
            tensor.read_exact_at(rows.start * row, bytes)?;
            self.reorder(bytes, run);
            return Ok(Floats::Bytes(*float, bytes));
        }
        let values = self.floats(columns, run, stored, floats)?;
        work.scaling.apply(values, run.start, self.fits(columns)?);
        self.reorder(values, run);
        Ok(Floats::F32(values))
    }

    /// Rows as the source has them.
    fn floats<'s>(
        &self,
        columns: u64,
        run: &Range<u64>,
        stored: &mut Buffer<u8>,
        floats: &'s mut Buffer<f32>,
    ) -> Result<&'s mut [f32], Error> {
        let n_values = (run.end - run.start) * columns;
        let values = floats.lend(self.fits(n_values)?);
        match self.member(run) {
            (Reader::Plain(tensor, Some(float)), rows) => {
                let size = float.size_bytes() as u64;
                let bytes = stored.lend(self.fits(n_values * size)?);
                tensor.read_exact_at(rows.start * columns * size, bytes)?;
                (self.backend.widen)(*float, bytes, values);
            }
            (Reader::Quantized(decoder), rows) => decoder.rows(rows, RowsOut::F32(values))?,
            (Reader::Plain(_, None) | Reader::Nothing | Reader::Carried(..), _) => values.fill(0.0),
        }
        Ok(values)
    }

    fn refused(&self, source: safequant_quantize::Error) -> Error {
        Error::Quantize {
            module: self.step.name.clone(),
            source,
        }
    }

    fn fits(&self, n: u64) -> Result<usize, Error> {
        usize::try_from(n).map_err(|_| Error::AddressSpace {
            module: self.step.name.clone(),
            bytes: n,
        })
    }
}

/// Scales of zero, but for those of groups of zeros (ggml gives them such a scale), for integers below a super-scale, to which
/// small groups are rounded by design, and for entries of a table, which an offset is added to.
fn zero_scales(layout: &QuantizedTensor, scales: &[f32], values: Floats<'_>) -> u64 {
    let scheme = &layout.scheme;
    if matches!(
        scheme.scale,
        ScaleCoding::Integer | ScaleCoding::StoredTable
    ) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
