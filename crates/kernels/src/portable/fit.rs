//! What a candidate for a group's scale and offset loses, and what would fit its codes better.
//!
//! Sums are taken in eight interleaved chains that are added pairwise at the end: their order is part of the definition.

use crate::levels::{LevelSet, Levels, with_levels};

/// Chains of a sum.
const LANES: usize = 8;

/// A scale and an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// What levels are multiplied by.
    pub scale: f32,
    /// What is added to the product.
    pub offset: f32,
}

impl Candidate {
    /// The reciprocal of the scale; 0 where that is none, so that every value gets the level nearest to 0.
    #[inline(always)]
    #[must_use]
    pub fn inverse(&self) -> f32 {
        let inverse = 1.0 / self.scale;
        if inverse.is_finite() { inverse } else { 0.0 }
    }

    /// What a level stands for.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, level: f32) -> f32 {
        level * self.scale + self.offset
    }
}

/// Weighted sums over a group, `h` the weights, `w` the values, `l` the levels nearest to them: what the best scale and offset for
/// these levels follow from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FitSums {
    /// `sum h`.
    pub weights: f32,
    /// `sum h w`.
    pub values: f32,
    /// `sum h l`.
    pub levels: f32,
    /// `sum h l^2`.
    pub squares: f32,
    /// `sum h l w`.
    pub products: f32,
}

impl FitSums {
    /// The scale that fits the levels best without an offset; `None` where they do not tell.
    pub fn best_scale(&self) -> Option<Candidate> {
        finite(self.products / self.squares, 0.0)
    }

    /// The scale and offset that fit the levels best; `None` where they do not tell.
    pub fn best_pair(&self) -> Option<Candidate> {
        let determinant = self.squares * self.weights - self.levels * self.levels;
        if determinant <= 1e-6 * self.squares * self.weights {
            return None;
        }
        let scale = (self.products * self.weights - self.levels * self.values) / determinant;
        finite(scale, (self.values - scale * self.levels) / self.weights)
    }
}

fn finite(scale: f32, offset: f32) -> Option<Candidate> {
    (scale.is_finite() && offset.is_finite()).then_some(Candidate { scale, offset })
}

/// `sum h (w - (l s + o))^2` with `l` the nearest level, for each candidate.
///
/// # Panics
/// If lengths do not fit.
#[inline(always)]
pub fn losses(
    levels: Levels,
    values: &[f32],
    weights: &[f32],
    candidates: &[Candidate],
    out: &mut [f32],
) {
    assert_eq!(values.len(), weights.len(), "a weight per value");
    assert_eq!(candidates.len(), out.len(), "a loss per candidate");
    with_levels!(levels, |set| {
        let (pairs, rest) = candidates.as_chunks::<2>();
        let (pairs_out, rest_out) = out.as_chunks_mut::<2>();
        for (pair, out) in pairs.iter().zip(pairs_out) {
            *out = losses_of(set, values, weights, pair);
        }
        for (candidate, out) in rest.iter().zip(rest_out) {
            [*out] = losses_of(set, values, weights, &[*candidate]);
        }
    });
}

/// The sums for the levels nearest under a candidate.
///
/// # Panics
/// If lengths do not fit.
#[inline(always)]
pub fn fit_sums(levels: Levels, values: &[f32], weights: &[f32], candidate: Candidate) -> FitSums {
    assert_eq!(values.len(), weights.len(), "a weight per value");
    with_levels!(levels, |set| sums(set, values, weights, candidate))
}

/// The levels nearest to values under a candidate.
///
/// # Panics
/// If lengths do not fit.
#[inline(always)]
pub fn nearest(levels: Levels, values: &[f32], candidate: Candidate, out: &mut [f32]) {
    assert_eq!(values.len(), out.len(), "a level per value");
    with_levels!(levels, |set| {
        let per_scale = candidate.inverse();
        for (value, out) in values.iter().zip(out) {
            *out = set.nearest((value - candidate.offset) * per_scale);
        }
    });
}

/// The losses of some candidates side by side: one's sums need not wait for another's.
#[inline(always)]
fn losses_of<const N: usize>(
    set: impl LevelSet,
    values: &[f32],
    weights: &[f32],
    candidates: &[Candidate; N],
) -> [f32; N] {
    let inverses = candidates.map(|candidate| candidate.inverse());
    let mut chains = [[0.0_f32; LANES]; N];
    let one = |c: usize, value: f32, weight: f32| {
        let Candidate { scale, offset } = candidates[c];
        let level = set.nearest((value - offset) * inverses[c]);
        let error = value - (level * scale + offset);
        weight * error * error
    };
    let (whole_values, rest_values) = values.as_chunks::<LANES>();
    let (whole_weights, rest_weights) = weights.as_chunks::<LANES>();
    for (values, weights) in whole_values.iter().zip(whole_weights) {
        for (c, chains) in chains.iter_mut().enumerate() {
            for i in 0..LANES {
                chains[i] += one(c, values[i], weights[i]);
            }
        }
    }
    for (i, (value, weight)) in rest_values.iter().zip(rest_weights).enumerate() {
        for (c, chains) in chains.iter_mut().enumerate() {
            chains[i] += one(c, *value, *weight);
        }
    }
    chains.map(total)
}

#[inline(always)]
fn sums(set: impl LevelSet, values: &[f32], weights: &[f32], candidate: Candidate) -> FitSums {
    let offset = candidate.offset;
    let per_scale = candidate.inverse();
    let mut chains = [[0.0_f32; LANES]; 5];
    let (whole_values, rest_values) = values.as_chunks::<LANES>();
    let (whole_weights, rest_weights) = weights.as_chunks::<LANES>();
    let mut step = |i: usize, value: f32, weight: f32| {
        let level = set.nearest((value - offset) * per_scale);
        let weighted = weight * level;
        chains[0][i] += weight;
        chains[1][i] += weight * value;
        chains[2][i] += weighted;
        chains[3][i] += weighted * level;
        chains[4][i] += weighted * value;
    };
    for (values, weights) in whole_values.iter().zip(whole_weights) {
        for i in 0..LANES {
            step(i, values[i], weights[i]);
        }
    }
    for (i, (value, weight)) in rest_values.iter().zip(rest_weights).enumerate() {
        step(i, *value, *weight);
    }
    let [weights, values, levels, squares, products] = chains.map(total);
    FitSums {
        weights,
        values,
        levels,
        squares,
        products,
    }
}

/// Chains added pairwise.
#[inline(always)]
fn total(chains: [f32; LANES]) -> f32 {
    let [first, second] =
        [0, 1].map(|i| (chains[i] + chains[i + 4]) + (chains[i + 2] + chains[i + 6]));
    first + second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_that_fits_loses_nothing_and_is_found_again() {
        let levels = Levels::integers(4, 8);
        let values: Vec<f32> = (0..37).map(|i| (i % 16 - 8) as f32 * 0.25 + 3.0).collect();
        let weights: Vec<f32> = (0..37).map(|i| 1.0 + (i % 3) as f32).collect();
        let exact = Candidate {
            scale: 0.25,
            offset: 3.0,
        };
        let other = Candidate {
            scale: 0.3,
            offset: 3.0,
        };
        let mut found = [0.0; 2];
        losses(levels, &values, &weights, &[exact, other], &mut found);
        assert_eq!(found[0], 0.0);
        assert!(found[1] > 0.01);
        let sums = fit_sums(levels, &values, &weights, exact);
        let scale = (sums.products * sums.weights - sums.levels * sums.values)
            / (sums.squares * sums.weights - sums.levels * sums.levels);
        assert!((scale - 0.25).abs() < 1e-5, "{scale}");
        let of_zero = fit_sums(levels, &values, &weights, Candidate::default());
        assert_eq!(of_zero.squares, 0.0, "a scale of 0 has the level 0");
    }
}
