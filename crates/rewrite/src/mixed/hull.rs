//! Greedy choice on lower convex hulls: the best that can be had for a size, but for the last step of each.

/// A choice for each unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chosen {
    /// The candidate of each unit.
    pub(super) chosen: Vec<usize>,
    /// What they take together.
    pub(super) bytes: u64,
}

/// A step up along a unit's hull.
struct Step {
    unit: usize,
    to: usize,
    more_bytes: u64,
    /// Loss that is saved for each byte.
    gain: f64,
}

/// Chooses for each unit one of its candidates (bytes and loss), so that all together fit.
///
/// # Errors
/// The bytes of the cheapest choice, if not even that fits.
pub(super) fn choose(units: &[Vec<(u64, f64)>], fits: impl Fn(u64) -> bool) -> Result<Chosen, u64> {
    let hulls: Vec<Vec<usize>> = units.iter().map(|unit| hull(unit)).collect();
    let mut chosen: Vec<usize> = hulls
        .iter()
        .map(|h| h.first().copied().unwrap_or(0))
        .collect();
    let bytes_of =
        |unit: usize, c: usize| units.get(unit).and_then(|u| u.get(c)).map_or(0, |c| c.0);
    let mut bytes: u64 = (0..units.len()).map(|u| bytes_of(u, chosen[u])).sum();
    if !fits(bytes) {
        return Err(bytes);
    }
    let mut steps = steps(units, &hulls);
    // Hulls bend: within a unit steps gain less and less, so that this is their order there, too.
    steps.sort_by(|a, b| {
        b.gain
            .total_cmp(&a.gain)
            .then(a.unit.cmp(&b.unit))
            .then(a.to.cmp(&b.to))
    });
    let mut is_full = vec![false; units.len()];
    for step in steps {
        if is_full[step.unit] {
            continue;
        }
        if fits(bytes.saturating_add(step.more_bytes)) {
            bytes = bytes.saturating_add(step.more_bytes);
            chosen[step.unit] = step.to;
        } else {
            is_full[step.unit] = true;
        }
    }
    Ok(Chosen { chosen, bytes })
}

fn steps(units: &[Vec<(u64, f64)>], hulls: &[Vec<usize>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (unit, (candidates, hull)) in units.iter().zip(hulls).enumerate() {
        for pair in hull.windows(2) {
            let &[from, to] = pair else { continue };
            steps.push(Step {
                unit,
                to,
                more_bytes: candidates[to].0 - candidates[from].0,
                gain: slope(candidates[from], candidates[to]),
            });
        }
    }
    steps
}

/// Loss saved for each byte from one candidate to a larger one.
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio that choices are compared by"
)]
fn slope(from: (u64, f64), to: (u64, f64)) -> f64 {
    (from.1 - to.1) / (to.0 - from.0) as f64
}

/// The candidates on the lower convex hull, from the smallest on; each loses less than the one before.
fn hull(candidates: &[(u64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (candidates[a], candidates[b]);
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut hull: Vec<usize> = Vec::new();
    for c in order {
        let point = candidates[c];
        if hull
            .last()
            .is_some_and(|&l| candidates[l].1 <= point.1 || candidates[l].0 == point.0)
        {
            continue;
        }
        while let [.., before, last] = hull.as_slice() {
            let (before, last) = (candidates[*before], candidates[*last]);
            if slope(before, last) > slope(last, point) {
                break;
            }
            hull.pop();
        }
        hull.push(c);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination, for comparison.
    fn best(units: &[Vec<(u64, f64)>], most: u64) -> f64 {
        let Some((first, rest)) = units.split_first() else {
            return 0.0;
        };
        let fitting = first.iter().filter(|(bytes, _)| *bytes <= most);
        let each = fitting.map(|(bytes, loss)| loss + best(rest, most - bytes));
        each.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn what_is_off_the_hull_is_never_chosen() {
        assert_eq!(
            hull(&[(4, 1.0), (2, 4.0), (3, 3.9), (8, 0.9), (5, 1.5), (2, 5.0)]),
            [1, 0, 3]
        );
        assert_eq!(hull(&[(1, 1.0), (1, 1.0), (2, 1.0)]), [0]);
    }

    #[test]
    fn a_choice_fits_and_is_near_the_best() {
        let mut state = 1_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut n_tried = 0;
        for _ in 0..200 {
            let unit = |_| -> Vec<(u64, f64)> {
                let (size, mut loss) = (
                    1 + next(4),
                    [1.0, 3.0, 50.0][usize::try_from(next(3)).unwrap()],
                );
                // A quarter of the loss for each bit more, as with real weights.
                let mut bits = |bits| {
                    loss *= 0.25;
                    (size * bits, loss)
                };
                (2..6).map(&mut bits).collect()
            };
            let units: Vec<_> = (0..4).map(unit).collect();
            let least: u64 = units.iter().map(|unit| unit[0].0).sum();
            let most = least + next(20);
            let found = choose(&units, |bytes| bytes <= most).unwrap();
            assert!(found.bytes <= most);
            let lost: f64 = units
                .iter()
                .zip(&found.chosen)
                .map(|(unit, &c)| unit[c].1)
                .sum();
            // All but the last step of each is the best there is for its size.
            assert!(lost <= 4.0 * best(&units, most) + 1e-12, "{units:?} {most}");
            assert_eq!(choose(&units, |bytes| bytes < least), Err(least));
            n_tried += 1;
        }
        assert_eq!(n_tried, 200);
    }
}
