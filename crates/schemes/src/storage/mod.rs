//! Where the logical grid of a role (codes, scales, zero points of one matrix) lies in a stored part: which bytes hold some
//! of its rows, and the way between those bytes and one entry per code or element, row-major. One file per kind of storage;
//! no convention, no arithmetic but shifts.

pub(crate) mod blocks;
mod flat;
mod low_high;
mod matrix;
mod planes;
mod sparse;
mod tiled;

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::Backend;

use self::blocks::Blocks;
use self::flat::Flat;
use self::low_high::LowHigh;
use self::matrix::{Matrix, Raw};
use self::planes::InPlanes;
pub(crate) use self::sparse::Sparse;
use self::tiled::Tiled;
use crate::encode::EncodedRegion;
use crate::{
    Axis, Code, Error, Granularity, Kept, Part, QuantizedTensor, Role, Storage, SuperScale,
};

/// Converts a size, or says that this machine cannot address it.
pub(crate) fn to_usize(module: &str, what: &'static str, value: u64) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| Error::TooLarge {
        module: module.to_owned(),
        what,
    })
}

/// `u64` of a `usize`: lossless on every machine Rust supports.
pub(crate) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("usize has at most 64 bits")
}

/// Rows and columns of a grid: `[out-like, in-like]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// Rows and columns of the scales of a matrix.
pub(crate) fn scale_grid(granularity: Granularity, out: u64, columns: u64) -> (u64, u64) {
    match granularity {
        Granularity::Tensor => (1, 1),
        Granularity::Channel => (out, 1),
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            (out, columns.div_ceil(size.max(1)))
        }
        Granularity::Block {
            rows,
            columns: width,
        } => (out.div_ceil(rows.max(1)), columns.div_ceil(width.max(1))),
        Granularity::Flat { size } => (out.saturating_mul(columns).div_ceil(size.max(1)), 1),
        Granularity::Strided { count } => (1, count),
    }
}

/// Rows and columns of the super-scales of a matrix with such a grid of scales.
fn super_grid(kind: SuperScale, out: u64, scales: (u64, u64)) -> (u64, u64) {
    match kind {
        SuperScale::None | SuperScale::Multiply | SuperScale::Divide => (1, 1),
        SuperScale::Nested { size, offset: _ } => {
            (scales.0.saturating_mul(scales.1).div_ceil(size.max(1)), 1)
        }
        SuperScale::Grouped { size } => (scales.0, scales.1.div_ceil(size.max(1))),
        SuperScale::Channel => (out, 1),
    }
}

/// The grid of a role in one matrix of `tensor`.
pub(crate) fn grid_of(tensor: &QuantizedTensor, role: Role) -> Result<Grid, Error> {
    let (out, columns) = (tensor.out_features(), tensor.in_features());
    let scales = scale_grid(tensor.scheme.granularity, out, columns);
    let (rows, columns) = match role {
        Role::Codes | Role::Mask => (out, columns),
        Role::RowStart => (out, 1),
        Role::Scale | Role::ZeroPoint | Role::Offset => scales,
        Role::SuperScale => super_grid(tensor.scheme.super_scale, out, scales),
        Role::LowRankUp => (out, tensor.scheme.basis.rank),
        Role::LowRankDown => (columns, tensor.scheme.basis.rank),
        Role::ColumnFactor | Role::GroupIndex => (1, columns),
        Role::Codebook => (1, 16),
        Role::ScaleTable => (1, 256),
        Role::Shape | Role::Auxiliary => (1, 1),
    };
    Ok(Grid {
        rows: to_usize(&tensor.module, "the grid", rows)?,
        columns: to_usize(&tensor.module, "the grid", columns)?,
    })
}

/// The grid that lies in a part: that of its role, or what is kept of it in a sparse tensor.
pub(crate) fn part_grid(tensor: &QuantizedTensor, part: &Part) -> Result<Grid, Error> {
    let grid = grid_of(tensor, part.role)?;
    let [rows, columns] = sparse::kept_grid(tensor, part, [grid.rows, grid.columns])?;
    Ok(Grid { rows, columns })
}

/// The stored grid of a part: the logical one, or what the part says if that is larger.
fn extent_of(tensor: &QuantizedTensor, part: &Part, grid: Grid) -> Result<Grid, Error> {
    let Some([rows, columns]) = part.extent else {
        return Ok(grid);
    };
    let extent = Grid {
        rows: to_usize(&tensor.module, "the stored grid", rows)?,
        columns: to_usize(&tensor.module, "the stored grid", columns)?,
    };
    if extent.rows >= grid.rows && extent.columns >= grid.columns {
        return Ok(extent);
    }
    Err(Error::PartShape {
        module: tensor.module.clone(),
        part: part.name.clone(),
        expected: format!("at least [{}, {}] entries", grid.rows, grid.columns),
        found: vec![rows, columns],
    })
}

/// Rows of the scale grid that rows `rows` of a matrix with `in_features` columns need.
pub(crate) fn scale_rows(
    granularity: Granularity,
    rows: &Range<usize>,
    in_features: usize,
) -> Range<usize> {
    match granularity {
        Granularity::Tensor | Granularity::Strided { .. } => 0..usize::from(!rows.is_empty()),
        Granularity::Channel | Granularity::Group { .. } | Granularity::IndexedGroup { .. } => {
            rows.clone()
        }
        Granularity::Block { rows: block, .. } => {
            let block = usize::try_from(block.max(1)).unwrap_or(usize::MAX);
            rows.start / block..rows.end.div_ceil(block)
        }
        Granularity::Flat { size } => {
            let size = usize::try_from(size.max(1)).unwrap_or(usize::MAX);
            let at = |row: usize| row.saturating_mul(in_features);
            at(rows.start) / size..at(rows.end).div_ceil(size)
        }
    }
}

/// Rows of the grid of super-scales that rows `scales` of a scale grid with `columns` columns need.
pub(crate) fn super_rows(kind: SuperScale, scales: &Range<usize>, columns: usize) -> Range<usize> {
    match kind {
        SuperScale::None => 0..0,
        SuperScale::Multiply | SuperScale::Divide => 0..usize::from(!scales.is_empty()),
        SuperScale::Nested { size, offset: _ } => {
            let size = usize::try_from(size.max(1)).unwrap_or(usize::MAX);
            let at = |row: usize| row.saturating_mul(columns);
            at(scales.start) / size..at(scales.end).div_ceil(size)
        }
        SuperScale::Grouped { .. } | SuperScale::Channel => scales.clone(),
    }
}

/// Cuts rows of a stack where its matrices end: `(matrix, rows of that matrix)`.
pub(crate) fn segments(
    module: &str,
    rows: &Range<u64>,
    out_features: u64,
) -> Result<Vec<(u64, Range<usize>)>, Error> {
    let mut found = Vec::new();
    let mut at = rows.start;
    while at < rows.end && out_features > 0 {
        let matrix = at / out_features;
        let end = ((matrix + 1) * out_features).min(rows.end);
        let base = matrix * out_features;
        let local = to_usize(module, "a row", at - base)?..to_usize(module, "a row", end - base)?;
        found.push((matrix, local));
        at = end;
    }
    Ok(found)
}

/// Adds a constant to whole words: GPTQ v1 as GPTQModel writes it (gptq.md, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WordShift {
    /// As stored.
    None,
    /// The constant `0..01` repeated in every lane of this many bits.
    PerLane(u32),
}

/// Bytes of an entry of a role as [`Stored::read`] gives it: 1 for codes, the element's for others.
fn entry_bytes(tensor: &QuantizedTensor, part: &Part) -> usize {
    let is_code = part.role == Role::Codes && !matches!(tensor.scheme.code, Code::Dense(_));
    if is_code {
        return 1;
    }
    usize::try_from(part.dtype.bits() / 8).unwrap_or(1).max(1)
}

/// Memory for stored bytes that goes from tile to tile, so that none waits for fresh pages or clears what is overwritten.
#[derive(Debug, Default)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// So many bytes, of any value.
    pub(crate) fn lend(&mut self, n: usize) -> &mut [u8] {
        if self.0.len() < n {
            // What is held goes first: it is neither kept nor copied.
            self.0 = Vec::new();
            self.0 = vec![0; n];
        }
        &mut self.0[..n]
    }
}

/// Where the grids of a stack lie in a part; lengths checked against the header.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    Matrix(Matrix),
    Tiled(Tiled),
    Flat(Flat),
    Planes(InPlanes),
    LowHigh(LowHigh),
    Blocks(Blocks),
}

impl Stored {
    /// Resolves a part's storage.
    ///
    /// # Errors
    /// [`Error::PartShape`] if the header's shape does not hold the grids exactly.
    pub(crate) fn new(tensor: &QuantizedTensor, part: &Part) -> Result<Self, Error> {
        Ok(match part.storage {
            Storage::Elements { .. }
            | Storage::SharedElements { .. }
            | Storage::Common
            | Storage::Packed { .. }
            | Storage::PackedConstant { .. }
            | Storage::Vector
            | Storage::Sparse {
                kept: Kept::Rows { .. } | Kept::Ragged,
            } => Self::Matrix(Matrix::new(tensor, part)?),
            Storage::Tiled { tile }
            | Storage::Sparse {
                kept: Kept::Tiles { tile, .. },
            } => Self::Tiled(Tiled::new(tensor, part, tile)?),
            Storage::LowHigh { low, high } => Self::LowHigh(LowHigh::new(tensor, part, low, high)?),
            Storage::Flat { packing } => Self::Flat(Flat::new(tensor, part, packing)?),
            Storage::Blocks { format } => Self::Blocks(Blocks::new(tensor, part, format)?),
            Storage::Planes { planes, len } => {
                Self::Planes(InPlanes::new(tensor, part, planes, len)?)
            }
        })
    }

    /// The bytes of rows (or columns) `entries` of a single matrix's grid, all columns (or rows) of them, if they lie
    /// together.
    pub(crate) fn contiguous(&self, axis: Axis, entries: &Range<usize>) -> Option<Range<u64>> {
        match self {
            Self::Matrix(m) => m.contiguous(axis, entries),
            Self::Tiled(t) => t.contiguous(axis, entries),
            Self::Flat(f) => f.contiguous(axis, entries),
            Self::Planes(_) | Self::LowHigh(_) => None,
            Self::Blocks(b) => b.contiguous(axis, entries),
        }
    }

    /// Whether backends can decode rows from the bytes themselves.
    pub(crate) fn is_raw(&self) -> bool {
        match self {
            Self::Matrix(m) => m.is_raw(),
            Self::Flat(f) => f.is_raw(),
            Self::Tiled(_) | Self::Planes(_) | Self::LowHigh(_) | Self::Blocks(_) => false,
        }
    }

    /// The stored bytes of rows of one matrix, where [`Stored::is_raw`] holds and they begin with a unit of the packing.
    pub(crate) fn raw<'s>(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<Option<Raw<'s>>, Error> {
        match self {
            Self::Matrix(m) => m.raw(tensor, matrix, rows, scratch),
            Self::Flat(f) => f.raw(tensor, matrix, rows, scratch).map(Some),
            Self::Tiled(_) | Self::Planes(_) | Self::LowHigh(_) | Self::Blocks(_) => Ok(None),
        }
    }

    /// Rows of one matrix between two places where a stored word begins.
    pub(crate) fn row_unit(&self) -> usize {
        match self {
            Self::Matrix(m) => m.row_unit(),
            Self::Tiled(t) => t.row_unit(),
            Self::Flat(f) => f.row_unit(),
            Self::Planes(_) | Self::LowHigh(_) | Self::Blocks(_) => 1,
        }
    }

    /// As [`Stored::row_unit`], for writing.
    pub(crate) fn write_unit(&self) -> usize {
        match self {
            Self::Matrix(_)
            | Self::Tiled(_)
            | Self::Flat(_)
            | Self::LowHigh(_)
            | Self::Blocks(_) => self.row_unit(),
            Self::Planes(p) => p.write_unit(),
        }
    }

    /// Upper bound of the bytes that [`Stored::read`] allocates for `n_rows` rows, the result included.
    pub(crate) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        match self {
            Self::Matrix(m) => m.scratch_bytes(n_rows),
            Self::Tiled(t) => t.scratch_bytes(n_rows),
            Self::Flat(f) => f.scratch_bytes(n_rows),
            Self::Planes(p) => p.scratch_bytes(n_rows),
            Self::LowHigh(l) => l.scratch_bytes(n_rows),
            Self::Blocks(b) => b.scratch_bytes(n_rows),
        }
    }

    /// Reads rows `rows` of one matrix, row-major: one code per byte, or the bytes of the elements.
    pub(crate) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
        shift: WordShift,
    ) -> Result<Vec<u8>, Error> {
        match self {
            Self::Matrix(m) => m.read(tensor, matrix, rows, backend, shift),
            Self::Tiled(t) => t.read(tensor, matrix, rows, backend),
            Self::Flat(f) => f.read(tensor, matrix, rows, backend),
            Self::Planes(p) => p.read(tensor, matrix, rows, backend),
            Self::LowHigh(l) => l.read(tensor, matrix, rows, backend),
            Self::Blocks(b) => b.read(tensor, matrix, rows),
        }
    }

    /// The bytes that rows `rows` of one matrix become; `entries` as [`Stored::read`] gives them.
    pub(crate) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        entries: &[u8],
        backend: &'static Backend,
        shift: WordShift,
    ) -> Vec<EncodedRegion> {
        match self {
            Self::Matrix(m) => m.write(part, matrix, rows, entries, backend, shift),
            Self::Tiled(t) => t.write(part, matrix, rows, entries, backend),
            Self::Flat(f) => f.write(part, matrix, rows, entries, backend),
            Self::Planes(p) => p.write(part, matrix, rows, entries, backend),
            Self::LowHigh(l) => l.write(part, matrix, rows, entries, backend),
            // Blocks hold more than entries: `encode` writes them from the whole tile.
            Self::Blocks(_) => Vec::new(),
        }
    }
}

/// The shape that a part has by its storage: for parts that are made, not found.
///
/// # Errors
/// A size that this machine cannot address.
pub(crate) fn shape_of(tensor: &QuantizedTensor, part: &Part) -> Result<Vec<u64>, Error> {
    let flat = |bytes: u64| {
        let word = (part.dtype.bits() / 8).max(1);
        vec![bytes.div_ceil(word)]
    };
    match part.storage {
        Storage::Elements { .. }
        | Storage::SharedElements { .. }
        | Storage::Packed { .. }
        | Storage::PackedConstant { .. }
        | Storage::Sparse {
            kept: Kept::Rows { .. } | Kept::Ragged,
        }
        | Storage::Common
        | Storage::Vector => Matrix::shape(tensor, part),
        Storage::Tiled { tile }
        | Storage::Sparse {
            kept: Kept::Tiles { tile, .. },
        } => Ok(flat(Tiled::bytes(tensor, part, tile)?)),
        Storage::Flat { packing } => Ok(flat(Flat::bytes(tensor, part, packing)?)),
        Storage::LowHigh { low, high } => Ok(flat(LowHigh::bytes(tensor, part, low, high)?)),
        Storage::Blocks { format } => Blocks::shape(tensor, part, format),
        Storage::Planes { planes, len } => {
            let words = len.saturating_mul(to_u64(planes.word_bytes()));
            Ok(flat(words.saturating_mul(tensor.n_matrices())))
        }
    }
}

/// Whether the trailing dimensions of a shape make up a row of `row` elements.
fn ends_with(shape: &[u64], row: u64) -> bool {
    let mut n = 1_u64;
    for &dimension in shape.iter().rev() {
        n = n.saturating_mul(dimension);
        if n >= row {
            return n == row;
        }
    }
    n == row
}

/// The error for a part whose bytes are not those that its storage needs.
fn wrong_size(tensor: &QuantizedTensor, part: &Part, needed: u64) -> Error {
    Error::PartShape {
        module: tensor.module.clone(),
        part: part.name.clone(),
        expected: format!("{needed} bytes"),
        found: part.shape.clone(),
    }
}

/// Bytes of a part by its header.
fn part_bytes(part: &Part) -> Option<u64> {
    let n = part
        .shape
        .iter()
        .try_fold(1_u64, |n, &d| n.checked_mul(d))?;
    part.dtype.size_bytes(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_where_matrices_end() {
        let cut = segments("m", &(3..9), 4).unwrap();
        assert_eq!(cut, [(0, 3..4), (1, 0..4), (2, 0..1)]);
        assert_eq!(segments("m", &(0..3), 0).unwrap(), []);
    }

    #[test]
    fn trailing_dimensions_make_up_a_row() {
        assert!(ends_with(&[2, 8, 16], 16));
        assert!(ends_with(&[2, 8, 16], 128));
        assert!(!ends_with(&[2, 8, 16], 32));
        assert!(ends_with(&[], 1));
    }

    #[test]
    fn flat_groups_of_rows_overlap_at_the_edges() {
        let flat = Granularity::Flat { size: 64 };
        assert_eq!(scale_rows(flat, &(0..1), 96), 0..2);
        assert_eq!(scale_rows(flat, &(1..2), 96), 1..3);
        assert_eq!(scale_grid(flat, 2, 96), (3, 1));
    }
}
