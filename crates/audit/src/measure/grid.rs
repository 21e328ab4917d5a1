//! Where the rows of a matrix find their scales, and how the matrix is cut in tiles that are read one after another.

use std::ops::Range;

use safequant_schemes::{Granularity, QuantizedTensor, SuperScale};

/// What a weight's grid of scales looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    granularity: Granularity,
    supers: SuperScale,
    /// Input features.
    width: u64,
    /// Columns of the grid.
    pub(crate) columns: u64,
}

impl Grid {
    /// Of a weight.
    pub(crate) fn of(tensor: &QuantizedTensor) -> Self {
        let width = tensor.in_features();
        let granularity = tensor.scheme.granularity;
        let columns = match granularity {
            Granularity::Tensor | Granularity::Channel | Granularity::Flat { .. } => 1,
            Granularity::Group { size } | Granularity::IndexedGroup { size } => {
                width.div_ceil(size.max(1))
            }
            Granularity::Block { columns, .. } => width.div_ceil(columns.max(1)),
            Granularity::Strided { count } => count,
        };
        Self {
            granularity,
            supers: tensor.scheme.super_scale,
            width,
            columns: columns.max(1),
        }
    }

    /// Rows of the grid that rows of the matrix need.
    pub(crate) fn scale_rows(&self, rows: &Range<u64>) -> Range<u64> {
        match self.granularity {
            Granularity::Tensor | Granularity::Strided { .. } => 0..u64::from(!rows.is_empty()),
            Granularity::Channel | Granularity::Group { .. } | Granularity::IndexedGroup { .. } => {
                rows.clone()
            }
            Granularity::Block { rows: block, .. } => {
                rows.start / block.max(1)..rows.end.div_ceil(block.max(1))
            }
            Granularity::Flat { size } => {
                let at = |row: u64| row.saturating_mul(self.width);
                at(rows.start) / size.max(1)..at(rows.end).div_ceil(size.max(1))
            }
        }
    }

    /// Second-level scales, counted row by row, that rows of the grid need.
    pub(super) fn supers(&self, scale_rows: &Range<u64>) -> Range<u64> {
        let at = |row: u64| row.saturating_mul(self.columns);
        match self.supers {
            SuperScale::None => 0..0,
            SuperScale::Multiply | SuperScale::Divide => 0..u64::from(!scale_rows.is_empty()),
            SuperScale::Nested { size, offset: _ } => {
                at(scale_rows.start) / size.max(1)..at(scale_rows.end).div_ceil(size.max(1))
            }
            SuperScale::Grouped { size } => {
                let per_row = self.columns.div_ceil(size.max(1));
                scale_rows.start.saturating_mul(per_row)..scale_rows.end.saturating_mul(per_row)
            }
            SuperScale::Channel => scale_rows.clone(),
        }
    }

    /// The entry of the matrix's grid, counted row by row, that a code belongs to. `index`: the group of each input feature.
    pub(crate) fn entry(&self, [row, column]: [u64; 2], index: Option<&[u32]>) -> u64 {
        let in_row = |group: u64| row.saturating_mul(self.columns).saturating_add(group);
        let flat = row.saturating_mul(self.width).saturating_add(column);
        match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group { size } => in_row(column / size.max(1)),
            Granularity::IndexedGroup { size } => {
                let listed = usize::try_from(column).ok().and_then(|c| index?.get(c));
                in_row(listed.map_or(column / size.max(1), |&group| u64::from(group)))
            }
            Granularity::Block {
                rows,
                columns: block,
            } => (row / rows.max(1))
                .saturating_mul(self.columns)
                .saturating_add(column / block.max(1)),
            Granularity::Flat { size } => flat / size.max(1),
            Granularity::Strided { count } => flat % count.max(1),
        }
    }

    /// How many rows are read together so that none of their scales is read twice, if that many fit.
    fn unit(&self) -> u64 {
        match self.granularity {
            Granularity::Block { rows, .. } => rows.max(1),
            Granularity::Flat { size } => (size / gcd(size, self.width).max(1)).max(1),
            Granularity::Tensor
            | Granularity::Strided { .. }
            | Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. } => 1,
        }
    }

    /// Cuts the rows of a matrix. `most`: rows that fit in memory; `unit`: rows between two places where reading can start
    /// without reading a word twice.
    pub(crate) fn tiles(
        &self,
        n_rows: u64,
        most: u64,
        unit: u64,
    ) -> impl Iterator<Item = Range<u64>> {
        let whole = lcm(self.unit(), unit.max(1));
        let step = [whole, unit.max(1)]
            .into_iter()
            .find(|&unit| unit <= most)
            .map_or(most.max(1), |unit| most / unit * unit);
        (0..n_rows.div_ceil(step)).map(move |tile| {
            let first = tile.saturating_mul(step);
            first..first.saturating_add(step).min(n_rows)
        })
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    (a / gcd(a, b).max(1)).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(granularity: Granularity, width: u64, columns: u64) -> Grid {
        Grid {
            granularity,
            supers: SuperScale::None,
            width,
            columns,
        }
    }

    #[test]
    fn codes_find_their_scales() {
        let block = Granularity::Block {
            rows: 4,
            columns: 3,
        };
        assert_eq!(grid(block, 7, 3).entry([5, 6], None), 5);
        assert_eq!(grid(block, 7, 3).scale_rows(&(4..9)), 1..3);
        let flat = grid(Granularity::Flat { size: 6 }, 4, 1);
        assert_eq!(flat.entry([2, 3], None), 1);
        assert_eq!(flat.scale_rows(&(1..3)), 0..2);
        let strided = grid(Granularity::Strided { count: 5 }, 4, 5);
        assert_eq!(strided.entry([2, 1], None), 4);
        let indexed = grid(Granularity::IndexedGroup { size: 2 }, 4, 2);
        assert_eq!(indexed.entry([3, 1], Some(&[0, 1, 1, 0])), 7);
    }

    #[test]
    fn tiles_are_cut_between_blocks_where_that_fits() {
        let block = grid(
            Granularity::Block {
                rows: 4,
                columns: 3,
            },
            7,
            3,
        );
        let cut = |most, unit| block.tiles(10, most, unit).collect::<Vec<_>>();
        assert_eq!(cut(9, 1), [0..8, 8..10]);
        assert_eq!(cut(3, 1), [0..3, 3..6, 6..9, 9..10], "a block does not fit");
        assert_eq!(cut(0, 2), (0..10).map(|r| r..r + 1).collect::<Vec<_>>());
        assert_eq!(cut(100, 8).len(), 1);
    }

    #[test]
    fn second_levels_are_counted_over_the_matrix() {
        let nested = Grid {
            supers: SuperScale::Nested {
                size: 4,
                offset: 0.0,
            },
            ..grid(Granularity::Flat { size: 6 }, 4, 1)
        };
        assert_eq!(nested.supers(&(3..9)), 0..3);
        let grouped = Grid {
            supers: SuperScale::Grouped { size: 2 },
            ..grid(Granularity::Group { size: 1 }, 3, 3)
        };
        assert_eq!(grouped.supers(&(1..3)), 2..6);
    }
}
