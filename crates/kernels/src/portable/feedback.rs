//! Rounding columns one after the other, each error passed on to those that follow (GPTQ, arXiv 2210.17323).
//!
//! Values of a block stand column after column, the rows of a tile side by side, so that a step is the same for many rows at once.
//! This is the nearest plane of Babai for `H = R R^T`, `R` upper triangular: a column's target is its weight plus, for each column before
//! it, what is left of that times `R_kj / R_jj`. GPTQ's own form, with `U = R^-1`, is the same in exact numbers and needs the inverse.
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
    /// The weights, `[n_columns, n_rows]`; afterwards what is left of them: weight less what was chosen for it.
    pub weights: &'a mut [f32],
    /// The weights with what the columns before have passed on; afterwards what is left of that.
    pub values: &'a mut [f32],
    /// What a column passes on to later ones, `[n_columns, n_columns]`, its upper triangle, ones on the diagonal.
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
        weights,
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
    assert_eq!(weights.len(), values.len(), "a weight per value");
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
        let weights = &mut weights[p * n_rows..(p + 1) * n_rows];
        let factors = &factor.values[p * factor.row_stride..];
        let of_group = group * n_rows..(group + 1) * n_rows;
        let (scale, inverse) = (
            &scales.scales[of_group.clone()],
            &scales.inverses[of_group.clone()],
        );
        let offset = &scales.offsets[of_group];
        for i in 0..n_rows {
            let level = set.nearest((column[i] - offset[i]) * inverse[i]);
            let value = level * scale[i] + offset[i];
            chosen[i] = level;
            column[i] -= value;
            weights[i] -= value;
        }
        let weights = &*weights;
        for (k, next) in (p + 1..).zip(behind.chunks_exact_mut(n_rows)) {
            let factor = factors[k];
            for (next, left) in next.iter_mut().zip(weights) {
                *next = left.mul_add(factor, *next);
            }
        }
    }
}
