//! The numbers themselves, in F32.

use safequant_kernels::{Backend, Floats};
use safequant_schemes::Error;

use super::align::Pair;
use super::figures::{Compared, Values};
use super::side::{Kind, Reader, Side, resize};
use crate::Loss;

/// Compares both, of one shape.
///
/// # Errors
/// What cannot be read.
pub(super) fn compare(pair: &Pair<'_>) -> Result<Compared<Values>, Error> {
    let (a, b) = (&pair.a, &pair.b);
    match (a.reader()?, b.reader()?) {
        (Some(of_a), Some(of_b)) => floats((a, &of_a), (b, &of_b)).map(Compared::Found),
        (None, None) => elements(a, b),
        (_, _) => Ok(Compared::Not(format!(
            "{} and {}",
            a.weight().form,
            b.weight().form
        ))),
    }
}

/// Nothing yet.
fn empty(name: &str) -> Loss {
    Loss {
        module: name.to_owned(),
        n_values: 0,
        signal: 0.0,
        noise: 0.0,
        energy: 0.0,
        max_error: 0.0,
        saturated: None,
    }
}

fn floats(
    (a, of_a): (&Side<'_>, &Reader<'_>),
    (b, of_b): (&Side<'_>, &Reader<'_>),
) -> Result<Values, Error> {
    let backend = Backend::detect();
    let mut found = Values {
        n: 0,
        n_differ: 0,
        n_not_finite: 0,
        first: None,
        loss: None,
    };
    let mut loss = empty(a.name);
    let (mut bytes, mut left, mut right) = (Vec::new(), Vec::new(), Vec::new());
    for rows in tiles(a, b, of_a.step(a).max(of_b.step(b))) {
        of_a.read(a, &rows, (&mut bytes, &mut left))?;
        of_b.read(b, &rows, (&mut bytes, &mut right))?;
        found.add(&left, &right, (rows.start, a.width()));
        let (original, other) = (Floats::F32(&left), Floats::F32(&right));
        let difference = (backend.compare)(original, other);
        loss.n_values += difference.n_values;
        loss.signal += difference.signal;
        loss.noise += difference.noise;
        loss.max_error = loss.max_error.max(difference.max_error);
        loss.energy += (backend.compare)(other, other).signal;
    }
    found.loss = Some(loss);
    Ok(found)
}

/// Cuts the rows of both: none in two matrices where rows have an order, and whole units of it.
pub(super) fn tiles(
    a: &Side<'_>,
    b: &Side<'_>,
    step: u64,
) -> impl Iterator<Item = std::ops::Range<u64>> + use<> {
    let unit = a.order_unit().max(b.order_unit());
    let step = (step / unit).max(1).saturating_mul(unit);
    // Rows without values need no reading.
    let n = if a.width() == 0 { 0 } else { a.n_rows() };
    let mut at = 0_u64;
    std::iter::from_fn(move || {
        let start = at;
        at = start.saturating_add(step).min(n);
        (start < n).then_some(start..at)
    })
}

impl Values {
    /// Adds values from row `first` on.
    fn add(&mut self, a: &[f32], b: &[f32], (first, width): (u64, u64)) {
        self.n += a.len() as u64;
        for (at, (&a, &b)) in (0_u64..).zip(a.iter().zip(b)) {
            // NaN has many spellings, zero has two.
            let is_equal =
                a.to_bits() == b.to_bits() || (a - b).abs() == 0.0 || (a.is_nan() && b.is_nan());
            if is_equal {
                continue;
            }
            self.n_differ += 1;
            self.n_not_finite += u64::from(!a.is_finite() || !b.is_finite());
            self.first
                .get_or_insert([first + at / width.max(1), at % width.max(1)]);
        }
    }
}

/// Compares what holds no dense floats: stored elements, if they are of one dtype.
fn elements(a: &Side<'_>, b: &Side<'_>) -> Result<Compared<Values>, Error> {
    let (Kind::Plain(of_a) | Kind::Companion(of_a), Kind::Plain(of_b) | Kind::Companion(of_b)) =
        (a.kind, b.kind)
    else {
        return Ok(Compared::Nothing);
    };
    let (dtype, other) = (of_a.dtype(), of_b.dtype());
    let size = dtype.size_bytes(1).unwrap_or(1).max(1);
    let is_same = dtype == other && of_a.info.len_bytes() == of_b.info.len_bytes();
    if !is_same || !a.is_as_stored() || !b.is_as_stored() {
        return Ok(Compared::Not(format!("{dtype} and {other}")));
    }
    let mut found = Values {
        n: of_a.info.len_bytes() / size,
        n_differ: 0,
        n_not_finite: 0,
        first: None,
        loss: None,
    };
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let (len, step) = (of_a.info.len_bytes(), ELEMENTS.saturating_mul(size));
    let width = usize::try_from(size).unwrap_or(1);
    let mut at = 0;
    while at < len {
        let n = step.min(len - at);
        for (tensor, buffer) in [(of_a, &mut left), (of_b, &mut right)] {
            resize(buffer, n, tensor.name())?;
            tensor.read_exact_at(at, buffer)?;
        }
        let pairs = left.chunks(width).zip(right.chunks(width));
        for (index, (one, two)) in (at / size..).zip(pairs) {
            if one != two {
                found.n_differ += 1;
                let columns = a.width().max(1);
                found
                    .first
                    .get_or_insert([index / columns, index % columns]);
            }
        }
        at += n;
    }
    Ok(Compared::Found(found))
}

/// Elements that are read at once.
const ELEMENTS: u64 = 64 << 10;
