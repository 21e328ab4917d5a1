//! How large tiles are, so that everything in flight stays within the memory budget (docs/adr/0005-rewrite-engine.md).

use safequant_container::Checkpoint;
use safequant_kernels::Backend;
use safequant_quantize::RowWork;
use safequant_schemes::{Decoder, Granularity, QuantizedTensor, RowOrder, Storage, Values, encode};

use crate::Error;
use crate::steps::{DenseSource, QuantizeWork, Step, Work};
use crate::subtree::GATHER_BYTES;

/// Buffer for reading tensors back and for copying documents, set aside from every budget.
pub(crate) const SIDE_BUFFER_BYTES: u64 = 256 << 10;
/// Cap of a tile's floats where output is contiguous: beyond it nothing gets faster.
const CONTIGUOUS_TILE_BYTES: u64 = 4 << 20;
/// Cap of a run's floats there: with what is read, computed and written beside them they fill a core's cache.
const RUN_BYTES: u64 = 256 << 10;
/// Cap where stored rows are columns of the weight (GPTQ): the runs written or read are as long as a tile has rows.
const STRIDED_TILE_BYTES: u64 = 32 << 20;
/// Cap of a tile that is copied.
const COPY_TILE_BYTES: u64 = 2 << 20;
/// Least budget of a tile that is copied.
const MIN_COPY_BYTES: u64 = 4 << 10;
/// What a row lost, as a tile keeps it.
const LOSS_BYTES: u64 = (size_of::<safequant_quantize::Loss>()
    + 2 * size_of::<safequant_quantize::OutputLoss>()) as u64;
/// Bookkeeping of a tile in flight.
const TILE_OVERHEAD_BYTES: u64 = 4 << 10;

/// How a step is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Rows per tile; bytes per tile for a copy.
    pub(crate) per_tile: u64,
    /// Rows (or bytes) of a tile that are worked off at once.
    pub(crate) per_run: u64,
    /// Bytes of buffers of the largest tile.
    pub(crate) need_bytes: u64,
}

/// What all tiles may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The user's number.
    pub(crate) memory_bytes: u64,
    /// Worker threads.
    pub(crate) threads: usize,
    /// Most tiles in flight: enough that no worker waits for the thread that orders them.
    pub(crate) slots: u64,
}

impl Budget {
    pub(crate) fn new(memory_bytes: u64, threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        };
        Self {
            memory_bytes,
            threads,
            slots: 2 * threads as u64,
        }
    }

    /// The worker threads.
    ///
    /// # Errors
    /// [`Error::Threads`] if the system has none to give.
    pub(crate) fn pool(&self) -> Result<rayon::ThreadPool, Error> {
        let threads = self.threads;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(|source| Error::Threads { threads, source })
    }

    /// Bytes for tiles.
    pub(crate) fn for_tiles(&self) -> u64 {
        self.memory_bytes.saturating_sub(SIDE_BUFFER_BYTES)
    }

    /// Bytes for one tile, if as many as there are slots are to fit.
    pub(crate) fn share(&self) -> u64 {
        self.for_tiles() / self.slots
    }

    /// Tiles of a step that fit at once, no more than there are threads for.
    pub(crate) fn width(&self, step: &Step) -> u64 {
        let need = step.tiling.need_bytes.max(1);
        (self.for_tiles() / need).clamp(1, self.threads as u64)
    }

    /// Bytes of buffers at the peak of a job.
    pub(crate) fn peak_bytes(&self, steps: &[Step]) -> u64 {
        let largest = steps.iter().map(|s| s.tiling.need_bytes).max().unwrap_or(0);
        let tiles = largest.saturating_mul(self.slots).min(self.for_tiles());
        tiles + SIDE_BUFFER_BYTES
    }

    /// Cuts every step.
    ///
    /// # Errors
    /// [`Error::MemoryTooSmall`] for the step that needs most, so that raising the budget once is enough; or a group index
    /// that cannot be read.
    pub(crate) fn cut(&self, steps: &mut [Step], checkpoint: &Checkpoint) -> Result<(), Error> {
        let mut most: Option<(u64, Error)> = None;
        for step in steps {
            match self.tiling(step, checkpoint) {
                Ok(tiling) => step.tiling = tiling,
                Err(error) => {
                    let Error::MemoryTooSmall { needed_bytes, .. } = error else {
                        return Err(error);
                    };
                    if most.as_ref().is_none_or(|(n, _)| needed_bytes > *n) {
                        most = Some((needed_bytes, error));
                    }
                }
            }
        }
        most.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn tiling(&self, step: &Step, checkpoint: &Checkpoint) -> Result<Tiling, Error> {
        match &step.work {
            Work::Drop => Ok(Tiling::default()),
            Work::Copy => self.copy_tiling(step),
            Work::Content(bytes) => {
                let need = 2 * bytes.len() as u64 + overhead(step);
                self.checked(step, (1, 1), need)
            }
            Work::Dense(work) => {
                let decoder = decoder_of(work.sources.first(), checkpoint)?;
                let [_, rows, columns] = work.shape;
                let row = columns * work.float.size_bytes() as u64;
                let changed = match work.values {
                    Values::Same => 0,
                    Values::PlusOne => 4 * columns,
                };
                let casts = match work.sources.first() {
                    Some(DenseSource::Plain(_, from)) if *from != work.float => 8 * columns,
                    Some(DenseSource::Plain(..) | DenseSource::Quantized(_)) | None => 0,
                };
                let needs = Needs {
                    rows_wanted: 0,
                    fixed: 0,
                    per_row: row + changed + casts + reordered(step, row),
                    floats_per_row: row,
                    unit: decoder.as_ref().map_or(1, Decoder::row_unit),
                    is_strided: decoder.as_ref().is_some_and(|d| d.tensor.is_transposed()),
                    decoder: decoder.as_ref(),
                };
                self.rows_tiling(step, rows, &needs)
            }
            Work::Transcode(work) => {
                let layout = &work.layout;
                let source = work.members.first().map_or(layout, |member| &member.source);
                let decoder = Decoder::new(source, checkpoint, Backend::detect())?;
                let carried = step.output_bytes().div_ceil(layout.n_rows().max(1));
                let codes = layout.in_features() * encode::code_bytes(layout);
                let needs = Needs {
                    rows_wanted: 0,
                    fixed: constant_bytes(layout),
                    // Codes before and after, scales with their places, encoded bytes twice.
                    per_row: 3 * codes
                        + decoder.scale_bytes(1)
                        + 48 * groups_per_row(layout)
                        + 2 * carried
                        + reordered(step, codes),
                    floats_per_row: codes,
                    unit: common_multiple(
                        encode::row_unit(layout),
                        common_multiple(encode::row_unit(source), decoder.row_unit()),
                    ),
                    decoder: Some(&decoder),
                    is_strided: source.is_transposed() || layout.is_transposed(),
                };
                self.rows_tiling(step, layout.out_features(), &needs)
            }
            Work::Quantize(work) => {
                let layout = &work.layout;
                let unit = encode::row_unit(layout);
                let columns = layout.in_features();
                let beside = row_work(work);
                let own = row_bytes(step, layout) + reordered(step, 4 * columns);
                let mut needs = Needs {
                    rows_wanted: beside
                        .n_rows
                        .min(layout.out_features().div_ceil(self.threads as u64)),
                    fixed: constant_bytes(layout),
                    per_row: own.saturating_add(beside.bytes_per_row),
                    floats_per_row: 4 * columns,
                    unit,
                    decoder: None,
                    is_strided: layout.is_transposed(),
                };
                if let Some(DenseSource::Plain(_, float)) = work.sources.first() {
                    needs.per_row += columns * float.size_bytes() as u64;
                }
                let decoder = match &work.start {
                    None => decoder_of(work.sources.first(), checkpoint)?,
                    Some(_) => Some(Decoder::new(layout, checkpoint, Backend::detect())?),
                };
                if let Some(decoder) = &decoder {
                    needs.per_row += decoder.scale_bytes(1);
                    needs.unit = common_multiple(unit, decoder.row_unit());
                    needs.is_strided |= decoder.tensor.is_transposed();
                    needs.decoder = Some(decoder);
                }
                self.rows_tiling(step, layout.out_features(), &needs)
            }
        }
    }

    fn copy_tiling(&self, step: &Step) -> Result<Tiling, Error> {
        let cap = self.share().saturating_sub(overhead(step)).min(RUN_BYTES);
        let per_run = step.source_bytes.min(cap.max(MIN_COPY_BYTES)).max(1);
        let runs = (COPY_TILE_BYTES / per_run).max(1);
        self.checked(step, (per_run, runs), per_run + overhead(step))
    }

    fn rows_tiling(&self, step: &Step, n_rows: u64, needs: &Needs<'_>) -> Result<Tiling, Error> {
        let limit = n_rows.max(1);
        let unit = common_multiple(needs.unit, step.rows.unit(n_rows).unwrap_or(limit));
        let (run_cap, tile_cap) = if needs.is_strided {
            (STRIDED_TILE_BYTES, STRIDED_TILE_BYTES)
        } else {
            (RUN_BYTES, CONTIGUOUS_TILE_BYTES)
        };
        let need = |rows| needs.bytes(rows).saturating_add(overhead(step));
        let floats = |rows: u64| rows.saturating_mul(needs.floats_per_row);
        let mut rows = unit.clamp(1, limit);
        loop {
            let next = rows.saturating_mul(2).min(limit);
            let is_enough = floats(next) > run_cap && rows >= needs.rows_wanted;
            if next == rows || need(next) > self.share() || is_enough {
                break;
            }
            rows = next;
        }
        // A tile keeps the losses of its rows until it is done.
        let losses = rows.saturating_mul(LOSS_BYTES);
        let affordable = self.share().saturating_sub(need(rows)) / losses;
        let tile_cap = if needs.rows_wanted > 0 { 0 } else { tile_cap };
        let runs = (tile_cap / floats(rows).max(1)).min(limit.div_ceil(rows));
        let runs = runs.min(1 + affordable).max(1);
        self.checked(step, (rows, runs), need(rows) + (runs - 1) * losses)
    }

    fn checked(&self, step: &Step, runs: (u64, u64), need_bytes: u64) -> Result<Tiling, Error> {
        if need_bytes > self.for_tiles() {
            return Err(Error::MemoryTooSmall {
                module: step.name.clone(),
                needed_bytes: need_bytes.saturating_add(SIDE_BUFFER_BYTES),
                budget_bytes: self.memory_bytes,
            });
        }
        let (per_run, n_runs) = runs;
        Ok(Tiling {
            per_tile: per_run.saturating_mul(n_runs),
            per_run,
            need_bytes,
        })
    }
}

/// What a tile of a step holds at once.
struct Needs<'a> {
    /// Rows that are best worked off together, whatever a cache holds; 0 if any number is as good. Work on so many takes so long
    /// that they are a tile of their own.
    rows_wanted: u64,
    /// Bytes that do not depend on the rows.
    fixed: u64,
    /// Bytes per row, without the decoder's scratch.
    per_row: u64,
    /// Bytes per row that the cap of a tile is about.
    floats_per_row: u64,
    /// Rows that cannot be cut.
    unit: u64,
    decoder: Option<&'a Decoder<'a>>,
    is_strided: bool,
}

impl Needs<'_> {
    fn bytes(&self, rows: u64) -> u64 {
        let scratch = self.decoder.map_or(0, |d| d.scratch_bytes(rows));
        rows.saturating_mul(self.per_row)
            .saturating_add(self.fixed)
            .saturating_add(scratch)
    }
}

/// Bookkeeping of a tile, and what it gathers of each output until it is digested.
fn overhead(step: &Step) -> u64 {
    let gathered = step.outputs.iter().map(|o| o.len_bytes.min(GATHER_BYTES));
    TILE_OVERHEAD_BYTES + gathered.sum::<u64>()
}

/// The decoder of a source that is quantized.
fn decoder_of<'a>(
    source: Option<&'a DenseSource>,
    checkpoint: &'a Checkpoint,
) -> Result<Option<Decoder<'a>>, Error> {
    match source {
        Some(DenseSource::Quantized(tensor)) => {
            Ok(Some(Decoder::new(tensor, checkpoint, Backend::detect())?))
        }
        Some(DenseSource::Plain(..)) | None => Ok(None),
    }
}

/// The copy of a row that is needed to put rows in another order.
fn reordered(step: &Step, row_bytes: u64) -> u64 {
    match step.rows {
        RowOrder::Same => 0,
        RowOrder::AlternatingHalves { .. } | RowOrder::GatheredHalves { .. } => row_bytes,
    }
}

/// Floats of a row, what they became (for the loss), codes with a copy and a rearranged one, scales and zeros, encoded
/// bytes and their share of a second copy, and the row's loss.
fn row_bytes(step: &Step, layout: &QuantizedTensor) -> u64 {
    let columns = layout.in_features();
    let encoded = step.output_bytes().div_ceil(layout.n_rows().max(1));
    // A scale and a zero point are 8 bytes per group.
    (4 + 4 + 1 + 1 + 1) * columns + 8 * groups_per_row(layout) + 2 * encoded + LOSS_BYTES
}

/// What the quantizers of a step's matrices want and hold.
fn row_work(work: &QuantizeWork) -> RowWork {
    let columns = work.layout.in_features();
    let each = work
        .matrices
        .iter()
        .map(|m| m.method.0.work(&work.target, columns));
    each.fold(RowWork::default(), |a, b| RowWork {
        n_rows: a.n_rows.max(b.n_rows),
        bytes_per_row: a.bytes_per_row.max(b.bytes_per_row),
    })
}

fn groups_per_row(layout: &QuantizedTensor) -> u64 {
    let size = match layout.scheme.granularity {
        Granularity::Tensor | Granularity::Channel => return 1,
        Granularity::Group { size }
        | Granularity::IndexedGroup { size }
        | Granularity::Block { columns: size, .. }
        | Granularity::Flat { size } => size,
        Granularity::Strided { count } => return count,
    };
    layout.in_features().div_ceil(size.max(1))
}

/// Bytes of the parts that are written whole, once per module.
fn constant_bytes(layout: &QuantizedTensor) -> u64 {
    let constant = layout.parts.iter().map(|part| match part.storage {
        Storage::PackedConstant { .. } | Storage::Vector => part
            .dtype
            .size_bytes(part.shape.iter().product())
            .unwrap_or(0),
        Storage::Elements { .. }
        | Storage::Packed { .. }
        | Storage::SharedElements { .. }
        | Storage::Tiled { .. }
        | Storage::Flat { .. }
        | Storage::Sparse { .. }
        | Storage::Common
        | Storage::LowHigh { .. }
        | Storage::Planes { .. }
        | Storage::Blocks { .. } => 0,
    });
    constant.sum()
}

fn common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a.max(1) / x).saturating_mul(b.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_two_layouts_have_a_common_multiple() {
        assert_eq!(common_multiple(8, 32), 32);
        assert_eq!(common_multiple(6, 4), 12);
        assert_eq!(common_multiple(0, 0), 1);
        assert_eq!(common_multiple(u64::MAX, 2), u64::MAX);
    }
}
