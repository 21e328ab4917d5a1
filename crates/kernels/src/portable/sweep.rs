//! Sweeps over codes: each becomes the one that is best as long as all others of its row stay (cyclic coordinate descent on
//! `(q - t) H (q - t)^T`).
//!
//! The gradient `G = (q - t) H` is kept for every column, so that a code that stays costs nothing but a look, and one that changes a
//! row of `H`. After error feedback one code in fifty changes.

use crate::levels::{LevelSet, Levels, with_levels};
use crate::matrix::Matrix;

/// Columns that are looked at together.
const LANES: usize = 16;

/// A row and the columns of it that are swept.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// What codes stand for.
    pub levels: Levels,
    /// The columns to sweep.
    pub columns: std::ops::Range<usize>,
    /// The levels of the row, `[in_features]`.
    pub chosen: &'a mut [f32],
    /// `(q - t) (H + ridge I)` of the row, `[in_features]`.
    pub gradient: &'a mut [f32],
    /// Scale, its reciprocal and offset of each column of the row, `[in_features]`.
    pub scales: [&'a [f32]; 3],
    /// `H`, `[in_features, in_features]`, its rows contiguous.
    pub moment: Matrix<'a, f32>,
    /// `1 / (H_jj + ridge)`, 0 where that is not positive; `[in_features]`.
    pub inverse_diagonal: &'a [f32],
    /// What is added to the diagonal of `H`.
    pub ridge: f32,
}

/// Sweeps the columns of a row; gives the number of codes that changed.
///
/// # Panics
/// If lengths do not fit.
#[inline(always)]
pub fn sweep(row: Sweep<'_>) -> usize {
    with_levels!(row.levels, |set| codes(set, row))
}

#[inline(always)]
#[expect(clippy::float_cmp, reason = "levels are told apart, not measured")]
fn codes(set: impl LevelSet, row: Sweep<'_>) -> usize {
    let Sweep {
        columns,
        chosen,
        gradient,
        scales: [scales, inverses, offsets],
        moment,
        inverse_diagonal,
        ridge,
        levels: _,
    } = row;
    let n = chosen.len();
    for len in [
        gradient.len(),
        scales.len(),
        inverses.len(),
        offsets.len(),
        inverse_diagonal.len(),
    ] {
        assert_eq!(len, n, "a number per column");
    }
    assert!(columns.end <= n, "columns of the row");
    let mut n_changed = 0;
    let mut at = columns.start;
    while at < columns.end {
        let end = (at + LANES).min(columns.end);
        let mut wanted = [0.0; LANES];
        let lanes = at..end;
        let look = wanted
            .iter_mut()
            .zip(&chosen[lanes.clone()])
            .zip(&gradient[lanes.clone()])
            .zip(&inverse_diagonal[lanes.clone()])
            .zip(&scales[lanes.clone()])
            .zip(&inverses[lanes.clone()])
            .zip(&offsets[lanes.clone()]);
        let mut changes = false;
        for ((((((wanted, level), slope), per_curve), scale), inverse), offset) in look {
            let best = (level * scale + offset) - slope * per_curve;
            *wanted = set.nearest((best - offset) * inverse);
            // What has no curvature has no best code, and what has no scale none that differs.
            *wanted = if *per_curve > 0.0 && *inverse != 0.0 {
                *wanted
            } else {
                *level
            };
            changes |= *wanted != *level;
        }
        if !changes {
            at = end;
            continue;
        }
        let changed = lanes.zip(wanted).find(|&(j, wanted)| wanted != chosen[j]);
        let Some((j, level)) = changed else {
            at = end;
            continue;
        };
        let by = (level - chosen[j]) * scales[j];
        chosen[j] = level;
        n_changed += 1;
        let line = &moment.values[j * moment.row_stride..][..n];
        for (slope, moment) in gradient.iter_mut().zip(line) {
            *slope = by.mul_add(*moment, *slope);
        }
        gradient[j] = by.mul_add(ridge, gradient[j]);
        at = j + 1;
    }
    n_changed
}
