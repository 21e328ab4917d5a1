//! What all rows of one matrix need to know of its inputs.

use std::sync::Arc;

use rayon::prelude::*;
use safequant_kernels::{Backend, Matrix};

use crate::factor::{Factor, factor};
use crate::inputs::{Inputs, SecondMoment, Settings};
use crate::{Error, Order};

/// What [`crate::Quantizer::prepare`] made of a matrix's inputs and of the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    pub(crate) settings: Settings,
    /// `[in_features]`: what an error in a column costs.
    pub(crate) weights: Vec<f32>,
    pub(crate) curvature: Option<Curvature>,
}

/// Of a whole second moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curvature {
    pub(crate) inputs: Arc<Inputs>,
    /// For error feedback.
    pub(crate) factor: Factor,
    /// What sweeps add to the diagonal.
    pub(crate) ridge: f32,
    /// `1 / (H_jj + ridge)`; 0 where that is not positive.
    pub(crate) inverse_diagonal: Vec<f32>,
    /// What a row times this is added to it, before it is quantized: `[in_features, in_features]`.
    pub(crate) correction: Option<Vec<f32>>,
}

impl Prepared {
    /// For a matrix of whose inputs nothing is known.
    pub(crate) fn of_nothing(in_features: usize, settings: Settings) -> Self {
        Self {
            settings,
            weights: vec![1.0; in_features],
            curvature: None,
        }
    }

    /// What was added to the diagonal of the second moment before it was factored, as a share of its mean: more than asked for where
    /// that was not positive definite. `None` without a factor.
    pub fn damping(&self) -> Option<f64> {
        Some(self.curvature.as_ref()?.factor.damping)
    }
}

impl Curvature {
    /// `H`, `[in_features, in_features]`.
    pub(crate) fn moment(&self) -> Matrix<'_, f32> {
        let n = self.inputs.in_features;
        match &self.inputs.second_moment {
            SecondMoment::Full(values) => Matrix::of_rows(values, (n, n), n),
            SecondMoment::Diagonal(values) => Matrix::of_rows(values, (0, 0), 0),
        }
    }
}

/// Weights from the diagonal of the second moment; all ones where that says nothing.
pub(crate) fn weigh(
    inputs: Option<&Arc<Inputs>>,
    in_features: usize,
    settings: &Settings,
) -> Result<Prepared, Error> {
    let mut prepared = Prepared::of_nothing(in_features, *settings);
    if let Some(inputs) = inputs {
        let diagonal = checked(inputs, in_features)?;
        if mean(&diagonal) > 0.0 {
            prepared.weights = normalized(&diagonal);
        }
    }
    Ok(prepared)
}

/// For error feedback, and for sweeps.
///
/// # Errors
/// [`Error::Inputs`]: no whole second moment, or one that cannot be factored.
pub(crate) fn factored(
    inputs: Option<&Arc<Inputs>>,
    in_features: usize,
    group: usize,
    settings: &Settings,
    backend: &'static Backend,
) -> Result<Prepared, Error> {
    let refused = |reason: &str| {
        Err(Error::Inputs {
            reason: reason.to_owned(),
        })
    };
    let Some(inputs) = inputs else {
        return refused("this method needs them, and there are none");
    };
    let diagonal = checked(inputs, in_features)?;
    let SecondMoment::Full(moment) = &inputs.second_moment else {
        return refused(
            "this method needs the whole second moment, and there is only its diagonal",
        );
    };
    let mean = mean(&diagonal);
    if mean <= 0.0 {
        return refused("the second moment is zero: no input was seen");
    }
    let order = settings.order.unwrap_or(Order::MinPivot);
    let damping = settings.damping.unwrap_or(DAMPING);
    let factor = factor(moment, in_features, (order, group), damping, backend);
    let Some(factor) = factor else {
        return refused("the second moment is not positive semidefinite: it is no X^T X");
    };
    let mut costs = vec![0.0; in_features];
    for (&column, &pivot) in factor.columns.iter().zip(&factor.pivots) {
        costs[column] = pivot;
    }
    let correction = match &inputs.cross {
        None => None,
        Some(cross) if cross.len() == moment.len() && cross.iter().all(|v| v.is_finite()) => {
            Some(correction(cross, moment, &factor))
        }
        Some(_) => {
            return refused("the moment across two models is not finite, or not of their size");
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "a number of F32 values")]
    let ridge = (ridge(inputs) * mean) as f32;
    let inverse = |d: &f32| {
        Some(1.0 / (d + ridge))
            .filter(|v| v.is_finite())
            .unwrap_or(0.0)
    };
    Ok(Prepared {
        settings: *settings,
        weights: normalized(&costs),
        curvature: Some(Curvature {
            ridge,
            inverse_diagonal: diagonal.iter().map(inverse).collect(),
            correction,
            factor,
            inputs: Arc::clone(inputs),
        }),
    })
}

/// How far the target follows the inputs of the quantized model: all the way overfits them (quality notes 4.9).
const ASYMMETRY: f32 = 0.5;

/// `ASYMMETRY (C^T - H) (H + lambda I)^-1`, so that `W' = W + W * correction` on the shifted inputs is near to `W` on the original's.
fn correction(cross: &[f32], moment: &[f32], factor: &Factor) -> Vec<f32> {
    let n = factor.columns.len();
    let roots: Vec<f32> = factor.pivots.iter().map(|pivot| pivot.sqrt()).collect();
    let mut upper = factor.passes.clone();
    for line in upper.chunks_exact_mut(n) {
        for (value, root) in line.iter_mut().zip(&roots) {
            *value *= root;
        }
    }
    let mut correction = vec![0.0; n * n];
    let rows = correction.par_chunks_exact_mut(n).enumerate();
    rows.for_each(|(i, out)| {
        let columns = factor.columns.iter();
        let shift = columns.map(|&j| ASYMMETRY * (cross[j * n + i] - moment[i * n + j]));
        let solved = solve(&upper, shift.collect());
        for (&j, value) in factor.columns.iter().zip(solved) {
            out[j] = value;
        }
    });
    correction
}

/// `y` with `y R R^T = x`, `R` upper triangular.
fn solve(upper: &[f32], mut x: Vec<f32>) -> Vec<f32> {
    let n = x.len();
    for j in (0..n).rev() {
        let line = &upper[j * n..(j + 1) * n];
        let later = line[j + 1..].iter().zip(&x[j + 1..]);
        let sum: f32 = later.map(|(r, z)| r * z).sum();
        x[j] = (x[j] - sum) / line[j];
    }
    for j in 0..n {
        let line = &upper[j * n..(j + 1) * n];
        x[j] /= line[j];
        let found = x[j];
        for (value, r) in x[j + 1..].iter_mut().zip(&line[j + 1..]) {
            *value -= found * r;
        }
    }
    x
}

/// What is added to the diagonal before it is factored where nothing else is asked for, as a share of its mean: between 0.003 and 0.03
/// it hardly matters (quality notes, section 3).
pub const DAMPING: f64 = 0.01;

/// What sweeps add to the diagonal, as a share of its mean: little, and more where there are few tokens for each column.
#[expect(clippy::cast_precision_loss, reason = "a count in a rule of thumb")]
fn ridge(inputs: &Inputs) -> f64 {
    const MANY: f64 = 64.0;
    let per_column = inputs
        .token_count
        .map(|n| n as f64 / inputs.in_features.max(1) as f64);
    let scarcity = per_column.map_or(1.0, |n| (MANY / n.max(1.0)).clamp(1.0, 6.0));
    0.01 * scarcity
}

/// The diagonal of what can be a second moment.
fn checked(inputs: &Inputs, in_features: usize) -> Result<Vec<f32>, Error> {
    let refused = |reason: String| Err(Error::Inputs { reason });
    if inputs.in_features != in_features {
        return refused(format!(
            "they are of {} input features, and the matrix has {in_features}",
            inputs.in_features
        ));
    }
    let n = in_features;
    let diagonal = match &inputs.second_moment {
        SecondMoment::Diagonal(values) if values.len() == n => values.clone(),
        SecondMoment::Full(values) if Some(values.len()) == n.checked_mul(n) => {
            if let Some((i, j)) = first_fault(values, n) {
                return refused(format!(
                    "the second moment is not finite and symmetric at row {i}, column {j}"
                ));
            }
            values.iter().step_by(n + 1).copied().collect()
        }
        SecondMoment::Diagonal(_) | SecondMoment::Full(_) => {
            return refused("the second moment has not the size that it names".to_owned());
        }
    };
    match diagonal.iter().position(|d| !(d.is_finite() && *d >= 0.0)) {
        Some(at) => refused(format!(
            "the second moment of input feature {at} is {}",
            diagonal[at]
        )),
        None => Ok(diagonal),
    }
}

/// The first entry that is not finite or differs from its mirror image by more than rounding.
fn first_fault(moment: &[f32], n: usize) -> Option<(usize, usize)> {
    /// Two sums of the same products may be rounded otherwise.
    const ROUNDING: f32 = 1e-4;
    const BLOCK: usize = 64;
    for top in (0..n).step_by(BLOCK) {
        for left in (0..=top).step_by(BLOCK) {
            for i in top..(top + BLOCK).min(n) {
                for j in left..(left + BLOCK).min(i + 1) {
                    let (a, b) = (moment[i * n + j], moment[j * n + i]);
                    let scale = moment[i * n + i].abs().max(moment[j * n + j].abs());
                    let differs = (a - b).abs() > ROUNDING * scale.max(a.abs());
                    if differs || !a.is_finite() || !b.is_finite() || !scale.is_finite() {
                        return Some((i, j));
                    }
                }
            }
        }
    }
    None
}

fn mean(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    #[expect(
        clippy::cast_precision_loss,
        reason = "columns are far fewer than 2^52"
    )]
    let n = values.len().max(1) as f64;
    sum / n
}

/// Divided by their mean, so that sums of products stay far from the ends of F32; a share of the mean is added, so that no weight is
/// without any.
fn normalized(values: &[f32]) -> Vec<f32> {
    let mean = mean(values);
    #[expect(clippy::cast_possible_truncation, reason = "numbers near 1")]
    let normal = |v: &f32| (f64::from(*v) / mean + 1e-6) as f32;
    values.iter().map(normal).collect()
}
