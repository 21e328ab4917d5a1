//! Rounding columns one after the other, each error passed on to those that follow (GPTQ, arXiv 2210.17323).
//!
//! Values of a block stand column after column, the rows of a tile side by side, so that a step is the same for many rows at once.
//! What is passed on is one fused multiply-add per column, in order: with [`crate::Backend::add_product`] for the columns behind the
//! block each value is one chain over the columns before it, however blocks are cut.

use crate::levels::{LevelSet, Levels, with_levels};
use crate::matrix::Matrix;

/// A block of columns of a tile.
#[derive(Debug)]
pub struct Feedback<'a> {
    /// What codes stand for.
    pub levels: Levels,
    /// Rows of the tile.
    pub n_rows: usize,
    /// The targets, `[n_columns, n_rows]`; afterwards the errors, each divided by its column's factor.
    pub values: &'a mut [f32],
    /// `U` of these columns, `[n_columns, n_columns]`, its upper triangle: `(H + lambda I)^-1 = U^T U`.
    pub factor: Matrix<'a, f32>,
    /// The group of each column.
    pub groups: &'a [usize],
    /// Scale, its reciprocal (0 for a scale of 0) and offset of each group and row, `[n_groups, n_rows]`.
    pub scales: GroupScales<'a>,
    /// The levels chosen, `[n_columns, n_rows]`.
    pub chosen: &'a mut [f32],
}

/// Scales of the groups of a tile, `[n_groups, n_rows]` each.
#[derive(Clone, Copy, Debug)]
pub struct GroupScales<'a> {
    /// What levels are multiplied by.
    pub scales: &'a [f32],
    /// Reciprocals; 0 for a scale of 0.
    pub inverses: &'a [f32],
    /// What is added to the product.
    pub offsets: &'a [f32],
}

/// Rounds the columns of a block.
///
/// # Panics
/// If lengths do not fit, or a group is none of the scales'.
#[inline(always)]
pub fn feed_back(block: Feedback<'_>) {
    with_levels!(block.levels, |set| columns(set, block));
}

#[inline(always)]
fn columns(set: impl LevelSet, block: Feedback<'_>) {
    let Feedback {
        n_rows,
        values,
        factor,
        groups,
        scales,
        chosen,
        levels: _,
    } = block;
    assert_eq!(
        values.len(),
        groups.len() * n_rows,
        "a value per row and column"
    );
    assert_eq!(chosen.len(), values.len(), "a level per value");
    assert_eq!(
        factor.shape,
        (groups.len(), groups.len()),
        "a factor per pair of columns"
    );
    if n_rows == 0 {
        return;
    }
    for (p, (&group, chosen)) in groups
        .iter()
        .zip(chosen.chunks_exact_mut(n_rows))
        .enumerate()
    {
        let (before, behind) = values.split_at_mut((p + 1) * n_rows);
        let column = &mut before[p * n_rows..];
        let factors = &factor.values[p * factor.row_stride..];
        let of_group = group * n_rows..(group + 1) * n_rows;
        let (scale, inverse) = (
            &scales.scales[of_group.clone()],
            &scales.inverses[of_group.clone()],
        );
        let offset = &scales.offsets[of_group];
        let per_factor = 1.0 / factors[p];
        for i in 0..n_rows {
            let level = set.nearest((column[i] - offset[i]) * inverse[i]);
            chosen[i] = level;
            column[i] = (column[i] - (level * scale[i] + offset[i])) * per_factor;
        }
        let column = &*column;
        for (k, next) in (p + 1..).zip(behind.chunks_exact_mut(n_rows)) {
            let factor = -factors[k];
            for (next, error) in next.iter_mut().zip(column) {
                *next = error.mul_add(factor, *next);
            }
        }
    }
}
