//! Error feedback over a tile of rows: GPTQ with scales that are fixed beforehand.

use safequant_kernels::{Backend, Feedback, GroupScales, Levels, Matrix, MatrixMut, Product, Sign};

use crate::factor::Factor;
use crate::search::RowScales;

/// Columns that are rounded before the others hear of their errors.
const BLOCK: usize = 128;

/// Rounds the columns of some rows in the order of the factor; gives the levels, `[n_rows, in_features]` in stored order, and what
/// each row loses by the damped second moment.
///
/// `values`: `[n_rows, in_features]`; `scales`: of each row; `group`: columns of a group.
pub(crate) fn feed_back(
    levels: Levels,
    values: &[f32],
    (scales, group): (&[RowScales], usize),
    factor: &Factor,
    backend: &'static Backend,
) -> (Vec<f32>, Vec<f64>) {
    let (n_rows, n) = (scales.len(), factor.columns.len());
    let mut left = vec![0.0; values.len()];
    for (left, values) in left.chunks_exact_mut(n).zip(values.chunks_exact(n)) {
        for (left, &column) in left.iter_mut().zip(&factor.columns) {
            *left = values[column];
        }
    }
    let of_groups = Transposed::new(scales);
    let groups: Vec<usize> = factor.columns.iter().map(|column| column / group).collect();
    let mut chosen = vec![0.0; values.len()];
    let mut block_weights = vec![0.0; BLOCK * n_rows];
    let mut block_values = vec![0.0; BLOCK * n_rows];
    let mut block_chosen = vec![0.0; BLOCK * n_rows];
    let mut packed = Vec::new();
    let mut losses = vec![0.0; n_rows];
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let size = end - start;
        let (weights, errors, found) = (
            &mut block_weights[..size * n_rows],
            &mut block_values[..size * n_rows],
            &mut block_chosen[..size * n_rows],
        );
        for (r, row) in left.chunks_exact(n).enumerate() {
            for (p, value) in row[start..end].iter().enumerate() {
                errors[p * n_rows + r] = *value;
            }
        }
        for (r, row) in values.chunks_exact(n).enumerate() {
            for (p, &column) in factor.columns[start..end].iter().enumerate() {
                weights[p * n_rows + r] = row[column];
            }
        }
        (backend.feed_back)(Feedback {
            levels,
            n_rows,
            weights,
            values: errors,
            factor: Matrix::of_rows(&factor.passes[start * n + start..], (size, size), n),
            groups: &groups[start..end],
            scales: of_groups.view(),
            chosen: found,
        });
        for (column, &pivot) in errors.chunks_exact(n_rows).zip(&factor.pivots[start..end]) {
            for (loss, error) in losses.iter_mut().zip(column) {
                *loss += f64::from(pivot) * f64::from(*error) * f64::from(*error);
            }
        }
        for (r, row) in chosen.chunks_exact_mut(n).enumerate() {
            for (p, &column) in factor.columns[start..end].iter().enumerate() {
                row[column] = found[p * n_rows + r];
            }
        }
        if end < n {
            (backend.add_product)(Product {
                c: MatrixMut {
                    values: &mut left[end..],
                    shape: (n_rows, n - end),
                    row_stride: n,
                },
                a: Matrix::of_rows(weights, (size, n_rows), n_rows).transposed(),
                b: Matrix::of_rows(&factor.passes[start * n + end..], (size, n - end), n),
                sign: Sign::Plus,
                packed: &mut packed,
            });
        }
    }
    (chosen, losses)
}

/// The numbers of groups, rows side by side.
struct Transposed {
    scales: Vec<f32>,
    inverses: Vec<f32>,
    offsets: Vec<f32>,
}

impl Transposed {
    fn new(rows: &[RowScales]) -> Self {
        let n_groups = rows.first().map_or(0, |row| row.effective.len());
        let all = (0..n_groups).flat_map(|g| rows.iter().map(move |row| row.effective[g]));
        let mut found = Self {
            scales: Vec::new(),
            inverses: Vec::new(),
            offsets: Vec::new(),
        };
        for candidate in all {
            found.scales.push(candidate.scale);
            found.inverses.push(candidate.inverse());
            found.offsets.push(candidate.offset);
        }
        found
    }

    fn view(&self) -> GroupScales<'_> {
        GroupScales {
            scales: &self.scales,
            inverses: &self.inverses,
            offsets: &self.offsets,
        }
    }
}
