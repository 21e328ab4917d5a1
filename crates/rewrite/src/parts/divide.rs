//! Runs of files whose largest one is as light as can be.

use std::ops::Range;

/// Cuts `weights` into `n` runs (one each, if there are fewer than `n`) so that the heaviest run is as light as possible.
///
/// The least weight of a heaviest run is searched for: whether a weight is enough shows by filling runs up to it. At least
/// one run is given where there is anything.
pub(super) fn divide(weights: &[u64], n: usize) -> Vec<Range<usize>> {
    let n = n.clamp(1, weights.len().max(1));
    let mut least = weights.iter().copied().max().unwrap_or(0);
    let mut most = weights.iter().copied().fold(0, u64::saturating_add);
    while least < most {
        let middle = least + (most - least) / 2;
        if cut(weights, middle, 1).len() <= n {
            most = middle;
        } else {
            least = middle + 1;
        }
    }
    cut(weights, most, n)
}

/// Fills runs up to `cap`, but never so far that there would be fewer than `at_least` of them.
fn cut(weights: &[u64], cap: u64, at_least: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0_u64;
    for (i, &weight) in weights.iter().enumerate() {
        let is_scarce = weights.len() - i <= at_least.saturating_sub(runs.len());
        match runs.last_mut() {
            Some(run) if filled.saturating_add(weight) <= cap && !is_scarce => {
                run.end = i + 1;
                filled = filled.saturating_add(weight);
            }
            Some(_) | None => {
                runs.push(i..i + 1);
                filled = weight;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heaviest(weights: &[u64], runs: &[Range<usize>]) -> u64 {
        let sums = runs.iter().map(|run| weights[run.clone()].iter().sum());
        sums.max().unwrap_or(0)
    }

    /// Every way to cut, tried.
    fn best(weights: &[u64], n: usize) -> u64 {
        if n == 1 {
            return weights.iter().sum();
        }
        let firsts = 1..=weights.len() - (n - 1);
        let cuts = firsts.map(|k| {
            weights[..k]
                .iter()
                .sum::<u64>()
                .max(best(&weights[k..], n - 1))
        });
        cuts.min().unwrap_or(0)
    }

    #[test]
    fn the_heaviest_run_is_as_light_as_any_cut_makes_it() {
        let cases: &[&[u64]] = &[
            &[5],
            &[1, 1, 1, 1, 1],
            &[9, 1, 1, 1, 1, 1],
            &[1, 1, 1, 1, 1, 9],
            &[3, 8, 2, 5, 5, 1, 7],
            &[0, 0, 4, 0, 4, 0],
            &[100, 1, 100, 1, 100],
        ];
        let mut n_tried = 0;
        for weights in cases {
            for n in 1..=weights.len() + 2 {
                let runs = divide(weights, n);
                assert_eq!(runs.len(), n.min(weights.len()), "{weights:?} {n}");
                assert_eq!(runs.first().map(|r| r.start), Some(0));
                assert_eq!(runs.last().map(|r| r.end), Some(weights.len()));
                assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(runs.iter().all(|run| !run.is_empty()));
                let least = best(weights, n.min(weights.len()));
                assert_eq!(heaviest(weights, &runs), least, "{weights:?} {n}: {runs:?}");
                n_tried += 1;
            }
        }
        assert_eq!(n_tried, 50);
        assert_eq!(divide(&[1, 2], 0).first(), Some(&(0..2)));
    }

    #[test]
    fn sums_beyond_64_bits_are_no_panic() {
        assert_eq!(divide(&[u64::MAX, u64::MAX, 1], 2).len(), 2);
    }
}
