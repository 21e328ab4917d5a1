//! HQQ: scale and offset by half-quadratic splitting (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning
//! Models", 2023): errors are split in a sparse part, which a norm below 1 leaves in peace, and one that the offset is fitted to.

use safequant_kernels::{Backend, Candidate};

use super::groups::ends_of;
use super::{Freedom, GroupFormat, RowFormat, RowScales, Stored};

/// Rounds at most.
const ROUNDS: usize = 20;
/// The norm.
const NORM: f32 = 0.7;
/// What the penalty begins with, and grows by.
const PENALTY: (f32, f32) = (10.0, 1.01);

/// Chooses for the groups of a row.
///
/// # Errors
/// The group whose scale its dtype cannot hold, and that scale.
pub(crate) fn half_quadratic(
    format: &GroupFormat,
    values: &[f32],
    backend: &'static Backend,
    row: &mut RowScales,
) -> Result<(), (usize, f32)> {
    row.clear();
    for (g, values) in values.chunks(format.group()).enumerate() {
        let is_short = values.len() < format.group();
        let under = row.nested.get(g).copied();
        let first = format.first_of(ends_of(values), is_short, under);
        let first = first.map_err(|scale| (g, scale))?;
        let (stored, effective) = if format.freedom() == Freedom::Both {
            split(format, values, first, backend)
        } else {
            first
        };
        row.stored.push(stored);
        row.effective.push(effective);
    }
    Ok(())
}

/// One group: the offset is moved as long as the mean magnitude of the errors falls; the scale follows by least squares to what is
/// left of the values without the sparse part.
fn split(
    format: &GroupFormat,
    values: &[f32],
    first: (Stored, Candidate),
    backend: &'static Backend,
) -> (Stored, Candidate) {
    let mut levels = vec![0.0; values.len()];
    let (mut best, mut least) = (first, f32::INFINITY);
    let mut now = first;
    let mut penalty = PENALTY.0;
    for _ in 0..ROUNDS {
        (backend.nearest)(format.levels(), values, now.1, &mut levels);
        let errors = || values.iter().zip(&levels).map(|(v, l)| v - now.1.value(*l));
        let mean = errors().map(f32::abs).sum::<f32>();
        if mean >= least {
            break;
        }
        (best, least) = (now, mean);
        let shrunk: Vec<f32> = errors().map(|error| shrink(error, penalty)).collect();
        let kept = || values.iter().zip(&shrunk).map(|(v, s)| v - s);
        let Some(next) = fit(&levels, kept()).and_then(|wanted| format.store(wanted)) else {
            break;
        };
        now = next;
        penalty *= PENALTY.1;
    }
    best
}

/// The proximal operator of the norm.
fn shrink(error: f32, penalty: f32) -> f32 {
    let magnitude = error.abs();
    if magnitude == 0.0 {
        return 0.0;
    }
    (magnitude - magnitude.powf(NORM - 1.0) / penalty)
        .max(0.0)
        .copysign(error)
}

/// The scale and offset that fit values best, given their levels.
fn fit(levels: &[f32], values: impl Iterator<Item = f32>) -> Option<Candidate> {
    let (mut n, mut l, mut v, mut ll, mut lv) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (&level, value) in levels.iter().zip(values) {
        n += 1.0;
        l += level;
        v += value;
        ll += level * level;
        lv += level * value;
    }
    let scale: f32 = (lv * n - l * v) / (ll * n - l * l);
    let offset: f32 = (v - scale * l) / n;
    (scale.is_finite() && offset.is_finite()).then_some(Candidate { scale, offset })
}
