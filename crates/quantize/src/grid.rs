//! Which rectangle of a tile shares one scale.

use std::ops::Range;

use safequant_schemes::Granularity;

use crate::{Error, Rows};

/// The position of a tile within a stack of matrices: all that is needed to cut it into cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Output features that share a scale; `None` for all of a matrix.
    block_rows: Option<u64>,
    /// Input features that share a scale, at least 1.
    block_columns: usize,
    in_features: usize,
    n_rows: usize,
    first_row: u64,
    out_features: u64,
    /// Elements per group of the flattened matrix, instead of rectangles.
    flat: Option<usize>,
}

/// A rectangle of a tile that shares one scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Matrix of the stack.
    pub(crate) matrix: u64,
    /// Rows relative to the tile.
    pub(crate) rows: Range<usize>,
    /// Input features; beyond the row's end into the following ones where groups follow the flattened matrix, and `rows` is
    /// the first row alone.
    pub(crate) columns: Range<usize>,
    /// Index of the cell within its row of cells.
    pub(crate) group: usize,
    /// Whether it has fewer columns than others.
    pub(crate) is_short: bool,
}

impl Grid {
    /// # Errors
    /// [`Error::UnsupportedScheme`] for activation order, whose groups are no rectangles.
    ///
    /// # Panics
    /// If the values are no whole number of rows, or blocks are cut by the tile.
    pub(crate) fn new(granularity: Granularity, rows: &Rows<'_>) -> Result<Self, Error> {
        let (block_rows, block_columns) = match granularity {
            Granularity::Tensor => (None, rows.in_features),
            Granularity::Channel => (Some(1), rows.in_features),
            Granularity::Group { size } | Granularity::Flat { size } => {
                (Some(1), saturating_usize(size))
            }
            Granularity::Block { rows, columns } => (Some(rows.max(1)), saturating_usize(columns)),
            Granularity::Strided { .. } => {
                return Err(Error::UnsupportedScheme {
                    reason: "groups of elements that lie apart are only read",
                });
            }
            Granularity::IndexedGroup { .. } => {
                return Err(Error::UnsupportedScheme {
                    reason: "activation order needs an order of the input features, which round-to-nearest does not choose",
                });
            }
        };
        let grid = Grid {
            block_rows,
            block_columns: block_columns.max(1),
            in_features: rows.in_features,
            n_rows: rows.n_rows(),
            first_row: rows.first_row,
            out_features: rows.out_features.max(1),
            flat: match granularity {
                Granularity::Flat { size } => Some(saturating_usize(size).max(1)),
                Granularity::Tensor
                | Granularity::Channel
                | Granularity::Group { .. }
                | Granularity::Block { .. }
                | Granularity::Strided { .. }
                | Granularity::IndexedGroup { .. } => None,
            },
        };
        grid.assert_whole_blocks();
        Ok(grid)
    }

    /// A block has one scale, so a tile that held a part of it could not choose it.
    fn assert_whole_blocks(&self) {
        if let Some(size) = self.flat {
            let end = self.first_row + widen(self.n_rows);
            for row in [self.first_row, end] {
                let elements = (row % self.out_features).saturating_mul(widen(self.in_features));
                assert!(
                    elements.is_multiple_of(widen(size)),
                    "a tile boundary at row {row} cuts a group of {size} elements"
                );
            }
        }
        let Some(unit) = self.block_rows.filter(|&unit| unit > 1) else {
            return;
        };
        let end = self.first_row + widen(self.n_rows);
        for row in [self.first_row, end] {
            let within = row % self.out_features;
            assert!(
                within.is_multiple_of(unit),
                "a tile boundary at row {row} cuts a block of {unit} rows"
            );
        }
    }

    /// The cells in the order of [`safequant_schemes::CodeTile::scales`].
    pub(crate) fn cells(self) -> impl Iterator<Item = Cell> {
        self.row_blocks().flat_map(move |(matrix, rows)| {
            // Flattened rows are one long row.
            let width = match self.flat {
                Some(_) => rows.len() * self.in_features,
                None => self.in_features,
            };
            (0..width.div_ceil(self.block_columns)).map(move |group| {
                let start = group * self.block_columns;
                let end = start.saturating_add(self.block_columns).min(width);
                let is_short = end - start < self.block_columns;
                let (rows, columns) = if self.flat.is_some() {
                    let row = rows.start + start / self.in_features;
                    let first = start % self.in_features;
                    (row..row + 1, first..first + (end - start))
                } else {
                    (rows.clone(), start..end)
                };
                Cell {
                    matrix,
                    rows,
                    columns,
                    group,
                    is_short,
                }
            })
        })
    }

    /// Matrix and rows (relative to the tile) of each row of cells.
    fn row_blocks(self) -> impl Iterator<Item = (u64, Range<usize>)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            if next >= self.n_rows {
                return None;
            }
            let row = self.first_row + widen(next);
            let (matrix, within) = (row / self.out_features, row % self.out_features);
            let end_within = match self.block_rows.filter(|_| self.flat.is_none()) {
                None => self.out_features,
                Some(unit) => (within / unit + 1)
                    .saturating_mul(unit)
                    .min(self.out_features),
            };
            let start = next;
            next = start
                .saturating_add(saturating_usize(end_within - within))
                .min(self.n_rows);
            Some((matrix, start..next))
        })
    }
}

fn saturating_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `usize` has at most 64 bits on every platform of Rust.
pub(crate) fn widen(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use safequant_kernels::Float;

    use super::*;

    fn cells(
        granularity: Granularity,
        first_row: u64,
        n_rows: usize,
        out: u64,
        k: usize,
    ) -> Vec<Cell> {
        let values = vec![0.0; n_rows * k];
        let rows = Rows {
            values: &values,
            in_features: k,
            first_row,
            out_features: out,
            source: Float::F32,
        };
        Grid::new(granularity, &rows).unwrap().cells().collect()
    }

    #[test]
    fn blocks_are_cut_at_the_edges_of_each_matrix() {
        let found = cells(
            Granularity::Block {
                rows: 2,
                columns: 4,
            },
            0,
            6,
            3,
            5,
        );
        let rows: Vec<_> = found
            .iter()
            .step_by(2)
            .map(|c| (c.matrix, c.rows.clone()))
            .collect();
        assert_eq!(rows, [(0, 0..2), (0, 2..3), (1, 3..5), (1, 5..6)]);
        assert_eq!(
            (found[0].columns.clone(), found[1].columns.clone()),
            (0..4, 4..5)
        );
    }

    #[test]
    fn a_matrix_that_two_tiles_share_is_one_cell_in_each() {
        let found = cells(Granularity::Tensor, 2, 3, 4, 5);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].matrix, found[0].rows.clone()), (0, 0..2));
        assert_eq!((found[1].matrix, found[1].rows.clone()), (1, 2..3));
    }

    #[test]
    fn the_last_group_of_a_row_may_be_short() {
        let found = cells(Granularity::Group { size: 4 }, 7, 2, 100, 10);
        let groups: Vec<_> = found
            .iter()
            .map(|c| (c.rows.start, c.columns.clone()))
            .collect();
        assert_eq!(
            groups,
            [
                (0, 0..4),
                (0, 4..8),
                (0, 8..10),
                (1, 0..4),
                (1, 4..8),
                (1, 8..10)
            ]
        );
    }

    #[test]
    fn groups_of_the_flattened_matrix_go_on_in_the_next_row() {
        let found = cells(Granularity::Flat { size: 4 }, 0, 4, 2, 5);
        let groups: Vec<_> = found
            .iter()
            .map(|c| (c.matrix, c.rows.start, c.columns.clone(), c.is_short))
            .collect();
        assert_eq!(
            groups,
            [
                (0, 0, 0..4, false),
                (0, 0, 4..8, false),
                (0, 1, 3..5, true),
                (1, 2, 0..4, false),
                (1, 2, 4..8, false),
                (1, 3, 3..5, true)
            ]
        );
    }

    #[test]
    #[should_panic(expected = "cuts a group")]
    fn a_tile_that_cuts_a_flat_group_is_a_mistake_of_the_caller() {
        cells(Granularity::Flat { size: 4 }, 0, 1, 2, 5);
    }

    #[test]
    fn nothing_has_no_cells() {
        assert!(cells(Granularity::Channel, 0, 0, 4, 5).is_empty());
        assert!(cells(Granularity::Tensor, 0, 0, 0, 0).is_empty());
        assert!(cells(Granularity::Group { size: 0 }, 0, 1, 1, 0).is_empty());
    }

    #[test]
    #[should_panic(expected = "cuts a block")]
    fn a_tile_that_cuts_a_block_is_a_mistake_of_the_caller() {
        cells(
            Granularity::Block {
                rows: 2,
                columns: 4,
            },
            1,
            2,
            4,
            5,
        );
    }
}
