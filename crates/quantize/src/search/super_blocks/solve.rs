//! The numbers of one super-block.

use safequant_kernels::{Backend, Candidate, Edges, FitSums, Float};

use super::alone::{Bowl, Group, Kind, Trials};
use super::{GROUPS, SuperBlocks};
use crate::Effort;

/// The numbers of a super-block: integers as floats, what there is no group for is 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// What scales are multiplied by; F16 holds it.
    pub(super) d: f32,
    /// What minima are multiplied by; F16 holds it.
    pub(super) dmin: f32,
    pub(super) scales: [f32; GROUPS],
    pub(super) mins: [f32; GROUPS],
    /// What each group loses.
    losses: [f32; GROUPS],
}

impl Choice {
    /// With losses that nobody has looked at yet.
    pub(super) fn new((d, dmin): (f32, f32), scales: [f32; GROUPS], mins: [f32; GROUPS]) -> Self {
        Self {
            d,
            dmin,
            scales,
            mins,
            losses: [0.0; GROUPS],
        }
    }

    fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }
}

/// How much is tried.
#[derive(Clone, Copy, Debug)]
struct Tries {
    /// What a group looks at for itself.
    alone: Trials,
    /// Pairs of `d` and `dmin` that the search begins with.
    starts: usize,
    /// Times that everything is fitted in turn.
    rounds: usize,
    /// Pairs of integers that are looked at for a group, each time.
    options: usize,
}

impl Tries {
    fn of(effort: Effort) -> Self {
        let (alone, starts, rounds, options) = match effort {
            Effort::Fast => ((6, 1, 1), 1, 1, 1),
            Effort::Default => ((14, 2, 2), 2, 3, 2),
            Effort::High => ((28, 4, 4), 4, 6, 3),
            Effort::Max => ((48, 6, 8), 6, 8, 4),
        };
        let alone = Trials {
            scales: alone.0,
            starts: alone.1,
            rounds: alone.2,
        };
        Tries {
            alone,
            starts,
            rounds,
            options,
        }
    }
}

/// The values of one super-block, what they weigh, and how they are stored.
pub(super) struct Problem<'a> {
    of: &'a SuperBlocks,
    values: &'a [f32],
    weights: &'a [f32],
    /// Of each group, where codes are points of a lattice; else empty.
    edges: Vec<Edges<'a>>,
    backend: &'static Backend,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
        of: &'a SuperBlocks,
        values: &'a [f32],
        weights: &'a [f32],
        backend: &'static Backend,
    ) -> Self {
        let size = of.layout.group;
        let groups = values.chunks_exact(size).zip(weights.chunks_exact(size));
        let edges = of.lattice.map_or_else(Vec::new, |lattice| {
            let of_group =
                |(values, weights)| Edges::new(lattice, values, weights, backend.point_edge);
            groups.map(of_group).collect()
        });
        Self {
            of,
            values,
            weights,
            edges,
            backend,
        }
    }

    /// The best that is found; `first` where nothing is better.
    pub(super) fn solve(&self, mut first: Choice, effort: Effort) -> Choice {
        let tries = Tries::of(effort);
        self.weigh(&mut first);
        let mut best = first;
        let bowls = self.alone(&first, tries);
        for (d, dmin) in self.supers(&bowls, tries.starts) {
            let start = self.settled((d, dmin), &bowls, tries);
            let found = self.refined(start, tries);
            // Also gives up on a loss that is not a number.
            if found.loss() < best.loss() {
                best = found;
            }
        }
        best
    }

    fn n_groups(&self) -> usize {
        self.of.layout.n_groups()
    }

    fn group(&self, g: usize) -> Group<'_> {
        let size = self.of.layout.group;
        let at = g * size..(g + 1) * size;
        Group {
            levels: self.of.levels,
            kind: if self.of.has_minima() {
                Kind::ScaleAndMinimum
            } else {
                Kind::Scale
            },
            values: &self.values[at.clone()],
            weights: &self.weights[at],
            edges: self.edges.get(g),
            backend: self.backend,
        }
    }

    fn candidate(&self, choice: &Choice, g: usize) -> Candidate {
        let supers = (choice.d, choice.dmin);
        self.of
            .effective(supers, (choice.scales[g], choice.mins[g]))
    }

    /// Fills in the losses.
    fn weigh(&self, choice: &mut Choice) {
        for g in 0..self.n_groups() {
            let candidate = self.candidate(choice, g);
            self.losses(g, &[candidate], &mut choice.losses[g..=g]);
        }
    }

    fn losses(&self, g: usize, candidates: &[Candidate], losses: &mut [f32]) {
        self.group(g).losses(candidates, losses);
    }

    /// What each group would choose for itself.
    fn alone(&self, first: &Choice, tries: Tries) -> [Bowl; GROUPS] {
        let mut bowls = [Bowl::default(); GROUPS];
        for (g, bowl) in bowls.iter_mut().enumerate().take(self.n_groups()) {
            let group = self.group(g);
            let found = group.search(self.candidate(first, g), self.of.shares, tries.alone);
            *bowl = group.bowl(found).1;
        }
        bowls
    }

    /// The most promising pairs of `d` and `dmin` for what groups want, best first.
    fn supers(&self, bowls: &[Bowl; GROUPS], n: usize) -> Vec<(f32, f32)> {
        let bowls = &bowls[..self.n_groups()];
        let mut wanted = [0.0; GROUPS];
        let wanted = &mut wanted[..bowls.len()];
        for (wanted, bowl) in wanted.iter_mut().zip(bowls) {
            *wanted = bowl.bottom.scale;
        }
        let scales = self.divisions(wanted, n, |g, scale| bowls[g].loss_of_scale(scale));
        let pair = |d: f32| {
            if !self.of.has_minima() {
                return (d, 0.0);
            }
            let mut wanted = [0.0; GROUPS];
            let wanted = &mut wanted[..bowls.len()];
            for (wanted, bowl) in wanted.iter_mut().zip(bowls) {
                let scale = d * self.of.integer(bowl.bottom.scale / d);
                *wanted = (-bowl.offset_for(scale)).max(0.0);
            }
            let wanted = &*wanted;
            let loss = |g: usize, offset: f32| {
                let difference = offset - wanted[g];
                bowls[g].oo * difference * difference
            };
            let found = self.divisions(wanted, 1, loss);
            (d, found.first().copied().unwrap_or(0.0))
        };
        scales.into_iter().map(pair).collect()
    }

    /// Units whose multiples come near to all numbers that are wanted: the `n` best, as F16 holds them.
    fn divisions(&self, wanted: &[f32], n: usize, loss: impl Fn(usize, f32) -> f32) -> Vec<f32> {
        let mut extreme = 0.0_f32;
        for number in wanted {
            if number.abs() > extreme.abs() {
                extreme = *number;
            }
        }
        if extreme == 0.0 {
            return vec![0.0; n.min(1)];
        }
        let mut found = [(f32::INFINITY, 0.0); 2 * STEPS];
        let ends = [self.of.integers.0, self.of.integers.1];
        let parts = found.chunks_exact_mut(STEPS).zip(ends);
        for (found, end) in parts.filter(|(_, end)| end.abs() >= 1.0) {
            // What rounds to the last integer is still near it.
            let most = end + 0.49_f32.copysign(end);
            let mut share = FROM;
            for found in found {
                let unit = extreme / (most * share);
                share += STEP;
                let per_unit = 1.0 / unit;
                let each = wanted.iter().enumerate();
                let total = each.fold(0.0, |sum, (g, number)| {
                    sum + loss(g, unit * self.of.integer(number * per_unit))
                });
                *found = (total, unit);
            }
        }
        best_of(&mut found, n)
    }

    /// The best integers under these, from what groups want.
    fn settled(&self, (d, dmin): (f32, f32), bowls: &[Bowl; GROUPS], tries: Tries) -> Choice {
        let mut choice = Choice {
            d,
            dmin,
            scales: [self.of.integer(0.0); GROUPS],
            ..Choice::default()
        };
        self.weigh(&mut choice);
        for (g, bowl) in bowls.iter().enumerate().take(self.n_groups()) {
            self.settle(&mut choice, g, bowl, tries.options);
        }
        choice
    }

    /// Tries the `n` most promising pairs of integers for a group, and keeps the best.
    fn settle(&self, choice: &mut Choice, g: usize, bowl: &Bowl, n: usize) {
        let supers = (choice.d, choice.dmin);
        let options = self.options(supers, bowl);
        let n = n.min(KEPT);
        let candidates = options.map(|(_, integers)| self.of.effective(supers, integers));
        let mut losses = [0.0; KEPT];
        self.losses(g, &candidates[..n], &mut losses[..n]);
        for (loss, (_, integers)) in losses[..n].iter().zip(options) {
            if *loss < choice.losses[g] {
                choice.losses[g] = *loss;
                (choice.scales[g], choice.mins[g]) = integers;
            }
        }
    }

    /// Pairs of integers near a bottom, with what they seem to lose, the least first.
    fn options(&self, (d, dmin): (f32, f32), bowl: &Bowl) -> [(f32, (f32, f32)); KEPT] {
        let of = self.of;
        let mut kept = [(f32::INFINITY, (0.0, 0.0)); KEPT];
        let mut add = |pair: (f32, f32)| {
            let mut next = (bowl.loss(of.effective((d, dmin), pair)), pair);
            for kept in &mut kept {
                if next.0 < kept.0 {
                    std::mem::swap(kept, &mut next);
                }
            }
        };
        if of.has_minima() {
            let nearest = of.integer(-bowl.bottom.offset / dmin);
            for step in [0.0, -1.0, 1.0] {
                let min = of.integer(nearest + step);
                let wanted = bowl.scale_for(-dmin * min) / d;
                let scale = of.integer(wanted);
                let other = scale + if wanted > scale { 1.0 } else { -1.0 };
                add((scale, min));
                add((of.integer(other), min));
            }
        } else {
            let scale = of.integer(bowl.bottom.scale / d);
            for step in [0.0, -1.0, 1.0, -2.0, 2.0] {
                add((of.integer(scale + step), 0.0));
            }
        }
        kept
    }

    /// Fits `d` and `dmin` to integers and codes, and these to them, as long as that is a gain.
    fn refined(&self, mut choice: Choice, tries: Tries) -> Choice {
        for _ in 0..tries.rounds {
            let mut bowls = [Bowl::default(); GROUPS];
            let mut all = [FitSums::default(); GROUPS];
            for g in 0..self.n_groups() {
                (all[g], bowls[g]) = self.group(g).bowl(self.candidate(&choice, g));
            }
            let (d, dmin) = fitted(&choice, &all);
            let mut next = Choice { d, dmin, ..choice };
            self.weigh(&mut next);
            for (g, bowl) in bowls.iter().enumerate().take(self.n_groups()) {
                self.settle(&mut next, g, bowl, tries.options);
            }
            if next.loss() < choice.loss() {
                choice = next;
            } else {
                break;
            }
        }
        choice
    }
}

/// The `d` and `dmin` of least squares for integers and codes, as F16 holds them.
fn fitted(choice: &Choice, sums: &[FitSums; GROUPS]) -> (f32, f32) {
    let (mut dd, mut dm, mut mm, mut to_d, mut to_m) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let integers = choice.scales.iter().zip(&choice.mins);
    for (sums, (&scale, &min)) in sums.iter().zip(integers) {
        let (scale, min) = (f64::from(scale), f64::from(min));
        dd += scale * scale * f64::from(sums.squares);
        dm -= scale * min * f64::from(sums.levels);
        mm += min * min * f64::from(sums.weights);
        to_d += scale * f64::from(sums.products);
        to_m -= min * f64::from(sums.values);
    }
    let determinant = dd * mm - dm * dm;
    let (d, dmin) = if determinant > 1e-6 * dd * mm {
        (
            (to_d * mm - to_m * dm) / determinant,
            (to_m * dd - to_d * dm) / determinant,
        )
    } else {
        (
            (to_d - dm * f64::from(choice.dmin)) / dd,
            choice.dmin.into(),
        )
    };
    #[expect(clippy::cast_possible_truncation, reason = "F16 is to hold it")]
    let or = |fitted: f64, now: f32| {
        let fitted = f16(fitted as f32);
        if fitted.is_finite() { fitted } else { now }
    };
    (or(d, choice.d), or(dmin, choice.dmin))
}

/// Pairs of integers that are looked at for a group, at most.
const KEPT: usize = 4;

/// Units that are considered for each end of the integers.
const STEPS: usize = 32;

/// The largest number is this share of the last integer at least.
const FROM: f32 = 0.6;

/// From one share to the next.
const STEP: f32 = (1.0 - FROM) / 31.0;

/// The `n` units of least loss that differ, as F16 holds them.
fn best_of(found: &mut [(f32, f32)], n: usize) -> Vec<f32> {
    /// Nearer ones lead to the same end.
    const APART: f32 = 0.004;
    let mut units: Vec<f32> = Vec::with_capacity(n);
    found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    for (_, unit) in found {
        let unit = f16(*unit);
        let is_new = |known: &f32| (known - unit).abs() > APART * unit.abs();
        if unit.is_finite() && units.iter().all(is_new) {
            units.push(unit);
        }
        if units.len() >= n {
            break;
        }
    }
    units
}

fn f16(value: f32) -> f32 {
    Float::F16.nearest(value)
}
