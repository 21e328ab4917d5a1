//! Error feedback with several hypotheses for each row of a tile.

use safequant_kernels::{Backend, Beam, Levels, Matrix, MatrixMut, Product, Sign};

use crate::factor::Factor;
use crate::search::RowScales;

/// Columns that are rounded before the others hear of their errors.
const BLOCK: usize = 128;

/// Hypotheses of a row.
const WIDTH: usize = 4;

/// A block that is done: what each hypothesis chose in it, and the one before it that it comes from.
struct Done {
    /// `[n_rows, WIDTH, n_columns]`.
    chosen: Vec<f32>,
    /// `[n_rows, WIDTH]`.
    origins: Vec<usize>,
}

/// As [`crate::feedback::feed_back`], but of each row the best of [`WIDTH`] hypotheses is kept.
pub(crate) fn search_beam(
    levels: Levels,
    values: &[f32],
    (scales, group): (&[RowScales], usize),
    factor: &Factor,
    backend: &'static Backend,
) -> (Vec<f32>, Vec<f64>) {
    let (n_rows, n) = (scales.len(), factor.columns.len());
    let mut left = vec![0.0; values.len() * WIDTH];
    for (left, values) in left.chunks_exact_mut(n * WIDTH).zip(values.chunks_exact(n)) {
        for (left, &column) in left.iter_mut().zip(&factor.columns) {
            *left = values[column];
        }
    }
    let first = |at: usize| {
        if at.is_multiple_of(WIDTH) {
            0.0
        } else {
            f64::INFINITY
        }
    };
    let mut costs: Vec<f64> = (0..n_rows * WIDTH).map(first).collect();
    let mut history: Vec<Done> = Vec::new();
    let mut packed = Vec::new();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let size = end - start;
        let mut errors = vec![0.0; n_rows * WIDTH * size];
        for (errors, left) in errors.chunks_exact_mut(size).zip(left.chunks_exact(n)) {
            errors.copy_from_slice(&left[start..end]);
        }
        let mut done = Done {
            chosen: vec![0.0; errors.len()],
            origins: vec![0; n_rows * WIDTH],
        };
        let rows = errors
            .chunks_exact_mut(size * WIDTH)
            .zip(done.chosen.chunks_exact_mut(size * WIDTH))
            .zip(costs.chunks_exact_mut(WIDTH))
            .zip(done.origins.chunks_exact_mut(WIDTH))
            .zip(scales)
            .zip(values.chunks_exact(n));
        for (((((values, chosen), costs), origins), row), weights) in rows {
            let columns = factor.columns[start..end].iter();
            let weights: Vec<f32> = columns.map(|&column| weights[column]).collect();
            let [scales, inverses, offsets] = of_columns(row, &factor.columns[start..end], group);
            (backend.search_beam)(Beam {
                levels,
                factor: Matrix::of_rows(&factor.passes[start * n + start..], (size, size), n),
                pivots: &factor.pivots[start..end],
                weights: &weights,
                scales: [&scales, &inverses, &offsets],
                values,
                chosen,
                costs,
                origins,
            });
        }
        if end < n {
            follow(&mut left, (n, end), &done.origins);
            (backend.add_product)(Product {
                c: MatrixMut {
                    values: &mut left[end..],
                    shape: (n_rows * WIDTH, n - end),
                    row_stride: n,
                },
                a: Matrix::of_rows(&errors, (n_rows * WIDTH, size), size),
                b: Matrix::of_rows(&factor.passes[start * n + end..], (size, n - end), n),
                sign: Sign::Plus,
                packed: &mut packed,
            });
        }
        history.push(done);
    }
    let mut chosen = vec![0.0; values.len()];
    let mut losses = Vec::with_capacity(n_rows);
    for (r, (row, costs)) in chosen
        .chunks_exact_mut(n)
        .zip(costs.chunks_exact(WIDTH))
        .enumerate()
    {
        let best = (1..WIDTH).fold(0, |best, i| if costs[i] < costs[best] { i } else { best });
        losses.push(costs[best]);
        trace(&history, (r, best), &factor.columns, row);
    }
    (chosen, losses)
}

/// Scale, reciprocal and offset of some columns of a row.
fn of_columns(row: &RowScales, columns: &[usize], group: usize) -> [Vec<f32>; 3] {
    let candidates = || columns.iter().map(|column| row.effective[column / group]);
    [
        candidates().map(|c| c.scale).collect(),
        candidates().map(|c| c.inverse()).collect(),
        candidates().map(|c| c.offset).collect(),
    ]
}

/// Gives each hypothesis what is left of the one that it comes from.
fn follow(left: &mut [f32], (n, end): (usize, usize), origins: &[usize]) {
    for (left, origins) in left
        .chunks_exact_mut(n * WIDTH)
        .zip(origins.chunks_exact(WIDTH))
    {
        if origins.iter().enumerate().all(|(i, origin)| i == *origin) {
            continue;
        }
        let before: Vec<Vec<f32>> = left
            .chunks_exact(n)
            .map(|line| line[end..].to_vec())
            .collect();
        for (line, &origin) in left.chunks_exact_mut(n).zip(origins) {
            line[end..].copy_from_slice(&before[origin]);
        }
    }
}

/// Writes what a hypothesis chose, from the last block to the first.
fn trace(history: &[Done], (row, best): (usize, usize), columns: &[usize], out: &mut [f32]) {
    let mut hypothesis = row * WIDTH + best;
    for (start, done) in (0..columns.len()).step_by(BLOCK).zip(history).rev() {
        let size = BLOCK.min(columns.len() - start);
        let chosen = &done.chosen[hypothesis * size..][..size];
        for (&column, level) in columns[start..start + size].iter().zip(chosen) {
            out[column] = *level;
        }
        hypothesis = row * WIDTH + done.origins[hypothesis];
    }
}
