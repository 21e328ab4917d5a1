//! The answer of a comparison as plain data.

use safequant_schemes::Pattern;

use super::Level;
use crate::Loss;

/// What is compared, and how closely.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is compared.
    pub levels: Vec<Level>,
    /// Weights, modules and tensors to look at; all where there is none. Documents are compared whole.
    pub select: Option<Pattern>,
    /// Scales and zero points this far apart, relative to A's, count as equal, and so do weights whose relative L2 distance is not
    /// larger. 0 asks for the same numbers.
    pub tolerance: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            levels: Level::ALL.to_vec(),
            select: None,
            tolerance: 0.0,
        }
    }
}

/// A weight or another tensor of one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The dense tensor's name.
    pub name: String,
    /// Its logical shape.
    pub shape: Vec<u64>,
    /// The convention, if it is quantized.
    pub convention: Option<&'static str>,
    /// The scheme in words, or the dtype.
    pub form: String,
    /// Whether it holds codes.
    pub has_codes: bool,
    /// Whether it is a weight or another tensor of the model, and not something that a convention keeps beside them:
    /// activation scales, markers.
    pub is_weight: bool,
}

/// A property that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one: `name`, `convention`, `scheme`, `dtype`, `shape`, or a part by its role.
    pub what: String,
    /// A's, for people.
    pub a: String,
    /// B's, for people.
    pub b: String,
}

/// What came of a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Compared<T> {
    /// There was nothing to compare, or it was not asked for.
    #[default]
    Nothing,
    /// The same bytes in tensors of the same form: there is nothing more to find out.
    SameBytes,
    /// It cannot be compared, for this reason; counts as a difference.
    Not(String),
    /// What was found.
    Found(T),
}

impl<T> Compared<T> {
    /// What was found, where something was.
    pub const fn found(&self) -> Option<&T> {
        match self {
            Compared::Found(found) => Some(found),
            Compared::Nothing | Compared::SameBytes | Compared::Not(_) => None,
        }
    }

    fn differs(&self, found_differs: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Compared::Nothing | Compared::SameBytes => false,
            Compared::Not(_) => true,
            Compared::Found(found) => found_differs(found),
        }
    }
}

/// Codes, in unsigned form, one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codes {
    /// How many there are.
    pub n: u64,
    /// How many of them stand for another step.
    pub n_flipped: u64,
    /// Row and column of the first of these.
    pub first: Option<[u64; 2]>,
}

/// Scales, with everything that scales them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scales {
    /// How many there are: entries of the grid, or weights where `is_per_weight`.
    pub n: u64,
    /// How many of them differ by more than the tolerance.
    pub n_differ: u64,
    /// Place of the first of these: row and column of the grid, or of the matrix where `is_per_weight`.
    pub first: Option<[u64; 2]>,
    /// The smallest ratio of B's to A's; `None` where none is a number.
    pub min_ratio: Option<f64>,
    /// The largest.
    pub max_ratio: Option<f64>,
    /// Whether the two grids differ (granularity, or the groups of input features), so that the scales of each weight were
    /// compared.
    pub is_per_weight: bool,
}

/// Zero points, in steps of the codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ZeroPoints {
    /// How many there are, as [`Scales::n`].
    pub n: u64,
    /// How many of them differ by more than the tolerance.
    pub n_differ: u64,
    /// Place of the first of these, as [`Scales::first`].
    pub first: Option<[u64; 2]>,
    /// The largest distance, in steps.
    pub max_distance: f64,
}

/// The numbers themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// How many there are.
    pub n: u64,
    /// How many of them differ; NaN is equal to NaN, and 0 to -0.
    pub n_differ: u64,
    /// How many of these are finite in one of the two only, or two different infinities.
    pub n_not_finite: u64,
    /// Row and column of the first that differs.
    pub first: Option<[u64; 2]>,
    /// B against A; `None` for tensors that hold no dense floats, which are compared element by element.
    pub loss: Option<Loss>,
}

impl Values {
    /// Whether the two are further apart than the tolerance.
    pub fn differs(&self, tolerance: f64) -> bool {
        let is_near = |loss: &Loss| loss.relative_l2() <= tolerance;
        self.n_not_finite > 0 || (self.n_differ > 0 && !self.loss.as_ref().is_some_and(is_near))
    }
}

/// One weight (or another tensor) of both.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDiff {
    /// A's.
    pub a: Weight,
    /// B's; its name is another one where the convention spells whole models in its own way.
    pub b: Weight,
    /// What of its structure differs.
    pub changes: Vec<Change>,
    /// Its codes.
    pub codes: Compared<Codes>,
    /// Its scales.
    pub scales: Compared<Scales>,
    /// Its zero points; nothing where neither has any but the one that goes with its scheme.
    pub zeros: Compared<ZeroPoints>,
    /// Its values.
    pub values: Compared<Values>,
}

impl WeightDiff {
    pub(super) fn new(a: Weight, b: Weight) -> Self {
        Self {
            a,
            b,
            changes: Vec::new(),
            codes: Compared::Nothing,
            scales: Compared::Nothing,
            zeros: Compared::Nothing,
            values: Compared::Nothing,
        }
    }

    /// Whether the two differ in this.
    pub fn differs(&self, level: Level, tolerance: f64) -> bool {
        match level {
            Level::Structure => !self.changes.is_empty(),
            Level::Config => false,
            Level::Codes => {
                self.codes.differs(|codes| codes.n_flipped > 0)
                    || self.scales.differs(|scales| scales.n_differ > 0)
                    || self.zeros.differs(|zeros| zeros.n_differ > 0)
            }
            Level::Values => self.values.differs(|values| values.differs(tolerance)),
        }
    }
}

/// All weights together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Weights and tensors of both.
    pub n_weights: u64,
    /// Of these, those whose structure differs.
    pub n_changed: u64,
    /// Weights whose codes were compared, the same bytes included.
    pub n_coded: u64,
    /// Weights whose codes could not be compared.
    pub n_codes_not_compared: u64,
    /// Codes, the same bytes included.
    pub codes: Codes,
    /// Scales of weights whose bytes are not the same.
    pub scales: Scales,
    /// Zero points of weights whose bytes are not the same.
    pub zeros: ZeroPoints,
    /// Weights and tensors whose values were compared, the same bytes included.
    pub n_valued: u64,
    /// Of these, those whose values are not the same numbers.
    pub n_not_equal: u64,
    /// Of these, those that are further apart than the tolerance.
    pub n_values_differ: u64,
    /// Weights and tensors whose values could not be compared.
    pub n_values_not_compared: u64,
}

impl Sums {
    pub(super) fn of(weights: &[WeightDiff], tolerance: f64) -> Self {
        let mut sums = Self::default();
        for weight in weights {
            sums.add(weight, tolerance);
        }
        sums
    }

    fn add(&mut self, weight: &WeightDiff, tolerance: f64) {
        self.n_weights += 1;
        self.n_changed += u64::from(!weight.changes.is_empty());
        match &weight.codes {
            Compared::Nothing => {}
            Compared::Not(_) => self.n_codes_not_compared += 1,
            Compared::SameBytes => {
                self.n_coded += 1;
                let dimensions = weight.a.shape.iter();
                let n = dimensions.fold(1_u64, |n, &d| n.saturating_mul(d));
                self.codes.n = self.codes.n.saturating_add(n);
            }
            Compared::Found(codes) => {
                self.n_coded += 1;
                self.codes.n = self.codes.n.saturating_add(codes.n);
                self.codes.n_flipped = self.codes.n_flipped.saturating_add(codes.n_flipped);
            }
        }
        if let Compared::Found(scales) = &weight.scales {
            self.scales.add(scales);
        }
        if let Compared::Found(zeros) = &weight.zeros {
            self.zeros.n = self.zeros.n.saturating_add(zeros.n);
            self.zeros.n_differ = self.zeros.n_differ.saturating_add(zeros.n_differ);
            self.zeros.max_distance = self.zeros.max_distance.max(zeros.max_distance);
        }
        match &weight.values {
            Compared::Nothing => {}
            Compared::Not(_) => self.n_values_not_compared += 1,
            Compared::SameBytes => self.n_valued += 1,
            Compared::Found(values) => {
                self.n_valued += 1;
                self.n_not_equal += u64::from(values.n_differ > 0);
                self.n_values_differ += u64::from(values.differs(tolerance));
            }
        }
    }
}

impl Scales {
    /// Adds those of another weight; places are left out.
    fn add(&mut self, other: &Scales) {
        self.n = self.n.saturating_add(other.n);
        self.n_differ = self.n_differ.saturating_add(other.n_differ);
        for ratio in [other.min_ratio, other.max_ratio].into_iter().flatten() {
            self.note_ratio(ratio);
        }
        self.is_per_weight |= other.is_per_weight;
    }

    /// Takes a ratio into the range.
    pub(super) fn note_ratio(&mut self, ratio: f64) {
        self.min_ratio = Some(self.min_ratio.map_or(ratio, |min| min.min(ratio)));
        self.max_ratio = Some(self.max_ratio.map_or(ratio, |max| max.max(ratio)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str) -> Weight {
        Weight {
            name: name.to_owned(),
            shape: vec![2, 3],
            convention: None,
            form: "BF16".to_owned(),
            has_codes: false,
            is_weight: true,
        }
    }

    fn values(noise: f64, n_differ: u64, n_not_finite: u64) -> Values {
        Values {
            n: 6,
            n_differ,
            n_not_finite,
            first: None,
            loss: Some(Loss {
                module: "w".to_owned(),
                n_values: 6,
                signal: 100.0,
                noise,
                energy: 100.0,
                max_error: 1.0,
                saturated: None,
            }),
        }
    }

    #[test]
    fn a_tolerance_is_for_distances_and_not_for_what_is_no_number() {
        assert!(!values(0.0, 0, 0).differs(0.0));
        assert!(values(1.0, 1, 0).differs(0.05));
        assert!(!values(1.0, 1, 0).differs(0.1));
        assert!(values(0.0, 1, 1).differs(1.0));
        assert!(values(f64::NAN, 1, 0).differs(1.0));
    }

    #[test]
    fn the_same_bytes_count_as_compared() {
        let mut same = WeightDiff::new(weight("a"), weight("a"));
        same.codes = Compared::SameBytes;
        same.values = Compared::SameBytes;
        let mut other = WeightDiff::new(weight("b"), weight("b"));
        other.codes = Compared::Found(Codes {
            n: 6,
            n_flipped: 2,
            first: Some([0, 1]),
        });
        other.values = Compared::Found(values(1.0, 2, 0));
        let sums = Sums::of(&[same, other], 0.0);
        assert_eq!(
            (sums.codes.n, sums.codes.n_flipped, sums.n_coded),
            (12, 2, 2)
        );
        assert_eq!((sums.n_valued, sums.n_values_differ), (2, 1));
    }

    #[test]
    fn what_cannot_be_compared_differs() {
        let mut pair = WeightDiff::new(weight("a"), weight("a"));
        assert!(!pair.differs(Level::Codes, 0.0));
        pair.codes = Compared::Not("shapes".to_owned());
        assert!(pair.differs(Level::Codes, 0.0));
        assert!(!pair.differs(Level::Values, 0.0));
    }
}
