//! Rows of a sparse tensor as they are kept.

use std::ops::Range;

use crate::storage::Sparse;
use crate::{CodeTile, Error, QuantizedTensor};

/// What is stored of some rows.
pub(super) struct KeptRows {
    /// Rows of the kept grid.
    pub(super) rows: Range<usize>,
    /// Codes in unsigned form, only those that are stored.
    pub(super) codes: Vec<u8>,
    /// Entries of the mask part.
    pub(super) mask: Vec<u8>,
    /// Entries of the part with the starts, where there is one.
    pub(super) starts: Vec<u8>,
}

impl KeptRows {
    /// Rows `rows` of the matrix, which are rows `at` of the tile.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the tile does not say which codes are stored, [`Error::SparseRow`] if it does not fit.
    pub(super) fn new(
        sparse: &Sparse,
        tensor: &QuantizedTensor,
        tile: &CodeTile,
        rows: &Range<usize>,
        at: Range<usize>,
    ) -> Result<Self, Error> {
        let n_rows = at.len().max(1);
        let columns = tile.marks.len() / usize::max(tile_rows(tile), 1);
        let width = tile.codes.len().checked_div(tile.marks.len()).unwrap_or(0);
        let missing = || Error::MissingPart {
            module: tensor.module.clone(),
            part: "which codes are stored, to write them sparse".to_owned(),
        };
        let marks = tile
            .marks
            .get(at.start * columns..at.end * columns)
            .filter(|m| m.len() / n_rows == sparse.columns() && width > 0)
            .ok_or_else(missing)?;
        let mut starts = Vec::new();
        if sparse.has_starts() {
            starts.extend_from_slice(tile.starts.get(at.clone()).ok_or_else(missing)?);
            let last = &marks[marks.len() - columns..];
            let marked: u64 = last.iter().map(|&mark| u64::from(mark)).sum();
            let end = starts.last().map_or(0, |s| s.saturating_add(marked));
            starts.push(end);
        }
        let kept = sparse.kept_rows(tensor, rows, marks, &starts)?;
        starts.truncate(at.len());
        let codes = &tile.codes[at.start * columns * width..at.end * columns * width];
        Ok(Self {
            rows: kept,
            codes: sparse.gather(codes, marks),
            mask: sparse.mask(tensor, rows, marks)?,
            starts: starts.iter().flat_map(|s| s.to_le_bytes()).collect(),
        })
    }
}

fn tile_rows(tile: &CodeTile) -> usize {
    usize::try_from(tile.rows.end.saturating_sub(tile.rows.start)).unwrap_or(usize::MAX)
}
