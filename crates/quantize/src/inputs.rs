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

impl Inputs {
    /// What is known of the inputs less their mean: their covariance, `X^T X / n - mean^T mean`. `None` without a mean, or where next to
    /// nothing is left, because all inputs are alike.
    pub fn about_mean(&self) -> Option<Self> {
        /// What rounding of F32 may leave where nothing is.
        const NOTHING: f64 = 1e-6;
        let mean = self.mean.as_ref()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounded to what moments are stored in"
        )]
        let less =
            |value: f32, a: f32, b: f32| (f64::from(value) - f64::from(a) * f64::from(b)) as f32;
        let second_moment = match &self.second_moment {
            SecondMoment::Diagonal(values) => {
                let columns = values.iter().zip(mean);
                SecondMoment::Diagonal(columns.map(|(&v, &m)| less(v, m, m).max(0.0)).collect())
            }
            SecondMoment::Full(values) => {
                let mut centered = values.clone();
                let lines = centered.chunks_exact_mut(self.in_features.max(1));
                for (i, (line, &a)) in lines.zip(mean).enumerate() {
                    for (value, &b) in line.iter_mut().zip(mean) {
                        *value = less(*value, a, b);
                    }
                    line[i] = line[i].max(0.0);
                }
                SecondMoment::Full(centered)
            }
        };
        let trace = |moment: &SecondMoment| {
            let diagonal = moment.diagonal();
            diagonal.iter().map(|v| f64::from(*v)).sum::<f64>()
        };
        let is_something = trace(&second_moment) > NOTHING * trace(&self.second_moment);
        is_something.then(|| Self {
            second_moment,
            mean: Some(vec![0.0; self.in_features]),
            cross: None,
            ..*self
        })
    }
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
    /// What becomes of a layer's bias.
    pub biases: Biases,
}

/// What becomes of the bias of a layer whose weight is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Biases {
    /// It stays.
    #[default]
    Kept,
    /// It makes up for what the mean input loses, and codes are chosen for what is left: the inputs less their mean.
    Corrected,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(second_moment: SecondMoment, mean: Option<Vec<f32>>) -> Inputs {
        Inputs {
            in_features: 2,
            token_count: Some(2),
            second_moment,
            mean,
            cross: None,
        }
    }

    #[test]
    fn about_the_mean_the_second_moment_is_the_covariance() {
        // Inputs [1, 2] and [3, -2].
        let moment = SecondMoment::Full(vec![5.0, -2.0, -2.0, 4.0]);
        let found = inputs(moment.clone(), Some(vec![2.0, 0.0])).about_mean();
        let found = found.unwrap();
        assert_eq!(
            found.second_moment,
            SecondMoment::Full(vec![1.0, -2.0, -2.0, 4.0])
        );
        assert_eq!(found.token_count, Some(2));
        let diagonal = SecondMoment::Diagonal(vec![5.0, 4.0]);
        let found = inputs(diagonal, Some(vec![2.0, 0.0])).about_mean().unwrap();
        assert_eq!(found.second_moment, SecondMoment::Diagonal(vec![1.0, 4.0]));
        assert_eq!(inputs(moment, None).about_mean(), None);
    }

    #[test]
    fn of_inputs_that_are_all_alike_nothing_is_left() {
        let moment = SecondMoment::Full(vec![4.0, 6.0, 6.0, 9.000_001]);
        assert_eq!(inputs(moment, Some(vec![2.0, 3.0])).about_mean(), None);
        // A mean that is larger than its square allows leaves no negative variance.
        let moment = SecondMoment::Diagonal(vec![1.0, 4.0]);
        let found = inputs(moment, Some(vec![1.5, 0.0])).about_mean().unwrap();
        assert_eq!(found.second_moment, SecondMoment::Diagonal(vec![0.0, 4.0]));
    }
}
