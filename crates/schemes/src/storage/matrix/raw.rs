//! Stored bytes of rows as they are, for backends that decode them in one go.

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::Packing;
use safequant_kernels::rows::CodeLayout;

use super::Matrix;
use crate::storage::Scratch;
use crate::{Axes, Axis, Error};

/// Stored bytes of some rows, as backends decode them.
pub(crate) struct Raw<'s> {
    pub(crate) bytes: &'s [u8],
    /// Bytes from one line to the next.
    pub(crate) stride: usize,
    pub(crate) layout: CodeLayout,
}

impl Matrix {
    /// Whether codes are stored so that backends decode rows from the bytes themselves.
    pub(crate) fn is_raw(&self) -> bool {
        match (self.packing, self.axes) {
            (None, Axes::OutIn) => self.word == 1,
            (None, Axes::InOut) | (Some((_, Axis::Out)), Axes::OutIn) => false,
            (Some((_, Axis::In)), Axes::OutIn) | (Some((_, Axis::Out)), Axes::InOut) => true,
            (Some((_, Axis::In)), Axes::InOut) => self.word == 4,
        }
    }

    /// The stored bytes of rows `rows` of one matrix, for a matrix that [`Matrix::is_raw`]; `None` where they begin within a
    /// unit of the packing.
    pub(crate) fn raw<'s>(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<Option<Raw<'s>>, Error> {
        let (packing, along) = self.packing.unwrap_or((Packing::Bytes, Axis::In));
        let (lines, cut, layout) = match (self.axes, along) {
            (Axes::OutIn, _) => (rows.clone(), 0..self.row_len, CodeLayout::Rows(packing)),
            (Axes::InOut, Axis::In) => (
                0..self.n_stored_rows,
                rows.start * self.word..rows.end * self.word,
                CodeLayout::WordsOfRows(packing),
            ),
            (Axes::InOut, Axis::Out) if rows.start.is_multiple_of(self.row_unit()) => (
                0..self.grid.columns,
                packing.packed_len_bytes(rows.start, self.word)
                    ..packing.packed_len_bytes(rows.end, self.word),
                CodeLayout::Columns(packing),
            ),
            (Axes::InOut, Axis::Out) => return Ok(None),
        };
        let matrix = matrix.min(self.n_matrices.saturating_sub(1));
        let stride = cut.len();
        // The codes of other modules never lie before these.
        debug_assert_eq!(self.base, 0, "codes are not shared");
        let bytes = scratch.lend(lines.len() * stride);
        self.rectangle_into(tensor, matrix, (lines, cut), bytes)?;
        Ok(Some(Raw {
            bytes,
            stride,
            layout,
        }))
    }
}
