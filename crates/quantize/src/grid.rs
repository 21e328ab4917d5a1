//! Which rectangle of a tile shares one scale.

use std::ops::Range;

use safequant_schemes::Granularity;

use crate::{Error, Rows};

/// The position of a tile within a stack of matrices: all that is needed to cut it into lines.
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

/// Rows of a tile whose groups are chosen together: a line of the grid of scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Matrix of the stack.
    pub(crate) matrix: u64,
    /// Rows relative to the tile.
    pub(crate) rows: Range<usize>,
    /// Values of a run, which is cut into groups: a row, or all rows where groups follow one another over their ends.
    pub(crate) run: usize,
    /// Values of a group; the last one of a run may have fewer.
    pub(crate) group: usize,
}

impl Line {
    /// Groups in a run. Runs of a line share them.
    pub(crate) fn n_groups(&self) -> usize {
        self.run.div_ceil(self.group)
    }

    /// Whether group `i` is shorter than others.
    pub(crate) fn is_short(&self, i: usize) -> bool {
        (i + 1).saturating_mul(self.group) > self.run
    }

    /// Row of the tile with the first value of group `i`, and the index of the group: in that row, or in the matrix where
    /// groups do not end with rows.
    pub(crate) fn place_of(&self, i: usize, in_features: usize) -> (usize, usize) {
        if self.run == in_features {
            return (self.rows.start, i);
        }
        let row = self.rows.start + i * self.group / in_features.max(1);
        if in_features.is_multiple_of(self.group) {
            (row, i % (in_features / self.group).max(1))
        } else {
            (row, i)
        }
    }

    /// The runs, as values of the tile.
    pub(crate) fn runs(
        &self,
        in_features: usize,
    ) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let values = self.rows.start * in_features..self.rows.end * in_features;
        let run = self.run.max(1);
        values.step_by(run).map(move |start| start..start + run)
    }
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
                // Whole groups follow one another over the ends of rows.
                Granularity::Channel => Some(rows.in_features.max(1)),
                Granularity::Group { size } => Some(saturating_usize(size).max(1))
                    .filter(|&size| rows.in_features.is_multiple_of(size)),
                Granularity::Tensor
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

    /// The lines in the order of [`safequant_schemes::CodeTile::scales`]; none without input features.
    pub(crate) fn lines(self) -> impl Iterator<Item = Line> {
        let has_values = self.in_features > 0;
        self.row_blocks()
            .filter(move |_| has_values)
            .map(move |(matrix, rows)| {
                let run = match self.flat {
                    Some(_) => rows.len() * self.in_features,
                    None => self.in_features,
                };
                Line {
                    matrix,
                    rows,
                    run,
                    group: self.block_columns,
                }
            })
    }

    /// Matrix and rows (relative to the tile) of each line.
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
    use safequant_kernels::{Float, Floats};

    use super::*;

    fn lines(
        granularity: Granularity,
        first_row: u64,
        n_rows: usize,
        out: u64,
        k: usize,
    ) -> Vec<Line> {
        let values = vec![0.0; n_rows * k];
        let rows = Rows {
            values: Floats::F32(&values),
            in_features: k,
            first_row,
            out_features: out,
            source: Float::F32,
        };
        Grid::new(granularity, &rows).unwrap().lines().collect()
    }

    const BLOCK: Granularity = Granularity::Block {
        rows: 2,
        columns: 4,
    };

    #[test]
    fn blocks_are_cut_at_the_edges_of_each_matrix() {
        let found = lines(BLOCK, 0, 6, 3, 5);
        let rows: Vec<_> = found.iter().map(|l| (l.matrix, l.rows.clone())).collect();
        assert_eq!(rows, [(0, 0..2), (0, 2..3), (1, 3..5), (1, 5..6)]);
        assert_eq!((found[0].run, found[0].n_groups()), (5, 2));
        assert!(!found[0].is_short(0) && found[0].is_short(1));
        let runs: Vec<_> = found[0].runs(5).collect();
        assert_eq!(runs, [0..5, 5..10]);
        assert_eq!(found[2].place_of(1, 5), (3, 1));
    }

    #[test]
    fn a_matrix_that_two_tiles_share_is_one_line_in_each() {
        let found = lines(Granularity::Tensor, 2, 3, 4, 5);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].matrix, found[0].rows.clone()), (0, 0..2));
        assert_eq!((found[1].matrix, found[1].rows.clone()), (1, 2..3));
        assert_eq!(found[0].n_groups(), 1);
    }

    #[test]
    fn the_last_group_of_a_row_may_be_short() {
        let found = lines(Granularity::Group { size: 4 }, 7, 2, 100, 10);
        let rows: Vec<_> = found.iter().map(|l| (l.rows.clone(), l.run)).collect();
        assert_eq!(rows, [(0..1, 10), (1..2, 10)]);
        let short: Vec<_> = (0..found[1].n_groups())
            .map(|i| found[1].is_short(i))
            .collect();
        assert_eq!(short, [false, false, true]);
        // A group that is longer than the row is short.
        assert!(lines(Granularity::Group { size: 16 }, 0, 1, 1, 10)[0].is_short(0));
    }

    #[test]
    fn groups_of_the_flattened_matrix_go_on_in_the_next_row() {
        let found = lines(Granularity::Flat { size: 4 }, 0, 4, 2, 5);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].matrix, found[1].rows.clone()), (1, 2..4));
        assert!(found[1].runs(5).eq(std::iter::once(10..20)));
        let groups: Vec<_> = (0..found[1].n_groups())
            .map(|i| (found[1].place_of(i, 5), found[1].is_short(i)))
            .collect();
        assert_eq!(groups, [((2, 0), false), ((2, 1), false), ((3, 2), true)]);
    }

    #[test]
    fn whole_groups_go_on_in_the_next_row() {
        let found = lines(Granularity::Group { size: 5 }, 1, 3, 2, 10);
        let rows: Vec<_> = found.iter().map(|l| (l.matrix, l.rows.clone())).collect();
        assert_eq!(rows, [(0, 0..1), (1, 1..3)]);
        assert!(found[1].runs(10).eq(std::iter::once(10..30)));
        let places: Vec<_> = (0..4).map(|i| found[1].place_of(i, 10)).collect();
        assert_eq!(places, [(1, 0), (1, 1), (2, 0), (2, 1)]);
        assert!((0..4).all(|i| !found[1].is_short(i)));
        let channels = lines(Granularity::Channel, 0, 3, 3, 10);
        assert_eq!((channels.len(), channels[0].n_groups()), (1, 3));
        assert_eq!(channels[0].place_of(2, 10), (2, 0));
    }

    #[test]
    fn groups_of_the_flattened_matrix_that_end_with_its_rows_are_groups() {
        let found = lines(Granularity::Flat { size: 5 }, 0, 2, 2, 10);
        assert_eq!(found, lines(Granularity::Group { size: 5 }, 0, 2, 2, 10));
    }

    #[test]
    #[should_panic(expected = "cuts a group")]
    fn a_tile_that_cuts_a_flat_group_is_a_mistake_of_the_caller() {
        lines(Granularity::Flat { size: 4 }, 0, 1, 2, 5);
    }

    #[test]
    fn nothing_has_no_lines() {
        assert!(lines(Granularity::Channel, 0, 0, 4, 5).is_empty());
        assert!(lines(Granularity::Tensor, 0, 0, 0, 0).is_empty());
        assert!(lines(Granularity::Group { size: 0 }, 0, 1, 1, 0).is_empty());
    }

    #[test]
    #[should_panic(expected = "cuts a block")]
    fn a_tile_that_cuts_a_block_is_a_mistake_of_the_caller() {
        lines(BLOCK, 1, 2, 4, 5);
    }
}
