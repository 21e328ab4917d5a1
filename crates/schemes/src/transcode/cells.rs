//! Which scale of the source each scale of the target takes its value from.

use std::ops::Range;

use crate::storage::{grid_of, scale_rows, to_usize};
use crate::{Granularity, QuantizedTensor, Role};

/// Rectangles that share a scale, on both sides.
pub(crate) struct Cells {
    source: Granularity,
    target: Granularity,
    /// Rows and columns of a cell of the source and of the target; `None` where the grids are the same anyway.
    rectangles: Option<[[usize; 2]; 2]>,
    in_features: usize,
    source_columns: usize,
    target_columns: usize,
    super_columns: usize,
}

/// One scale of the target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Index of the source's scale among those of the piece.
    pub(crate) source: usize,
    /// Row and column of the target's grid.
    pub(crate) row: u64,
    pub(crate) column: u64,
}

impl Cells {
    pub(crate) fn new(source: &QuantizedTensor, target: &QuantizedTensor) -> Result<Self, String> {
        let shape = [source.out_features(), source.in_features()];
        let columns = |tensor, role| grid_of(tensor, role).map(|g| g.columns);
        let text = |e: crate::Error| e.to_string();
        let (from, to) = (source.scheme.granularity, target.scheme.granularity);
        let sides = (rectangle(from, shape), rectangle(to, shape));
        let rectangles = match sides {
            _ if from == to => None,
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => {
                let refines = (0..2).all(|i| {
                    a[i] >= shape[i] || b[i] == a[i] || (b[i] < a[i] && a[i] % b[i].max(1) == 0)
                });
                if !refines {
                    return Err(format!(
                        "what shares a scale is {from:?}, which {to:?} cannot tell apart"
                    ));
                }
                let size = |n: u64| to_usize(&source.module, "a block", n).map_err(text);
                Some([[size(a[0])?, size(a[1])?], [size(b[0])?, size(b[1])?]])
            }
            (None, _) | (_, None) => {
                return Err(format!("what shares a scale is {from:?}, not {to:?}"));
            }
        };
        Ok(Self {
            source: from,
            target: to,
            rectangles,
            in_features: to_usize(&source.module, "a row", shape[1]).map_err(text)?,
            source_columns: columns(source, Role::Scale).map_err(text)?,
            target_columns: columns(target, Role::Scale).map_err(text)?,
            super_columns: columns(source, Role::SuperScale).map_err(text)?,
        })
    }

    /// Whether each scale goes to one place, in the same order.
    pub(crate) fn is_identity(&self) -> bool {
        self.rectangles.is_none()
    }

    pub(crate) fn source_columns(&self) -> usize {
        self.source_columns
    }

    pub(crate) fn super_columns(&self) -> usize {
        self.super_columns
    }

    /// The scales of the target for rows `local` of a matrix, whose scales in the source are rows `groups` of its grid.
    pub(crate) fn of_rows(&self, local: &Range<usize>, groups: &Range<usize>) -> Vec<Place> {
        let wide = |n: usize| crate::storage::to_u64(n);
        let rows = scale_rows(self.target, local, self.in_features);
        let mut places = Vec::with_capacity(rows.len() * self.target_columns);
        for row in rows {
            for column in 0..self.target_columns {
                let source = match self.rectangles {
                    None => {
                        let first = scale_rows(self.source, local, self.in_features).start;
                        // Same grids, though one may call a row of them by another name.
                        let from = scale_rows(self.target, local, self.in_features).start;
                        (row - from + first - groups.start) * self.source_columns + column
                    }
                    Some([[height, width], [rows, columns]]) => {
                        let row = (row * rows).max(local.start) / height.max(1);
                        let column = column * columns / width.max(1);
                        row.saturating_sub(groups.start) * self.source_columns
                            + column.min(self.source_columns.saturating_sub(1))
                    }
                };
                places.push(Place {
                    source,
                    row: wide(row),
                    column: wide(column),
                });
            }
        }
        places
    }
}

/// Rows and columns of the rectangle that shares a scale, not larger than the matrix; `None` where it is no rectangle.
fn rectangle(granularity: Granularity, [out, columns]: [u64; 2]) -> Option<[u64; 2]> {
    let cut =
        |rows: u64, width: u64| Some([rows.clamp(1, out.max(1)), width.clamp(1, columns.max(1))]);
    match granularity {
        Granularity::Tensor => cut(out, columns),
        Granularity::Channel => cut(1, columns),
        Granularity::Group { size } => cut(1, size),
        Granularity::Block { rows, columns } => cut(rows, columns),
        Granularity::Flat { size } if size > 0 && columns % size == 0 => cut(1, size),
        Granularity::Flat { .. }
        | Granularity::Strided { .. }
        | Granularity::IndexedGroup { .. } => None,
    }
}
