//! The best candidate for one group.

use safequant_kernels::{Backend, Candidate, FitSums, Levels};

use super::{Stored, ends_of};
use crate::Effort;

/// What candidates are made of for a kind of format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Range {
    /// Scales alone, of the largest magnitude over the largest level; from and to so many of it.
    Scale {
        /// Least multiple.
        from: f32,
        /// Largest multiple.
        to: f32,
        /// Whether scales may be negative.
        signs: Signs,
    },
    /// Both ends: scale and offset.
    Ends,
}

/// The signs that a scale may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signs {
    /// Positive ones.
    Positive,
    /// Either: with more levels on one side a negative scale gives the largest value the level without a partner.
    Either,
}

/// From this many levels on the loss has many minima close to one another.
const MANY_LEVELS: f32 = 20.0;

/// How many candidates a search looks at.
#[derive(Clone, Copy, Debug)]
struct Steps {
    /// Multiples of a scale; three times as many from [`MANY_LEVELS`] on.
    scales: usize,
    /// Shares of either end.
    ends: &'static [f32],
    /// Candidates that are refined, and rounds for each.
    starts: usize,
    rounds: usize,
}

impl Steps {
    fn of(effort: Effort) -> Self {
        const FEW: &[f32] = &[1.0, 0.88, 0.76, 0.62];
        const SOME: &[f32] = &[1.04, 0.97, 0.9, 0.83, 0.76, 0.68, 0.58];
        const MANY: &[f32] = &[
            1.1, 1.04, 0.99, 0.94, 0.89, 0.84, 0.78, 0.72, 0.65, 0.57, 0.48,
        ];
        match effort {
            Effort::Fast => Steps {
                scales: 12,
                ends: FEW,
                starts: 1,
                rounds: 2,
            },
            Effort::Default => Steps {
                scales: 16,
                ends: SOME,
                starts: 2,
                rounds: 4,
            },
            Effort::High | Effort::Max => Steps {
                scales: 48,
                ends: MANY,
                starts: 5,
                rounds: 8,
            },
        }
    }
}

/// Searches for one group.
///
/// `first` is what the convention's own tool would choose: nothing worse is given back. `store` rounds a wanted scale and offset to
/// what the file can hold, and says what that stands for.
pub(crate) fn search(
    (levels, range): (Levels, Range),
    (values, weights): (&[f32], &[f32]),
    first: (Stored, Candidate),
    store: impl Fn(Candidate) -> Option<(Stored, Candidate)>,
    effort: Effort,
    backend: &'static Backend,
) -> (Stored, Candidate) {
    let steps = Steps::of(effort);
    let mut found: Vec<(Stored, Candidate)> = vec![first];
    let mut add = |wanted: Candidate| {
        if let Some(stored) = store(wanted) {
            // Neighbors on the grid are often the same number once they are stored.
            if found.last().is_none_or(|last| last.0 != stored.0) {
                found.push(stored);
            }
        }
    };
    match range {
        Range::Scale { from, to, signs } => {
            let (low, high) = levels.ends();
            let is_fine = matches!(levels, Levels::Integers { .. }) && high - low > MANY_LEVELS;
            let n = if is_fine {
                3 * steps.scales
            } else {
                steps.scales
            };
            scales(levels, values, (from, to), signs, n, &mut add);
        }
        Range::Ends => ends(levels, values, steps.ends, &mut add),
    }
    let candidates: Vec<Candidate> = found.iter().map(|(_, candidate)| *candidate).collect();
    let mut losses = vec![0.0; candidates.len()];
    (backend.losses)(levels, values, weights, &candidates, &mut losses);
    let starts = least(&losses, steps.starts);
    let mut best = (losses[starts[0]], found[starts[0]]);
    for start in starts {
        let refined = refine(
            (levels, range),
            (values, weights),
            (losses[start], found[start]),
            &store,
            steps.rounds,
            backend,
        );
        if refined.0 < best.0 {
            best = refined;
        }
    }
    best.1
}

/// Where the `n` least are, the least first and of equal ones the first.
fn least(losses: &[f32], n: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(n + 1);
    for (at, loss) in losses.iter().enumerate() {
        let place = found.partition_point(|&other| losses[other].total_cmp(loss).is_le());
        if place < n {
            found.truncate(n - 1);
            found.insert(place, at);
        }
    }
    found
}

/// Multiples of the largest magnitude over the end of the levels.
fn scales(
    levels: Levels,
    values: &[f32],
    (from, to): (f32, f32),
    signs: Signs,
    n: usize,
    add: &mut impl FnMut(Candidate),
) {
    let (low, high) = levels.ends();
    let amax = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let unit = amax / high.max(-low);
    let last = n.saturating_sub(1).max(1);
    for i in 0..n {
        #[expect(clippy::cast_precision_loss, reason = "few candidates")]
        let share = i as f32 / last as f32;
        let scale = unit * (from + (to - from) * share);
        add(Candidate { scale, offset: 0.0 });
        if signs == Signs::Either {
            add(Candidate {
                scale: -scale,
                offset: 0.0,
            });
        }
    }
}

/// Both ends of the values, drawn towards their middle.
fn ends(levels: Levels, values: &[f32], shares: &[f32], add: &mut impl FnMut(Candidate)) {
    let (low, high) = levels.ends();
    let (start, end) = ends_of(values);
    let middle = 0.5 * start + 0.5 * end;
    for &below in shares {
        for &above in shares {
            let from = middle + (start - middle) * below;
            let to = middle + (end - middle) * above;
            let scale = (to - from) / (high - low);
            add(Candidate {
                scale,
                offset: from - low * scale,
            });
        }
    }
}

/// Turns between the nearest levels and the scale that fits them best, as long as that is a gain.
fn refine(
    (levels, range): (Levels, Range),
    (values, weights): (&[f32], &[f32]),
    start: (f32, (Stored, Candidate)),
    store: &impl Fn(Candidate) -> Option<(Stored, Candidate)>,
    rounds: usize,
    backend: &'static Backend,
) -> (f32, (Stored, Candidate)) {
    let mut best = start;
    for _ in 0..rounds {
        let sums = (backend.fit_sums)(levels, values, weights, best.1.1);
        let Some(next) = fitted(range, &sums).and_then(store) else {
            break;
        };
        if next.0 == best.1.0 {
            break;
        }
        let mut loss = [0.0];
        (backend.losses)(levels, values, weights, &[next.1], &mut loss);
        // Also gives up on a loss that is not a number.
        if loss[0] < best.0 {
            best = (loss[0], next);
        } else {
            break;
        }
    }
    best
}

/// The least squares for given levels.
fn fitted(range: Range, sums: &FitSums) -> Option<Candidate> {
    match range {
        Range::Scale { .. } => sums.best_scale(),
        Range::Ends => sums.best_pair(),
    }
}
