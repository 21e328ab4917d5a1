//! Rounding to points of a lattice, eight columns at a time (ggml's IQ2 and IQ3).

use safequant_kernels::blocks::Lattice;
use safequant_kernels::{Backend, Edges, Matrix, MatrixMut, PointStep, Product, Sign};
use safequant_schemes::{Code, Scheme};

use crate::factor::Factor;
use crate::inputs::Settings;
use crate::search::RowScales;
use crate::{Effort, Order};

/// Columns that are rounded together.
const UNIT: usize = Lattice::UNIT;

/// Columns that are rounded between two products.
const BLOCK: usize = 128;

/// Settings and columns of a group for the factor of a scheme: units of a lattice stay together, so that their orders are the natural one and
/// that of groups, which stands for all others.
pub(crate) fn ordered(scheme: &Scheme, settings: &Settings, group: usize) -> (Settings, usize) {
    let lattice = match scheme.code {
        Code::Codebook(book) => book.lattice(),
        Code::Integer { .. } | Code::Minifloat(_) | Code::StoredCodebook | Code::Dense(_) => None,
    };
    if lattice.is_none() {
        return (*settings, group);
    }
    let order = match settings.order {
        Some(Order::Natural) => Order::Natural,
        Some(Order::Activation | Order::GroupAware | Order::MinPivot) | None => Order::GroupAware,
    };
    let settings = Settings {
        order: Some(order),
        ..*settings
    };
    (settings, UNIT)
}

/// The levels of the points nearest to some rows, by a weight for each column.
pub(crate) fn nearest(
    lattice: &'static Lattice,
    (cells, weights): (&[f32], &[f32]),
    (scales, group): (&[RowScales], usize),
    backend: &'static Backend,
) -> Vec<f32> {
    let n = weights.len();
    let mut chosen = vec![0.0; cells.len()];
    let rows = chosen.chunks_exact_mut(n).zip(cells.chunks_exact(n));
    for ((chosen, values), row) in rows.zip(scales) {
        let groups = chosen.chunks_mut(group).zip(values.chunks(group));
        let groups = groups.zip(weights.chunks(group)).zip(&row.effective);
        for (((chosen, values), weights), at) in groups {
            Edges::new(lattice, values, weights, backend.point_edge).levels(at.scale, chosen);
        }
    }
    chosen
}

/// Parts of the lattice that are looked at for each eight columns, and how often.
const fn trials(effort: Effort) -> (usize, usize) {
    match effort {
        Effort::Fast => (4, 1),
        Effort::Default => (8, 2),
        Effort::High => (16, 3),
        Effort::Max => (32, 4),
    }
}

/// Eight columns at a step of the factor.
struct Unit {
    /// Where each of the eight columns, in the order of the matrix, stands in the order of the factor, from the first of them on.
    places: [usize; UNIT],
    /// The first column.
    first: usize,
    /// What each of them passes on to those behind it, in the order of the factor.
    passes: [[f32; UNIT]; UNIT],
    pivots: [f32; UNIT],
    /// What errors cost, in the order of the matrix.
    metric: [f32; UNIT * UNIT],
}

impl Unit {
    /// That at step `at` of the factor.
    fn new(factor: &Factor, at: usize) -> Self {
        let n = factor.columns.len();
        let columns = &factor.columns[at..at + UNIT];
        let first = columns.iter().copied().min().unwrap_or(0);
        let mut places = [0; UNIT];
        for (place, column) in columns.iter().enumerate() {
            places[column - first] = place;
        }
        let passes =
            std::array::from_fn(|i| std::array::from_fn(|j| factor.passes[(at + i) * n + at + j]));
        let pivots: [f32; UNIT] = std::array::from_fn(|j| factor.pivots[at + j]);
        let mut unit = Self {
            places,
            first,
            passes,
            pivots,
            metric: [0.0; UNIT * UNIT],
        };
        unit.metric = std::array::from_fn(|at| {
            let (i, j) = (places[at / UNIT], places[at % UNIT]);
            let shared = (0..UNIT).map(|k| pivots[k] * unit.passes[i][k] * unit.passes[j][k]);
            shared.sum()
        });
        unit
    }

    /// What columns must be moved by so that it makes up for `heard`, what earlier ones have passed on; in the order of the factor.
    fn made_up(&self, heard: &[f32; UNIT]) -> [f32; UNIT] {
        let mut by = *heard;
        for j in 0..UNIT {
            for i in 0..j {
                by[j] -= by[i] * self.passes[i][j];
            }
        }
        by
    }

    /// What is left of columns, earlier ones included, with these errors; in the order of the factor.
    fn loss(&self, heard: &[f32; UNIT], errors: &[f32; UNIT]) -> f64 {
        let left = |j: usize| {
            let passed = (0..=j).map(|i| errors[i] * self.passes[i][j]);
            heard[j] + passed.sum::<f32>()
        };
        let each = (0..UNIT).map(|j| f64::from(self.pivots[j]) * f64::from(left(j)).powi(2));
        each.sum()
    }
}

/// Rounds eight columns after the other, in the order of the factor, errors passed on; gives the levels, `[n_rows, in_features]` in stored
/// order, and what each row loses by the damped second moment.
///
/// A unit's errors `e` and what it has heard from earlier columns, `b`, lose `|e R + b|^2` with `R` its part of the factor: it is rounded to
/// the point near `w + b R^-1` in the metric `R R^T`.
pub(crate) fn feed_back(
    (lattice, effort): (&'static Lattice, Effort),
    values: &[f32],
    (scales, group): (&[RowScales], usize),
    factor: &Factor,
    backend: &'static Backend,
) -> (Vec<f32>, Vec<f64>) {
    let (n_rows, n) = (scales.len(), factor.columns.len());
    let (n_parts, n_rounds) = trials(effort);
    let mut errors = vec![0.0; values.len()];
    let mut chosen = vec![0.0; values.len()];
    let mut losses = vec![0.0; n_rows];
    let mut heard = vec![0.0; n_rows * BLOCK];
    let mut packed = Vec::new();
    for start in (0..n).step_by(BLOCK) {
        let size = BLOCK.min(n - start);
        let heard = &mut heard[..n_rows * size];
        heard.fill(0.0);
        (backend.add_product)(Product {
            c: MatrixMut {
                values: heard,
                shape: (n_rows, size),
                row_stride: size,
            },
            a: Matrix::of_rows(&errors, (n_rows, start), n),
            b: Matrix::of_rows(&factor.passes[start..], (start, size), n),
            sign: Sign::Plus,
            packed: &mut packed,
        });
        for at in (0..size).step_by(UNIT) {
            let unit = Unit::new(factor, start + at);
            let rows = heard.chunks_exact_mut(size).zip(errors.chunks_exact_mut(n));
            for (row, (heard, errors)) in rows.enumerate() {
                let cells = row * n + unit.first..row * n + unit.first + UNIT;
                let scale = scales[row].effective[unit.first / group].scale;
                let before: [f32; UNIT] = std::array::from_fn(|j| heard[at + j]);
                let by = unit.made_up(&before);
                let weights = &values[cells.clone()];
                let mut points: [f32; UNIT] =
                    std::array::from_fn(|j| weights[j] + by[unit.places[j]]);
                let (mut slope, mut levels) = ([0.0; UNIT], [0.0; UNIT]);
                (backend.improve_points)(PointStep {
                    lattice,
                    scale,
                    metric: &unit.metric,
                    slope: &mut slope,
                    values: &mut points,
                    levels: &mut levels,
                    is_free: true,
                    n_parts,
                    n_rounds,
                });
                chosen[cells].copy_from_slice(&levels);
                let mut of_unit = [0.0; UNIT];
                for ((weight, point), place) in weights.iter().zip(points).zip(unit.places) {
                    of_unit[place] = weight - point;
                }
                losses[row] += unit.loss(&before, &of_unit);
                errors[start + at..start + at + UNIT].copy_from_slice(&of_unit);
                for (i, error) in of_unit.iter().enumerate() {
                    let passes = &factor.passes[(start + at + i) * n + start..][..size];
                    let later = heard[at + UNIT..].iter_mut().zip(&passes[at + UNIT..]);
                    for (heard, pass) in later {
                        *heard += error * pass;
                    }
                }
            }
        }
    }
    (chosen, losses)
}
