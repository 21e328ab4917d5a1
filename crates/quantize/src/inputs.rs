//! What is known of a matrix's inputs, and how hard a quantizer is to try.

use std::fmt;

/// What calibration knows of the inputs `X` of one matrix, `[n, in_features]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// `K`, the columns of the matrix.
    pub in_features: usize,
    /// `n`, the tokens seen; `None` where nobody counted them.
    pub token_count: Option<u64>,
    /// `X^T X / n`.
    pub second_moment: SecondMoment,
    /// The mean of `x`, `[K]`, where it is known.
    pub mean: Option<Vec<f32>>,
    /// Where `X` are the inputs in a model that is quantized up to here, and `Y` those of the same tokens in the original:
    /// `X^T Y / n`, `[K, K]`, row-major. What is quantized is then not the weight `W` but the target that gives the original's outputs
    /// (asymmetric calibration).
    pub cross: Option<Vec<f32>>,
}

/// `X^T X / n`, or its diagonal.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondMoment {
    /// `[K, K]`, row-major, symmetric.
    Full(Vec<f32>),
    /// `[K]`.
    Diagonal(Vec<f32>),
}

impl SecondMoment {
    /// The diagonal, `[K]`.
    pub fn diagonal(&self) -> Vec<f32> {
        match self {
            SecondMoment::Diagonal(diagonal) => diagonal.clone(),
            SecondMoment::Full(matrix) => {
                // K * K values: the root is exact up to far more than memory holds.
                let step = matrix.len().isqrt().saturating_add(1);
                matrix.iter().step_by(step).copied().collect()
            }
        }
    }
}

/// What a quantizer does with what is known of the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// It weighs errors by the diagonal of the second moment where that is given.
    Welcome,
    /// It cannot do without the whole second moment.
    SecondMoment,
}

/// How hard to try, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// What more time is spent on.
    pub effort: Effort,
    /// The order in which columns are rounded; `None` for the one that loses least.
    pub order: Option<Order>,
    /// What is added to the diagonal of the second moment, as a share of its mean; `None` for a number that follows from the
    /// tokens per column.
    pub damping: Option<f64>,
}

/// What more time is spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effort {
    /// Few candidates for a scale, one sweep.
    Fast,
    /// Two rounds of sweeps over codes and scales.
    #[default]
    Default,
    /// Six rounds.
    High,
    /// Six rounds after a search with four hypotheses for each row.
    Max,
}

impl Effort {
    /// All of them, the cheapest first.
    pub const ALL: [Effort; 4] = [Self::Fast, Self::Default, Self::High, Self::Max];

    /// The word for `--effort`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Default => "default",
            Self::High => "high",
            Self::Max => "max",
        }
    }
}

/// The order in which error feedback rounds columns. Groups and scales stay those of the stored order, so that no group index is
/// needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// As stored.
    Natural,
    /// By falling diagonal of the second moment.
    Activation,
    /// As [`Order::Activation`] within each group, groups by their largest diagonal.
    GroupAware,
    /// From the end, always the column that has least variance left, given those chosen before.
    MinPivot,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 4] = [
        Self::Natural,
        Self::Activation,
        Self::GroupAware,
        Self::MinPivot,
    ];

    /// The word for `--order`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Natural => "natural",
            Self::Activation => "activation",
            Self::GroupAware => "group-aware",
            Self::MinPivot => "min-pivot",
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a row's outputs lose on the calibration inputs, per token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutputLoss {
    /// `w H w^T`: what the outputs are, squared.
    pub signal: f64,
    /// `(w - q) H (w - q)^T`: what they are off by, squared.
    pub noise: f64,
}

impl OutputLoss {
    /// Adds further rows'.
    pub fn add(&mut self, other: &OutputLoss) {
        self.signal += other.signal;
        self.noise += other.noise;
    }

    /// The noise as a share of the signal; 0 where both are.
    pub fn relative(&self) -> f64 {
        if self.noise == 0.0 {
            0.0
        } else {
            self.noise / self.signal
        }
    }
}
