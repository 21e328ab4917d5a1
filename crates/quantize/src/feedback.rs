//! Error feedback over a tile of rows: GPTQ with scales that are fixed beforehand.

use safequant_kernels::{Backend, Feedback, GroupScales, Levels, Matrix, MatrixMut, Product, Sign};

use crate::Effort;
use crate::beam::search_beam;
use crate::factor::Factor;
use crate::search::RowScales;

/// Columns that are rounded between two products.
const BLOCK: usize = 128;

/// Rounds the columns of some rows as an effort asks for: with error feedback, or with several hypotheses for each row of which the best
/// is kept. Takes and gives what [`feed_back`] does.
pub(crate) fn round_columns(
    effort: Effort,
    levels: Levels,
    values: &[f32],
    scales: (&[RowScales], usize),
    factor: &Factor,
    backend: &'static Backend,
) -> (Vec<f32>, Vec<f64>) {
    match effort {
        Effort::Fast | Effort::Default | Effort::High => {
            feed_back(levels, values, scales, factor, backend)
        }
        Effort::Max => search_beam(levels, values, scales, factor, backend),
    }
}

/// Rounds the columns of some rows in the order of the factor; gives the levels, `[n_rows, in_features]` in stored order, and what
/// each row loses by the damped second moment.
///
/// `values`: `[n_rows, in_features]`; `scales`: of each row; `group`: columns of a group.
fn feed_back(
    levels: Levels,
    values: &[f32],
    (scales, group): (&[RowScales], usize),
    factor: &Factor,
    backend: &'static Backend,
) -> (Vec<f32>, Vec<f64>) {
    let (n_rows, n) = (scales.len(), factor.columns.len());
    let of_groups = Transposed::new(scales);
    let groups: Vec<usize> = factor.columns.iter().map(|column| column / group).collect();
    let mut left = columns_of(values, &factor.columns, n_rows);
    let mut chosen = vec![0.0; values.len()];
    let mut targets = vec![0.0; BLOCK * n_rows];
    let mut packed = Vec::new();
    let mut losses = vec![0.0; n_rows];
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let size = end - start;
        let (done, weights) = left[..end * n_rows].split_at_mut(start * n_rows);
        let targets = &mut targets[..size * n_rows];
        targets.copy_from_slice(weights);
        // A block hears of all errors before it at once: its sums stay in the cache, and their order is the same.
        (backend.add_product)(Product {
            c: MatrixMut {
                values: targets,
                shape: (size, n_rows),
                row_stride: n_rows,
            },
            a: Matrix::of_rows(&factor.passes[start..], (start, size), n).transposed(),
            b: Matrix::of_rows(done, (start, n_rows), n_rows),
            sign: Sign::Plus,
            packed: &mut packed,
        });
        (backend.feed_back)(Feedback {
            levels,
            n_rows,
            weights,
            values: targets,
            factor: Matrix::of_rows(&factor.passes[start * n + start..], (size, size), n),
            groups: &groups[start..end],
            scales: of_groups.view(),
            chosen: &mut chosen[start * n_rows..end * n_rows],
        });
        for (column, &pivot) in targets.chunks_exact(n_rows).zip(&factor.pivots[start..end]) {
            for (loss, error) in losses.iter_mut().zip(column) {
                *loss += f64::from(pivot) * f64::from(*error) * f64::from(*error);
            }
        }
    }
    (rows_of(&chosen, &factor.columns, n_rows), losses)
}

/// Rows that are turned at once: their lines of the cache fit its sets even where rows are a power of two apart.
const TURNED: usize = 8;

/// Rows `[n_rows, n]` as columns in an order, `[n, n_rows]`.
fn columns_of(rows: &[f32], order: &[usize], n_rows: usize) -> Vec<f32> {
    let n = order.len();
    let mut columns = vec![0.0; rows.len()];
    for (first, rows) in rows.chunks(TURNED * n).enumerate() {
        for (column, &from) in columns.chunks_exact_mut(n_rows).zip(order) {
            let column = &mut column[first * TURNED..];
            for (value, row) in column.iter_mut().zip(rows.chunks_exact(n)) {
                *value = row[from];
            }
        }
    }
    columns
}

/// The rows that columns in an order are of.
fn rows_of(columns: &[f32], order: &[usize], n_rows: usize) -> Vec<f32> {
    let n = order.len();
    let mut rows = vec![0.0; columns.len()];
    for (first, rows) in rows.chunks_mut(TURNED * n).enumerate() {
        for (column, &to) in columns.chunks_exact(n_rows).zip(order) {
            let column = &column[first * TURNED..];
            for (value, row) in column.iter().zip(rows.chunks_exact_mut(n)) {
                row[to] = *value;
            }
        }
    }
    rows
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
