//! The pass itself: tiles of a weight, one after another, each scale counted once.

use std::ops::Range;

use safequant_container::Checkpoint;
use safequant_kernels::Backend;
use safequant_schemes::{CodeTile, Decoder, Error, QuantizedTensor, ScaleCoding};

use super::codes::CodePass;
use super::floats::{self, smallest_normal};
use super::grid::Grid;
use super::{ScaleStatistics, WeightStatistics, padding};
use crate::Depth;

/// Bytes of codes and scales that are held at a time, for each thread.
const TILE_BYTES: u64 = 1 << 20;
/// The same where stored rows are columns of the weight: a tile is read in pieces as short as it has rows.
const TRANSPOSED_TILE_BYTES: u64 = 8 << 20;

/// Reads a weight as far as `depth` asks.
///
/// # Errors
/// I/O, or stored values that no reader accepts.
pub(crate) fn weight(
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
    depth: Depth,
) -> Result<WeightStatistics, Error> {
    let mut tensor = tensor.clone();
    if depth != Depth::Full {
        // Low-rank factors can be as large as the codes.
        tensor.scheme.basis.rank = 0;
    }
    let decoder = Decoder::new(&tensor, checkpoint, Backend::detect())?;
    let grid = Grid::of(&tensor);
    let mut scales = ScaleStatistics::default();
    let mut codes = (depth == Depth::Full).then(|| CodePass::new(&tensor));
    let mut seen = Seen::default();
    let most = most_rows(&tensor, &decoder, depth);
    let per_matrix = tensor.out_features();
    let n_matrices = tensor.n_rows().checked_div(per_matrix).unwrap_or(0);
    for matrix in 0..n_matrices {
        let base = matrix * per_matrix;
        seen.begin_matrix();
        for rows in grid.tiles(per_matrix, most, decoder.row_unit()) {
            let of_stack = base + rows.start..base + rows.end;
            let tile = match codes {
                Some(_) => decoder.codes(of_stack)?,
                None => decoder.scales(of_stack)?,
            };
            if let Some(codes) = &mut codes {
                codes.add(&tile, &grid, rows.start, decoder.group_index());
            }
            let scale_rows = grid.scale_rows(&rows);
            seen.add(&mut scales, &tensor, &grid, &scale_rows, &tile);
        }
    }
    let held = decoder.held();
    for factors in [&held.columns, &held.up, &held.down] {
        scales
            .factors
            .add(factors, (0, u64::MAX), f32::MIN_POSITIVE);
    }
    let mut codes = codes.map(CodePass::finish);
    if let Some(codes) = &mut codes {
        codes.padding = padding::dirt(&tensor, checkpoint)?;
    }
    Ok(WeightStatistics { scales, codes })
}

/// Rows of a matrix that are read at once.
fn most_rows(tensor: &QuantizedTensor, decoder: &Decoder<'_>, depth: Depth) -> u64 {
    let bytes = if tensor.is_transposed() {
        TRANSPOSED_TILE_BYTES
    } else {
        TILE_BYTES
    };
    let per_row = match depth {
        Depth::Full => decoder.scratch_bytes(1),
        Depth::Headers | Depth::Scales => decoder.scale_bytes(1),
    };
    bytes / per_row.max(1)
}

/// What of a matrix has been counted: tiles may need the same scales.
#[derive(Default)]
struct Seen {
    /// Rows of the grid, in this matrix.
    scale_rows: u64,
    /// Second-level scales, in this matrix.
    supers: u64,
    /// Rows of the grid in the matrices before.
    rows_before: u64,
    /// Second-level scales before.
    supers_before: u64,
}

impl Seen {
    fn begin_matrix(&mut self) {
        self.rows_before += self.scale_rows;
        self.supers_before += self.supers;
        self.scale_rows = 0;
        self.supers = 0;
    }

    fn add(
        &mut self,
        statistics: &mut ScaleStatistics,
        tensor: &QuantizedTensor,
        grid: &Grid,
        rows: &Range<u64>,
        tile: &CodeTile,
    ) {
        let columns = grid.columns;
        let skip = self.scale_rows.saturating_sub(rows.start);
        let entries = usize::try_from(skip.saturating_mul(columns)).unwrap_or(usize::MAX);
        let at = self
            .rows_before
            .saturating_add(rows.start.saturating_add(skip));
        let place = (at.saturating_mul(columns), columns);
        let (scales, offsets) = (&mut statistics.scales, &mut statistics.offsets);
        scales.add(rest(&tile.scales, entries), place, smallest(tensor));
        offsets.add(rest(&tile.offsets, entries), place, f32::MIN_POSITIVE);
        statistics.zeros.add(rest(&tile.zeros, entries), place);
        self.scale_rows = self.scale_rows.max(rows.end);
        let supers = grid.supers(rows);
        let skip = self.supers.saturating_sub(supers.start);
        let place = (
            self.supers_before
                .saturating_add(supers.start.saturating_add(skip)),
            1,
        );
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for values in [&tile.supers, &tile.offset_supers] {
            statistics
                .supers
                .add(rest(values, skip), place, f32::MIN_POSITIVE);
        }
        self.supers = self.supers.max(supers.end);
    }
}

/// Entries from this one on.
fn rest<T>(entries: &[T], from: usize) -> &[T] {
    entries.get(from..).unwrap_or(&[])
}

/// The smallest stored scale of full precision.
fn smallest(tensor: &QuantizedTensor) -> f32 {
    match tensor.scheme.scale {
        ScaleCoding::Float(float) => smallest_normal(float),
        ScaleCoding::Minifloat(format) => floats::smallest_normal_minifloat(format),
        ScaleCoding::E8M0(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => 0.0,
    }
}
