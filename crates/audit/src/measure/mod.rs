//! One pass over a weight makes the numbers that all rules and reports look at.
//!
//! Counts, extremes and histograms in constant memory: the pass reads rows in tiles, and what it makes of a matrix of any size is
//! a few kilobytes.

mod codes;
mod floats;
mod zeros;

use std::collections::BTreeMap;
use std::ops::Range;

use safequant_container::Checkpoint;
use safequant_kernels::Backend;
use safequant_schemes::{CodeTile, Decoder, Error, Granularity, QuantizedTensor, ScaleCoding};

pub use codes::CodeStatistics;
pub use floats::{FloatStatistics, smallest_normal};
pub use zeros::ZeroStatistics;

use crate::Depth;

/// How many entries are of a kind, and which is the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occurrences {
    /// How many.
    pub count: u64,
    /// Row and column of the first.
    pub first: Option<[u64; 2]>,
}

impl Occurrences {
    fn note(&mut self, at: [u64; 2]) {
        self.count += 1;
        self.first.get_or_insert(at);
    }
}

/// What the scales of a weight are, and what stands beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaleStatistics {
    /// The stored scales, `[out_groups, in_groups]`, before any second level. Empty where none are stored.
    pub scales: FloatStatistics,
    /// What scales are scaled by.
    pub supers: FloatStatistics,
    /// Float zero points, biases.
    pub offsets: FloatStatistics,
    /// Integer zero points, in unsigned form.
    pub zeros: ZeroStatistics,
}

/// The numbers of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightStatistics {
    /// Of its scales.
    pub scales: ScaleStatistics,
    /// Of its codes, at full depth.
    pub codes: Option<CodeStatistics>,
}

/// The numbers of all weights, by module. A weight that could not be read is missing.
pub type Measured = BTreeMap<String, WeightStatistics>;

/// Bytes of codes and scales that are held at a time.
const TILE_BYTES: u64 = 1 << 20;

/// Reads a weight as far as `depth` asks.
///
/// # Errors
/// I/O, or stored values that no reader accepts.
pub(crate) fn weight(
    tensor: &QuantizedTensor,
    checkpoint: &Checkpoint,
    depth: Depth,
) -> Result<WeightStatistics, Error> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect())?;
    let mut scales = ScaleStatistics::default();
    let mut codes = (depth == Depth::Full).then(CodeStatistics::default);
    let mut place = GridPlace::default();
    for rows in tiles(tensor, &decoder, depth) {
        let tile = match codes {
            Some(_) => decoder.codes(rows)?,
            None => decoder.scales(rows)?,
        };
        scales.add(tensor, &tile, &mut place);
        if let Some(codes) = &mut codes {
            codes.add(tensor, &tile);
        }
    }
    Ok(WeightStatistics { scales, codes })
}

/// Rows of the stack, cut where no group of scales is cut.
fn tiles(
    tensor: &QuantizedTensor,
    decoder: &Decoder<'_>,
    depth: Depth,
) -> impl Iterator<Item = Range<u64>> {
    let per_matrix = tensor.out_features().max(1);
    let unit = match tensor.scheme.granularity {
        // Its scales come with every tile.
        Granularity::Tensor | Granularity::Strided { .. } => per_matrix,
        Granularity::Block { rows, .. } => rows,
        Granularity::Flat { size } => size / gcd(size, tensor.in_features()).max(1),
        Granularity::Channel | Granularity::Group { .. } | Granularity::IndexedGroup { .. } => 1,
    };
    let unit = lcm(unit.max(1), decoder.row_unit().max(1)).min(per_matrix);
    let row_bytes = match depth {
        Depth::Full => decoder.scratch_bytes(1),
        Depth::Headers | Depth::Scales => decoder.scale_bytes(1),
    };
    let step = (TILE_BYTES / row_bytes.max(1) / unit)
        .max(1)
        .saturating_mul(unit);
    let n_matrices = if tensor.n_rows() == 0 {
        0
    } else {
        tensor.n_matrices()
    };
    (0..n_matrices).flat_map(move |matrix| {
        let first = matrix * per_matrix;
        let starts = (0..per_matrix.div_ceil(step)).map(move |i| i * step);
        starts.map(move |row| first + row..first + (row + step).min(per_matrix))
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    (a / gcd(a, b).max(1)).saturating_mul(b)
}

/// How far the grids have been walked.
#[derive(Default)]
struct GridPlace {
    scales: u64,
    supers: u64,
}

impl ScaleStatistics {
    fn add(&mut self, tensor: &QuantizedTensor, tile: &CodeTile, place: &mut GridPlace) {
        let columns = grid_columns(tensor);
        let first = place.scales;
        let smallest = match tensor.scheme.scale {
            ScaleCoding::Float(float) => smallest_normal(float),
            ScaleCoding::Minifloat(format) => floats::smallest_normal_minifloat(format),
            ScaleCoding::E8M0(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => 0.0,
        };
        self.scales.add(&tile.scales, (first, columns), smallest);
        self.offsets
            .add(&tile.offsets, (first, columns), f32::MIN_POSITIVE);
        self.zeros.add(&tile.zeros, (first, columns));
        self.supers
            .add(&tile.supers, (place.supers, 1), f32::MIN_POSITIVE);
        place.scales += tile.scales.len().max(tile.zeros.len()) as u64;
        place.supers += tile.supers.len() as u64;
    }
}

/// Columns of the grid of scales.
fn grid_columns(tensor: &QuantizedTensor) -> u64 {
    let columns = tensor.in_features();
    match tensor.scheme.granularity {
        Granularity::Tensor | Granularity::Channel | Granularity::Flat { .. } => 1,
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            columns.div_ceil(size.max(1))
        }
        Granularity::Block { columns: block, .. } => columns.div_ceil(block.max(1)),
        Granularity::Strided { count } => count,
    }
    .max(1)
}
