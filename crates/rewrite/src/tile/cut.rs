//! How a step is cut into tiles, and a tile into runs of rows.

use std::ops::Range;

use crate::steps::{Step, Work};

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

    /// The matrix of a stack that a tile is of.
    pub(crate) fn matrix(&self, tile: u64) -> u64 {
        let (_, rows) = self.cut();
        tile / rows.div_ceil(self.tiling.per_tile.max(1)).max(1)
    }

    /// The runs of a tile: so many rows (bytes, for a copy) as are read, computed and written in one go.
    pub(super) fn runs(&self, tile: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let (end, per_run) = (tile.end, self.tiling.per_run.max(1));
        let starts = (tile.start..end).step_by(usize::try_from(per_run).unwrap_or(usize::MAX));
        starts.map(move |start| start..start.saturating_add(per_run).min(end))
    }

    /// Matrices, and rows of each.
    pub(super) fn cut(&self) -> (u64, u64) {
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
}
