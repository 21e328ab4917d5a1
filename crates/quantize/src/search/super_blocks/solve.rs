//! The numbers of one super-block.

use safequant_kernels::{Backend, Candidate, FitSums, Float};

use super::super::Stored;
use super::super::one::search;
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
    /// Pairs of `d` and `dmin` that the search begins with.
    starts: usize,
    /// Times that everything is fitted in turn.
    rounds: usize,
    /// Pairs of integers that are looked at for a group, each time.
    options: usize,
}

impl Tries {
    fn of(effort: Effort) -> Self {
        match effort {
            Effort::Fast => Tries {
                starts: 1,
                rounds: 1,
                options: 1,
            },
            Effort::Default => Tries {
                starts: 2,
                rounds: 3,
                options: 2,
            },
            Effort::High | Effort::Max => Tries {
                starts: 6,
                rounds: 8,
                options: 4,
            },
        }
    }
}

/// What a group loses with codes that stay, about the scale and offset that fit these best:
/// `ss ds^2 + 2 so ds do + oo do^2` more than there.
#[derive(Clone, Copy, Debug, Default)]
struct Bowl {
    bottom: Candidate,
    ss: f32,
    so: f32,
    oo: f32,
}

impl Bowl {
    /// About `now` where codes do not say what fits them.
    fn new(sums: &FitSums, now: Candidate, has_minima: bool) -> Self {
        let FitSums {
            weights,
            values,
            levels,
            squares,
            products,
        } = *sums;
        if !has_minima {
            let scale = products / squares;
            return Bowl {
                bottom: Candidate {
                    scale: if scale.is_finite() { scale } else { now.scale },
                    offset: 0.0,
                },
                ss: squares,
                so: 0.0,
                oo: 0.0,
            };
        }
        let determinant = squares * weights - levels * levels;
        let bottom = if determinant > 1e-6 * squares * weights {
            let scale = (products * weights - levels * values) / determinant;
            Candidate {
                scale,
                offset: (values - scale * levels) / weights,
            }
        } else {
            now
        };
        Bowl {
            bottom,
            ss: squares,
            so: levels,
            oo: weights,
        }
    }

    fn loss(&self, at: Candidate) -> f32 {
        let ds = at.scale - self.bottom.scale;
        let offset = at.offset - self.bottom.offset;
        self.ss * ds * ds + (2.0 * self.so * ds + self.oo * offset) * offset
    }

    /// The best scale for an offset.
    fn scale_for(&self, offset: f32) -> f32 {
        self.bottom.scale - ratio(self.so, self.ss) * (offset - self.bottom.offset)
    }

    /// The best offset for a scale.
    fn offset_for(&self, scale: f32) -> f32 {
        self.bottom.offset - ratio(self.so, self.oo) * (scale - self.bottom.scale)
    }

    /// What a scale costs with the best offset for it.
    fn loss_of_scale(&self, scale: f32) -> f32 {
        let ds = scale - self.bottom.scale;
        (self.ss - self.so * ratio(self.so, self.oo)).max(0.0) * ds * ds
    }
}

fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// The values of one super-block, what they weigh, and how they are stored.
pub(super) struct Problem<'a> {
    of: &'a SuperBlocks,
    values: &'a [f32],
    weights: &'a [f32],
    backend: &'static Backend,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
        of: &'a SuperBlocks,
        values: &'a [f32],
        weights: &'a [f32],
        backend: &'static Backend,
    ) -> Self {
        Self {
            of,
            values,
            weights,
            backend,
        }
    }

    /// The best that is found; `first` where nothing is better.
    pub(super) fn solve(&self, mut first: Choice, effort: Effort) -> Choice {
        let tries = Tries::of(effort);
        self.weigh(&mut first);
        let mut best = self.refined(first, tries);
        let bowls = self.free(&first, effort);
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

    fn group(&self, g: usize) -> (&'a [f32], &'a [f32]) {
        let size = self.of.layout.group;
        let at = g * size..(g + 1) * size;
        (&self.values[at.clone()], &self.weights[at])
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
            let (values, weights) = self.group(g);
            let loss = &mut choice.losses[g..=g];
            (self.backend.losses)(self.of.levels, values, weights, &[candidate], loss);
        }
    }

    fn bowl(&self, g: usize, at: Candidate) -> (FitSums, Bowl) {
        let (values, weights) = self.group(g);
        let sums = (self.backend.fit_sums)(self.of.levels, values, weights, at);
        (sums, Bowl::new(&sums, at, self.of.has_minima()))
    }

    /// What each group would choose for itself.
    fn free(&self, first: &Choice, effort: Effort) -> [Bowl; GROUPS] {
        let has_minima = self.of.has_minima();
        let store = |wanted: Candidate| {
            let offset = if has_minima {
                wanted.offset.min(0.0)
            } else {
                0.0
            };
            let stored = Stored {
                scale: wanted.scale,
                zero: 0,
                offset,
            };
            let scale = wanted.scale;
            (scale.is_finite() && offset.is_finite())
                .then_some((stored, Candidate { scale, offset }))
        };
        let mut bowls = [Bowl::default(); GROUPS];
        for (g, bowl) in bowls.iter_mut().enumerate().take(self.n_groups()) {
            let start = self.candidate(first, g);
            let Some(start) = store(start) else { continue };
            let of = (self.of.levels, self.of.range);
            let (_, found) = search(of, self.group(g), start, store, effort, self.backend);
            *bowl = self.bowl(g, found).1;
        }
        bowls
    }

    /// The most promising pairs of `d` and `dmin` for what groups want, best first.
    fn supers(&self, bowls: &[Bowl; GROUPS], n: usize) -> Vec<(f32, f32)> {
        let bowls = &bowls[..self.n_groups()];
        let wanted = bowls.iter().map(|bowl| bowl.bottom.scale);
        let scales = self.divisions(wanted, n, |g, scale| bowls[g].loss_of_scale(scale));
        let pair = |d: f32| {
            if !self.of.has_minima() {
                return (d, 0.0);
            }
            let offset = |bowl: &Bowl| {
                let scale = d * self.of.integer(bowl.bottom.scale / d);
                (-bowl.offset_for(scale)).max(0.0)
            };
            let offsets: Vec<f32> = bowls.iter().map(offset).collect();
            let loss = |g: usize, offset: f32| {
                let difference = offset - offsets[g];
                bowls[g].oo * difference * difference
            };
            let found = self.divisions(offsets.iter().copied(), 1, loss);
            (d, found.first().copied().unwrap_or(0.0))
        };
        scales.into_iter().map(pair).collect()
    }

    /// Units whose multiples come near to all numbers that are wanted: the `n` best, as F16 holds them.
    fn divisions(
        &self,
        wanted: impl Iterator<Item = f32> + Clone,
        n: usize,
        loss: impl Fn(usize, f32) -> f32,
    ) -> Vec<f32> {
        /// From this share of the integers on.
        const FROM: f32 = 0.6;
        const STEPS: u8 = 40;
        let extreme = wanted.clone().fold(0.0_f32, |most, number| {
            if number.abs() > most.abs() {
                number
            } else {
                most
            }
        });
        if extreme == 0.0 {
            return vec![0.0; usize::from(n > 0)];
        }
        let mut found: Vec<(f32, f32)> = Vec::new();
        for end in [self.of.integers.0, self.of.integers.1] {
            if end == 0.0 {
                continue;
            }
            let most = end + 0.49_f32.copysign(end);
            for step in 0..=STEPS {
                let share = FROM + (1.0 - FROM) * f32::from(step) / f32::from(STEPS);
                let unit = extreme / (most * share);
                let per_unit = 1.0 / unit;
                let losses = wanted.clone().enumerate();
                let total = losses.fold(0.0, |sum, (g, number)| {
                    sum + loss(g, unit * self.of.integer(number * per_unit))
                });
                found.push((total, unit));
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut units: Vec<f32> = Vec::new();
        for (_, unit) in found {
            let unit = f16(unit);
            let is_new = |known: &f32| (known - unit).abs() > 0.004 * unit.abs();
            if units.len() < n && unit.is_finite() && units.iter().all(is_new) {
                units.push(unit);
            }
        }
        units
    }

    /// The best integers under these, from what groups want.
    fn settled(&self, (d, dmin): (f32, f32), bowls: &[Bowl; GROUPS], tries: Tries) -> Choice {
        let mut choice = Choice {
            d,
            dmin,
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
        let options = self.options((choice.d, choice.dmin), bowl);
        let supers = (choice.d, choice.dmin);
        let options = &options[..n.min(options.len())];
        let mut candidates = [Candidate::default(); OPTIONS];
        for (candidate, (_, integers)) in candidates.iter_mut().zip(options) {
            *candidate = self.of.effective(supers, *integers);
        }
        let mut losses = [0.0; OPTIONS];
        let (values, weights) = self.group(g);
        let (candidates, losses) = (&candidates[..options.len()], &mut losses[..options.len()]);
        (self.backend.losses)(self.of.levels, values, weights, candidates, losses);
        for (loss, (_, integers)) in losses.iter().zip(options) {
            if *loss < choice.losses[g] {
                choice.losses[g] = *loss;
                (choice.scales[g], choice.mins[g]) = *integers;
            }
        }
    }

    /// Pairs of integers near a bottom, with what they seem to lose, the least first.
    fn options(&self, (d, dmin): (f32, f32), bowl: &Bowl) -> [(f32, (f32, f32)); OPTIONS] {
        let of = self.of;
        let mut found = [(f32::INFINITY, (0.0, 0.0)); OPTIONS];
        let mut pairs = [(0.0, 0.0); OPTIONS];
        if of.has_minima() {
            let min = (-bowl.bottom.offset / dmin).floor();
            for (i, pairs) in pairs.chunks_exact_mut(2).enumerate() {
                let min = of.integer(min + STEPS_ABOUT[i]);
                let scale = (bowl.scale_for(-dmin * min) / d).floor();
                pairs[0] = (of.integer(scale), min);
                pairs[1] = (of.integer(scale + 1.0), min);
            }
        } else {
            let scale = (bowl.bottom.scale / d).floor();
            for (pair, step) in pairs.iter_mut().zip(STEPS_ABOUT) {
                *pair = (of.integer(scale + step), 0.0);
            }
        }
        for (found, pair) in found.iter_mut().zip(pairs) {
            *found = (bowl.loss(of.effective((d, dmin), pair)), pair);
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    }

    /// Fits `d` and `dmin` to integers and codes, and these to them, as long as that is a gain.
    fn refined(&self, mut choice: Choice, tries: Tries) -> Choice {
        for _ in 0..tries.rounds {
            let mut bowls = [Bowl::default(); GROUPS];
            let mut all = [FitSums::default(); GROUPS];
            for g in 0..self.n_groups() {
                (all[g], bowls[g]) = self.bowl(g, self.candidate(&choice, g));
            }
            let (d, dmin) = self.fitted(&choice, &all);
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

    /// The `d` and `dmin` of least squares for integers and codes, as F16 holds them.
    fn fitted(&self, choice: &Choice, sums: &[FitSums; GROUPS]) -> (f32, f32) {
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
}

/// Pairs of integers that are considered for a group.
const OPTIONS: usize = 8;

/// What they are away from the integer below the bottom, the nearest first.
const STEPS_ABOUT: [f32; OPTIONS] = [0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0];

fn f16(value: f32) -> f32 {
    Float::F16.nearest(value)
}
