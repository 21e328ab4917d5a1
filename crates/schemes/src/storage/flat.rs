//! Codes of a whole matrix, flattened row by row, as one packed run.

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::rows::CodeLayout;
use safequant_kernels::{Backend, Packing};

use super::matrix::{Raw, flat_regions};
use super::{Scratch, grid_of, part_bytes, to_u64, to_usize, wrong_size};
use crate::encode::EncodedRegion;
use crate::{Axis, Code, Error, Part, QuantizedTensor};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Flat {
    packing: Packing,
    rows: usize,
    columns: usize,
    /// Bytes of one matrix.
    matrix_len: u64,
    /// The code that fills the last byte of a matrix: that of zero, as a quantizer of zeros would write it.
    filler: u8,
}

impl Flat {
    pub(super) fn new(
        tensor: &QuantizedTensor,
        part: &Part,
        packing: Packing,
    ) -> Result<Self, Error> {
        let grid = grid_of(tensor, part.role)?;
        let n_codes = grid.rows.saturating_mul(grid.columns);
        let len = packing.packed_len_bytes(n_codes, 1);
        let word = to_usize(&tensor.module, "an element", part.dtype.bits() / 8)?.max(1);
        // The run of the whole matrix is padded to whole elements of the stored dtype.
        let matrix_len = to_u64(len.div_ceil(word).saturating_mul(word));
        let needed = matrix_len.saturating_mul(tensor.n_matrices());
        if part_bytes(part) != Some(needed) {
            return Err(wrong_size(tensor, part, needed));
        }
        Ok(Self {
            packing,
            rows: grid.rows,
            columns: grid.columns,
            matrix_len,
            filler: filler(tensor),
        })
    }

    /// Bytes of a part with this storage.
    pub(super) fn bytes(
        tensor: &QuantizedTensor,
        part: &Part,
        packing: Packing,
    ) -> Result<u64, Error> {
        let grid = grid_of(tensor, part.role)?;
        let len = packing.packed_len_bytes(grid.rows.saturating_mul(grid.columns), 1);
        let word = to_usize(&tensor.module, "an element", part.dtype.bits() / 8)?.max(1);
        let matrix = to_u64(len.div_ceil(word).saturating_mul(word));
        Ok(matrix.saturating_mul(tensor.n_matrices()))
    }

    /// The bytes of some rows of a single matrix, if they begin with a unit.
    pub(super) fn contiguous(&self, axis: Axis, entries: &Range<usize>) -> Option<Range<u64>> {
        let (unit, _) = self.packing.codes_per_unit();
        let (start, end) = (entries.start * self.columns, entries.end * self.columns);
        if axis == Axis::In || !start.is_multiple_of(unit) {
            return None;
        }
        let at = |n: usize| to_u64(self.packing.packed_len_bytes(n, 1));
        Some(at(start)..at(end))
    }

    /// Rows after which the run is at the beginning of a unit.
    pub(super) fn row_unit(&self) -> usize {
        let (unit, _) = self.packing.codes_per_unit();
        unit / greatest_common_divisor(unit, self.columns.max(1))
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        n_rows
            .saturating_mul(to_u64(self.columns))
            .saturating_mul(2)
            .saturating_add(64)
    }

    pub(super) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
    ) -> Result<Vec<u8>, Error> {
        let (unit, _) = self.packing.codes_per_unit();
        let (start, end) = (rows.start * self.columns, rows.end * self.columns);
        let from = start - start % unit;
        let cut = self.packing.packed_len_bytes(from, 1)..self.packing.packed_len_bytes(end, 1);
        let mut run = vec![0; cut.len()];
        tensor.read_exact_at(matrix * self.matrix_len + to_u64(cut.start), &mut run)?;
        let mut codes = vec![0; end - from];
        (backend.unpack)(self.packing, &run, &mut codes);
        codes.drain(..start - from);
        Ok(codes)
    }

    /// Whether rows are whole bytes, so that they can be seen as rows.
    pub(super) fn is_raw(&self) -> bool {
        let (unit, _) = self.packing.codes_per_unit();
        self.columns.is_multiple_of(unit)
    }

    /// The stored bytes of rows, where [`Flat::is_raw`] holds.
    pub(super) fn raw<'s>(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<Raw<'s>, Error> {
        let stride = self.packing.packed_len_bytes(self.columns, 1);
        let bytes = scratch.lend(rows.len() * stride);
        let start = matrix * self.matrix_len + to_u64(rows.start * stride);
        tensor.read_exact_at(start, bytes)?;
        Ok(Raw {
            bytes,
            stride,
            layout: CodeLayout::Rows(self.packing),
        })
    }

    pub(super) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        codes: &[u8],
        backend: &'static Backend,
    ) -> Vec<EncodedRegion> {
        let start = to_u64(self.packing.packed_len_bytes(rows.start * self.columns, 1));
        let mut len = self.packing.packed_len_bytes(codes.len(), 1);
        if rows.end == self.rows {
            len = usize::try_from(self.matrix_len - start).unwrap_or(len);
        }
        let mut run = vec![0; len];
        let (unit, _) = self.packing.codes_per_unit();
        if codes.len().is_multiple_of(unit) {
            (backend.pack)(self.packing, codes, &mut run);
        } else {
            let mut filled = codes.to_vec();
            filled.resize(codes.len().next_multiple_of(unit), self.filler);
            (backend.pack)(self.packing, &filled, &mut run);
        }
        let whole = self.matrix_len.max(1);
        flat_regions(part, whole, matrix * self.matrix_len + start, &run)
    }
}

/// The code of zero in a code book; 0 for other codes.
fn filler(tensor: &QuantizedTensor) -> u8 {
    match tensor.scheme.code {
        Code::Codebook(book) => book.nearest(0.0),
        Code::Integer { .. } | Code::Minifloat(_) | Code::StoredCodebook | Code::Dense(_) => 0,
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}
