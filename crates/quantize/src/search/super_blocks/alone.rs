//! What a group would choose if it had not to share.

use safequant_kernels::{Backend, Candidate, Edges, FitSums, Levels};

/// What a group loses with codes that stay, about the scale and offset that fit these best:
/// `ss ds^2 + 2 so ds do + oo do^2` more than there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bowl {
    pub(super) bottom: Candidate,
    pub(super) ss: f32,
    so: f32,
    pub(super) oo: f32,
}

impl Bowl {
    /// Around `now` where codes do not say what fits them.
    fn new(sums: &FitSums, now: Candidate, kind: Kind) -> Self {
        let FitSums {
            weights,
            levels,
            squares,
            ..
        } = *sums;
        let bottom = sums.bottom(kind).unwrap_or(now);
        match kind {
            Kind::Scale => Bowl {
                bottom,
                ss: squares,
                ..Bowl::default()
            },
            Kind::ScaleAndMinimum => Bowl {
                bottom,
                ss: squares,
                so: levels,
                oo: weights,
            },
        }
    }

    pub(super) fn loss(&self, at: Candidate) -> f32 {
        let scale = at.scale - self.bottom.scale;
        let offset = at.offset - self.bottom.offset;
        self.ss * scale * scale + (2.0 * self.so * scale + self.oo * offset) * offset
    }

    /// The best scale for an offset.
    pub(super) fn scale_for(&self, offset: f32) -> f32 {
        self.bottom.scale - ratio(self.so, self.ss) * (offset - self.bottom.offset)
    }

    /// The best offset for a scale.
    pub(super) fn offset_for(&self, scale: f32) -> f32 {
        self.bottom.offset - ratio(self.so, self.oo) * (scale - self.bottom.scale)
    }

    /// What a scale costs with the best offset for it.
    pub(super) fn loss_of_scale(&self, scale: f32) -> f32 {
        let difference = scale - self.bottom.scale;
        (self.ss - self.so * ratio(self.so, self.oo)).max(0.0) * difference * difference
    }
}

/// What a group can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Scale,
    ScaleAndMinimum,
}

/// How much a group tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trials {
    /// Scales, and in turns the ends of the values that are cut off.
    pub(super) scales: u8,
    /// Of these so many are fitted further,
    pub(super) starts: usize,
    /// so many times.
    pub(super) rounds: usize,
}

/// A group's values and their weights.
pub(super) struct Group<'a> {
    pub(super) levels: Levels,
    pub(super) kind: Kind,
    pub(super) values: &'a [f32],
    pub(super) weights: &'a [f32],
    /// Of a lattice: the points that can be nearest.
    pub(super) edges: Option<&'a Edges<'a>>,
    pub(super) backend: &'static Backend,
}

/// A candidate, and what it loses with the codes that it was fitted to, beyond what all of them lose.
type Fitted = (f32, Candidate);

impl Group<'_> {
    /// The sums for the codes nearest under a candidate, and the bowl of these codes.
    pub(super) fn bowl(&self, at: Candidate) -> (FitSums, Bowl) {
        let sums = self.sums(at);
        (sums, Bowl::new(&sums, at, self.kind))
    }

    fn sums(&self, at: Candidate) -> FitSums {
        match self.edges {
            Some(edges) => edges.sums(at.scale),
            None => (self.backend.fit_sums)(self.levels, self.values, self.weights, at),
        }
    }

    /// What candidates lose.
    pub(super) fn losses(&self, candidates: &[Candidate], losses: &mut [f32]) {
        let Some(edges) = self.edges else {
            (self.backend.losses)(self.levels, self.values, self.weights, candidates, losses);
            return;
        };
        for (loss, candidate) in losses.iter_mut().zip(candidates) {
            *loss = edges.loss(candidate.scale);
        }
    }

    /// The best that is found from trials, and from `start`.
    ///
    /// Every trial is fitted at once: least squares for the codes that it gives, which costs one pass over the group and makes a
    /// few trials worth as much as many that are only looked at.
    pub(super) fn search(&self, start: Candidate, share: (f32, f32), trials: Trials) -> Candidate {
        let mut found: Vec<Fitted> = vec![self.fit(start)];
        let last = f32::from(trials.scales.max(2) - 1);
        let (low, high) = self.ends();
        for i in 0..trials.scales {
            let share = share.0 + (share.1 - share.0) * f32::from(i) / last;
            match self.kind {
                Kind::Scale => {
                    let (least, most) = self.levels.ends();
                    let scale = high.max(-low) / most.max(-least) * share;
                    found.push(self.fit(Candidate { scale, offset: 0.0 }));
                    // The points of a lattice have both signs.
                    if self.edges.is_none() {
                        let scale = -scale;
                        found.push(self.fit(Candidate { scale, offset: 0.0 }));
                    }
                }
                Kind::ScaleAndMinimum => {
                    found.push(self.fit(self.cut((low, high), share, i)));
                }
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(trials.starts.max(1));
        let ends = found.into_iter().map(|from| self.descended(from, trials));
        let best = ends.min_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or(start, |(_, candidate)| candidate)
    }

    /// Smallest and largest value, 0 among them: minima are not negative.
    fn ends(&self) -> (f32, f32) {
        let fold = |(low, high): (f32, f32), value: &f32| (low.min(*value), high.max(*value));
        self.values.iter().fold((0.0, 0.0), fold)
    }

    /// A share of the range; what is cut off comes from both ends, in another proportion each time.
    fn cut(&self, (low, high): (f32, f32), share: f32, i: u8) -> Candidate {
        const BELOW: [f32; 5] = [0.5, 0.0, 1.0, 0.25, 0.75];
        let (least, most) = self.levels.ends();
        let range = high - low;
        let below = range * (1.0 - share) * BELOW[usize::from(i) % BELOW.len()];
        Candidate {
            scale: range * share / (most - least),
            offset: low + below,
        }
    }

    fn descended(&self, mut now: Fitted, trials: Trials) -> Fitted {
        for _ in 0..trials.rounds {
            let next = self.fit(now.1);
            // Also gives up on a loss that is not a number.
            if next.0 < now.0 {
                now = next;
            } else {
                break;
            }
        }
        now
    }

    /// The least squares for the codes nearest under a candidate.
    fn fit(&self, at: Candidate) -> Fitted {
        let sums = self.sums(at);
        let fitted = match sums.bottom(self.kind).unwrap_or(at) {
            Candidate { offset, .. } if offset > 0.0 => Candidate {
                scale: ratio(sums.products, sums.squares),
                offset: 0.0,
            },
            inside => inside,
        };
        (sums.loss(fitted), fitted)
    }
}

/// What follows from the sums for given codes.
trait Quadratic {
    /// The scale and offset of least loss; `None` where codes do not tell.
    fn bottom(&self, kind: Kind) -> Option<Candidate>;

    /// What these lose, less `sum h w^2`.
    fn loss(&self, at: Candidate) -> f32;
}

impl Quadratic for FitSums {
    fn bottom(&self, kind: Kind) -> Option<Candidate> {
        match kind {
            Kind::Scale => self.best_scale(),
            Kind::ScaleAndMinimum => self.best_pair(),
        }
    }

    fn loss(&self, Candidate { scale, offset }: Candidate) -> f32 {
        let squares = scale * (scale * self.squares + 2.0 * offset * self.levels)
            + offset * offset * self.weights;
        squares - 2.0 * (scale * self.products + offset * self.values)
    }
}

pub(super) fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { 0.0 } else { a / b }
}
