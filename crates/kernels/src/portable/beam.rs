//! Error feedback with several hypotheses for each row: the K-best form of the nearest plane (quality notes 4.6).
//!
//! A hypothesis is extended by the two levels nearest to its target; of all extensions those are kept that cost least. Rows are independent, and so is each step of a row from how blocks are cut.

use crate::levels::{LevelSet, Levels, with_levels};
use crate::matrix::Matrix;

/// Hypotheses of a row at most.
pub const MOST_HYPOTHESES: usize = 8;

/// A block of columns of one row.
#[derive(Debug)]
pub struct Beam<'a> {
    /// What codes stand for.
    pub levels: Levels,
    /// As [`crate::Feedback::factor`].
    pub factor: Matrix<'a, f32>,
    /// What a squared error in each column costs.
    pub pivots: &'a [f32],
    /// The weights of the row.
    pub weights: &'a [f32],
    /// Scale, its reciprocal and offset of each column.
    pub scales: [&'a [f32]; 3],
    /// The targets of each hypothesis, `[n_hypotheses, n_columns]`; afterwards weight less what was chosen for it.
    pub values: &'a mut [f32],
    /// The levels chosen, laid out as `values`.
    pub chosen: &'a mut [f32],
    /// What each hypothesis has cost so far; infinite for one that is none yet.
    pub costs: &'a mut [f64],
    /// The hypothesis before the block that each one comes from.
    pub origins: &'a mut [usize],
}

/// An extension of a hypothesis.
#[derive(Clone, Copy)]
struct Extension {
    cost: f64,
    parent: usize,
    level: f32,
    left: f32,
}

const NONE: Extension = Extension {
    cost: f64::INFINITY,
    parent: 0,
    level: 0.0,
    left: 0.0,
};

/// Rounds the columns of a block.
///
/// # Panics
/// If lengths do not fit, or there are no hypotheses or more than [`MOST_HYPOTHESES`].
#[inline(always)]
pub fn search_beam(block: Beam<'_>) {
    with_levels!(block.levels, |set| columns(set, block));
}

#[inline(always)]
#[expect(clippy::float_cmp, reason = "levels are told apart, not measured")]
fn columns(set: impl LevelSet, block: Beam<'_>) {
    let Beam {
        factor,
        pivots,
        weights,
        scales: [scales, inverses, offsets],
        values,
        chosen,
        costs,
        origins,
        levels: _,
    } = block;
    let (n, width) = (scales.len(), costs.len());
    assert!((1..=MOST_HYPOTHESES).contains(&width), "some hypotheses");
    assert_eq!(origins.len(), width, "an origin per hypothesis");
    assert_eq!(values.len(), n * width, "a value per column and hypothesis");
    assert_eq!(chosen.len(), values.len(), "a level per value");
    assert_eq!(factor.shape, (n, n), "a factor per pair of columns");
    assert_eq!((pivots.len(), weights.len()), (n, n), "a number per column");
    for (i, origin) in origins.iter_mut().enumerate() {
        *origin = i;
    }
    for p in 0..n {
        let factors = &factor.values[p * factor.row_stride..][..n];
        let pivot = f64::from(pivots[p]);
        let (scale, inverse, offset) = (scales[p], inverses[p], offsets[p]);
        let mut best = [NONE; MOST_HYPOTHESES];
        for (parent, &cost) in costs.iter().enumerate() {
            if cost == f64::INFINITY {
                continue;
            }
            let target = values[parent * n + p];
            let wanted = (target - offset) * inverse;
            let nearest = set.nearest(wanted);
            let second = set.second(wanted, nearest);
            for (i, level) in [nearest, second].into_iter().enumerate() {
                if i == 1 && level == nearest {
                    continue;
                }
                let value = level * scale + offset;
                let error = f64::from(target - value);
                let cost = cost + pivot * error * error;
                let left = weights[p] - value;
                insert(
                    &mut best[..width],
                    Extension {
                        cost,
                        parent,
                        level,
                        left,
                    },
                );
            }
        }
        let places = places(&best[..width], width);
        for (extension, &place) in best[..width].iter().zip(&places) {
            if extension.cost < f64::INFINITY && place != extension.parent {
                let (from, to) = (extension.parent * n, place * n);
                values.copy_within(from..from + n, to);
                chosen.copy_within(from..from + n, to);
                origins[place] = origins[extension.parent];
            }
        }
        costs.fill(f64::INFINITY);
        for (extension, &place) in best[..width].iter().zip(&places) {
            if extension.cost == f64::INFINITY {
                continue;
            }
            costs[place] = extension.cost;
            chosen[place * n + p] = extension.level;
            let line = &mut values[place * n..(place + 1) * n];
            line[p] = extension.left;
            for (value, factor) in line[p + 1..].iter_mut().zip(&factors[p + 1..]) {
                *value = extension.left.mul_add(*factor, *value);
            }
        }
    }
}

/// Keeps the least by cost; of equal ones what came first.
#[inline(always)]
fn insert(best: &mut [Extension], new: Extension) {
    let mut new = new;
    for kept in best {
        if new.cost < kept.cost {
            std::mem::swap(kept, &mut new);
        }
    }
}

/// Where each extension goes: one of each parent stays in its place, the others take those of parents that have none.
#[inline(always)]
fn places(best: &[Extension], width: usize) -> [usize; MOST_HYPOTHESES] {
    let mut places = [usize::MAX; MOST_HYPOTHESES];
    let mut is_taken = [false; MOST_HYPOTHESES];
    for (place, extension) in places.iter_mut().zip(best) {
        if extension.cost < f64::INFINITY && !is_taken[extension.parent] {
            is_taken[extension.parent] = true;
            *place = extension.parent;
        }
    }
    for place in places.iter_mut().take(width) {
        if *place == usize::MAX {
            let free = is_taken[..width]
                .iter()
                .position(|taken| !taken)
                .unwrap_or(0);
            is_taken[free] = true;
            *place = free;
        }
    }
    places
}
