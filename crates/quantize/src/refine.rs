//! Sweeps over the codes and over the scales of a tile of rows, in turns, on one objective: `(q - w) (H + ridge I) (q - w)^T`.
//!
//! No step can make it larger, whatever it begins with (quality notes 4.4 and 4.5).

use safequant_kernels::blocks::Lattice;
use safequant_kernels::{Backend, Candidate, Matrix, MatrixMut, PointStep, Product, Sign, Sweep};

use crate::inputs::OutputLoss;
use crate::prepared::Curvature;
use crate::scaling::output_noise;
use crate::search::{Freedom, RowFormat, RowScales};

/// Columns that all rows sweep before the next ones: their part of `H` stays in the cache.
const BLOCK: usize = 64;

/// A tile on its way.
pub(crate) struct Refinement<'a> {
    pub(crate) format: &'a dyn RowFormat,
    pub(crate) curvature: &'a Curvature,
    /// The rows, `[n_rows, in_features]`.
    values: &'a [f32],
    /// Their levels.
    chosen: &'a mut [f32],
    scales: &'a mut [RowScales],
    /// `(q - w) (H + ridge I)`.
    gradient: Vec<f32>,
    /// Scale, its reciprocal and offset of each value.
    columns: [Vec<f32>; 3],
    in_features: usize,
    packed: Vec<f32>,
    backend: &'static Backend,
}

impl<'a> Refinement<'a> {
    pub(crate) fn new(
        format: &'a dyn RowFormat,
        curvature: &'a Curvature,
        values: &'a [f32],
        (chosen, scales): (&'a mut [f32], &'a mut [RowScales]),
        backend: &'static Backend,
    ) -> Self {
        let in_features = values.len() / scales.len().max(1);
        let mut refinement = Self {
            format,
            curvature,
            values,
            chosen,
            scales,
            gradient: vec![0.0; values.len()],
            columns: [(); 3].map(|()| vec![0.0; values.len()]),
            in_features,
            packed: Vec::new(),
            backend,
        };
        for row in 0..refinement.scales.len() {
            for group in 0..refinement.scales[row].effective.len() {
                refinement.spread(row, group);
            }
        }
        refinement.differentiate();
        refinement
    }

    /// Rounds of sweeps, as long as codes change.
    pub(crate) fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let n_changed = self.sweep_codes();
            let n_moved = match self.format.freedom() {
                Freedom::Fixed => 0,
                Freedom::Scale | Freedom::Both => self.sweep_scales(),
            };
            if n_changed + n_moved == 0 {
                return;
            }
        }
        self.sweep_codes();
    }

    /// What each row's outputs lose, with `H` alone.
    pub(crate) fn noise(&self) -> Vec<f64> {
        let ridge = f64::from(self.curvature.ridge);
        let rows = self.values.chunks_exact(self.in_features).enumerate();
        rows.map(|(row, values)| {
            let at = row * self.in_features;
            let sum = values.iter().enumerate().map(|(j, &value)| {
                let error = f64::from(self.value(at + j)) - f64::from(value);
                error * (f64::from(self.gradient[at + j]) - ridge * error)
            });
            sum.sum::<f64>().max(0.0)
        })
        .collect()
    }

    fn value(&self, at: usize) -> f32 {
        let [scales, _, offsets] = &self.columns;
        self.chosen[at] * scales[at] + offsets[at]
    }

    /// Columns of a group.
    fn of_group(&self, group: usize) -> std::ops::Range<usize> {
        let size = self.format.group();
        group * size..((group + 1) * size).min(self.in_features)
    }

    /// Writes the numbers of a group to its columns.
    fn spread(&mut self, row: usize, group: usize) {
        let Candidate { scale, offset } = self.scales[row].effective[group];
        let inverse = self.scales[row].effective[group].inverse();
        let columns = self.of_group(group);
        let at = row * self.in_features;
        let all = at + columns.start..at + columns.end;
        for (numbers, number) in self.columns.iter_mut().zip([scale, inverse, offset]) {
            numbers[all.clone()].fill(number);
        }
    }

    /// The gradient from scratch.
    fn differentiate(&mut self) {
        let n = self.in_features;
        let errors: Vec<f32> = (0..self.values.len())
            .map(|at| self.value(at) - self.values[at])
            .collect();
        let n_rows = self.scales.len();
        let ridge = self.curvature.ridge;
        for (slope, error) in self.gradient.iter_mut().zip(&errors) {
            *slope = ridge * error;
        }
        (self.backend.add_product)(Product {
            c: MatrixMut {
                values: &mut self.gradient,
                shape: (n_rows, n),
                row_stride: n,
            },
            a: Matrix::of_rows(&errors, (n_rows, n), n),
            b: self.curvature.moment(),
            sign: Sign::Plus,
            packed: &mut self.packed,
        });
    }

    fn sweep_codes(&mut self) -> usize {
        if let Some(lattice) = self.format.lattice() {
            return self.sweep_points(lattice);
        }
        let n = self.in_features;
        let levels = self.format.levels();
        let [scales, inverses, offsets] = &self.columns;
        let mut n_changed = 0;
        for start in (0..n).step_by(BLOCK) {
            let rows = self
                .chosen
                .chunks_exact_mut(n)
                .zip(self.gradient.chunks_exact_mut(n));
            for (row, (chosen, gradient)) in rows.enumerate() {
                let all = row * n..(row + 1) * n;
                n_changed += (self.backend.sweep)(Sweep {
                    levels,
                    columns: start..(start + BLOCK).min(n),
                    chosen,
                    gradient,
                    scales: [&scales[all.clone()], &inverses[all.clone()], &offsets[all]],
                    moment: self.curvature.moment(),
                    inverse_diagonal: &self.curvature.inverse_diagonal,
                    ridge: self.curvature.ridge,
                });
            }
        }
        n_changed
    }

    /// One look at the points of every eight columns.
    fn sweep_points(&mut self, lattice: &Lattice) -> usize {
        const UNIT: usize = Lattice::UNIT;
        let (n, n_rows) = (self.in_features, self.scales.len());
        let moment = self.curvature.moment();
        let mut n_changed = 0;
        let mut changes = vec![0.0; n_rows * UNIT];
        for start in (0..n).step_by(UNIT) {
            let metric: [f32; UNIT * UNIT] = std::array::from_fn(|at| {
                let (i, j) = (start + at / UNIT, start + at % UNIT);
                let ridge = if i == j { self.curvature.ridge } else { 0.0 };
                moment.values[i * moment.row_stride + j] + ridge
            });
            let mut moved = Vec::new();
            for (row, changes) in changes.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
                *changes = [0.0; UNIT];
                let at = row * n + start;
                let scale = self.columns[0][at];
                let mut levels: [f32; UNIT] = std::array::from_fn(|j| self.chosen[at + j]);
                let mut values = levels.map(|level| level * scale);
                let before = values;
                let mut slope: [f32; UNIT] = std::array::from_fn(|j| self.gradient[at + j]);
                let step = PointStep {
                    lattice,
                    scale,
                    metric: &metric,
                    slope: &mut slope,
                    values: &mut values,
                    levels: &mut levels,
                    is_free: false,
                    n_parts: 8,
                    n_rounds: 2,
                };
                if scale > 0.0 && (self.backend.improve_points)(step) {
                    self.chosen[at..at + UNIT].copy_from_slice(&levels);
                    moved.push(row);
                    *changes = std::array::from_fn(|j| values[j] - before[j]);
                }
            }
            self.follow(&(start..start + UNIT), &moved, &changes);
            n_changed += moved.len();
        }
        n_changed
    }

    /// One look at the scale (and offset) of every group; gives the number that moved.
    fn sweep_scales(&mut self) -> usize {
        let n_groups = self.in_features.div_ceil(self.format.group());
        (0..n_groups).map(|group| self.move_group(group)).sum()
    }

    fn move_group(&mut self, group: usize) -> usize {
        let columns = self.of_group(group);
        let directions = self.directions(&columns);
        let curved = self.curved(&columns, &directions);
        let of_ones = self.curved_ones(&columns);
        let mut moved = Vec::new();
        let mut changes = vec![0.0; directions.len()];
        for row in 0..self.scales.len() {
            let line = row * columns.len()..(row + 1) * columns.len();
            let slopes = &self.gradient[row * self.in_features..][columns.clone()];
            let local = Local::new(
                slopes,
                &directions[line.clone()],
                &curved[line.clone()],
                &of_ones,
            );
            if let Some(change) = self.wanted(row, group, &local) {
                let levels = &directions[line.clone()];
                for (by, level) in changes[line].iter_mut().zip(levels) {
                    *by = change.scale * level + change.offset;
                }
                moved.push(row);
            }
        }
        self.follow(&columns, &moved, &changes);
        for &row in &moved {
            self.spread(row, group);
        }
        moved.len()
    }

    /// What the values of a group are per unit of scale: the levels, less a zero that is a whole number of scales.
    fn directions(&self, columns: &std::ops::Range<usize>) -> Vec<f32> {
        let [_, inverses, offsets] = &self.columns;
        let moves_with_scale = self.format.freedom() == Freedom::Scale;
        let rows = 0..self.scales.len();
        let at = rows.flat_map(|row| columns.clone().map(move |j| row * self.in_features + j));
        at.map(|at| {
            if moves_with_scale {
                self.chosen[at] + offsets[at] * inverses[at]
            } else {
                self.chosen[at]
            }
        })
        .collect()
    }

    /// Directions times the group's part of `H`.
    fn curved(&mut self, columns: &std::ops::Range<usize>, directions: &[f32]) -> Vec<f32> {
        let (n_rows, size) = (self.scales.len(), columns.len());
        let ridge = self.curvature.ridge;
        let mut curved: Vec<f32> = directions.iter().map(|d| ridge * d).collect();
        let moment = self.curvature.moment();
        let start = columns.start * moment.row_stride + columns.start;
        (self.backend.add_product)(Product {
            c: MatrixMut {
                values: &mut curved,
                shape: (n_rows, size),
                row_stride: size,
            },
            a: Matrix::of_rows(directions, (n_rows, size), size),
            b: Matrix::of_rows(&moment.values[start..], (size, size), moment.row_stride),
            sign: Sign::Plus,
            packed: &mut self.packed,
        });
        curved
    }

    /// The sums of the rows of the group's part of `H`.
    fn curved_ones(&self, columns: &std::ops::Range<usize>) -> Vec<f32> {
        let moment = self.curvature.moment();
        let sum = |i: usize| {
            let line = &moment.values[i * moment.row_stride..][columns.clone()];
            line.iter().sum::<f32>() + self.curvature.ridge
        };
        columns.clone().map(sum).collect()
    }

    /// The change of a row's scale and offset that is stored and a gain; it is noted as done.
    fn wanted(&mut self, row: usize, group: usize, local: &Local) -> Option<Candidate> {
        let now = self.scales[row].effective[group];
        let candidates = match self.format.freedom() {
            Freedom::Fixed => [None, None],
            Freedom::Scale => [local.best_scale(), None],
            Freedom::Both => [local.best_pair(), local.best_scale()],
        };
        for change in candidates.into_iter().flatten() {
            let wanted = Candidate {
                scale: now.scale + change.scale,
                offset: now.offset + change.offset,
            };
            let Some((stored, effective)) = self.format.near(&self.scales[row], group, wanted)
            else {
                continue;
            };
            let change = Candidate {
                scale: effective.scale - now.scale,
                // A zero that is a whole number of scales is in the directions already.
                offset: match self.format.freedom() {
                    Freedom::Both => effective.offset - now.offset,
                    Freedom::Fixed | Freedom::Scale => 0.0,
                },
            };
            if local.gain(change) > 0.0 {
                self.scales[row].stored[group] = stored;
                self.scales[row].effective[group] = effective;
                return Some(change);
            }
        }
        None
    }

    /// Brings the gradients of rows up to date whose values in these columns changed; `changes` has zeros for the others.
    fn follow(&mut self, columns: &std::ops::Range<usize>, moved: &[usize], changes: &[f32]) {
        let (n, size) = (self.in_features, columns.len());
        // Rows that stay cost less than to take the others out and put them back, as long as they are few.
        if 4 * moved.len() >= 3 * self.scales.len() {
            let mut gradient = std::mem::take(&mut self.gradient);
            self.add_changes(columns, changes, &mut gradient);
            self.gradient = gradient;
        } else if !moved.is_empty() {
            let of = |all: &[f32], size| -> Vec<f32> {
                let mut rows = Vec::with_capacity(moved.len() * size);
                for row in moved {
                    rows.extend_from_slice(&all[row * size..(row + 1) * size]);
                }
                rows
            };
            let mut lines = of(&self.gradient, n);
            self.add_changes(columns, &of(changes, size), &mut lines);
            for (row, line) in moved.iter().zip(lines.chunks_exact(n)) {
                self.gradient[row * n..(row + 1) * n].copy_from_slice(line);
            }
        }
        for &row in moved {
            let slopes = &mut self.gradient[row * n..(row + 1) * n][columns.clone()];
            for (slope, change) in slopes.iter_mut().zip(&changes[row * size..]) {
                *slope += self.curvature.ridge * change;
            }
        }
    }

    /// Adds changes of these columns times their rows of `H`.
    fn add_changes(
        &mut self,
        columns: &std::ops::Range<usize>,
        changes: &[f32],
        gradient: &mut [f32],
    ) {
        let (n, size) = (self.in_features, columns.len());
        let n_rows = changes.len() / size;
        let moment = self.curvature.moment();
        let start = columns.start * moment.row_stride;
        (self.backend.add_product)(Product {
            c: MatrixMut {
                values: gradient,
                shape: (n_rows, n),
                row_stride: n,
            },
            a: Matrix::of_rows(changes, (n_rows, size), size),
            b: Matrix::of_rows(&moment.values[start..], (size, n), moment.row_stride),
            sign: Sign::Plus,
            packed: &mut self.packed,
        });
    }
}

/// The objective around a group's scale and offset, quadratic in both.
struct Local {
    slope: [f64; 2],
    /// By scale, by both, by offset.
    curve: [f64; 3],
}

#[expect(
    clippy::many_single_char_names,
    reason = "a scale, an offset, and the three numbers of a quadratic form"
)]
impl Local {
    fn new(slopes: &[f32], directions: &[f32], curved: &[f32], of_ones: &[f32]) -> Self {
        let dot = |a: &[f32], b: &[f32]| {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum::<f64>()
        };
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        Self {
            slope: [dot(slopes, directions), sum(slopes)],
            curve: [
                dot(curved, directions),
                dot(of_ones, directions),
                sum(of_ones),
            ],
        }
    }

    fn best_scale(&self) -> Option<Candidate> {
        let by = -self.slope[0] / self.curve[0];
        narrowed(by, 0.0)
    }

    fn best_pair(&self) -> Option<Candidate> {
        let [a, b, c] = self.curve;
        let determinant = a * c - b * b;
        if determinant <= 1e-9 * a * c {
            return None;
        }
        let [s, o] = self.slope;
        narrowed((b * o - c * s) / determinant, (b * s - a * o) / determinant)
    }

    /// What the objective falls by.
    fn gain(&self, change: Candidate) -> f64 {
        let (s, o) = (f64::from(change.scale), f64::from(change.offset));
        let [a, b, c] = self.curve;
        -(2.0 * (self.slope[0] * s + self.slope[1] * o) + a * s * s + 2.0 * b * s * o + c * o * o)
    }
}

fn narrowed(scale: f64, offset: f64) -> Option<Candidate> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounded to what is stored afterwards"
    )]
    let found = Candidate {
        scale: scale as f32,
        offset: offset as f32,
    };
    (found.scale.is_finite() && found.offset.is_finite()).then_some(found)
}

/// `w H w^T` and the noise of each row.
pub(crate) fn output_losses(
    curvature: &Curvature,
    values: &[f32],
    noise: &[f64],
    backend: &'static Backend,
) -> Vec<OutputLoss> {
    let signals = output_noise(values, &curvature.inputs, backend);
    let rows = signals.into_iter().zip(noise);
    rows.map(|(signal, &noise)| OutputLoss { signal, noise })
        .collect()
}
