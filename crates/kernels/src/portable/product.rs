//! Products of matrices whose sums have a defined order.
//!
//! Each element of `c` is one chain of fused multiply-adds over ascending `k`, begun with what it held. So a product is the same to
//! the last bit on every processor, for every number of threads, and however it is cut into blocks of rows, columns or `k`: a
//! quantizer's codes do not depend on any of them. Blocking is that of Goto and van de Geijn (ACM TOMS 34, 2008): panels of both
//! factors are copied so that the innermost loop reads them in order.

use crate::matrix::{Matrix, Product, Sign};

/// How memory is asked for before it is needed; what that is worth is the backend's business, and nothing is what portable does.
pub trait Ahead: Copy {
    /// Asks for the line of the cache that an element is in.
    fn fetch<T>(self, values: &[T], at: usize);
}

/// Nothing is asked for.
#[derive(Clone, Copy, Debug)]
pub struct NothingAhead;

impl Ahead for NothingAhead {
    #[inline(always)]
    fn fetch<T>(self, _values: &[T], _at: usize) {}
}

/// What is computed with.
pub trait Real: Copy + Default + std::ops::Neg<Output = Self> {
    /// `self * b + c`, rounded once.
    #[must_use]
    fn fused(self, b: Self, c: Self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

/// Rows of the innermost block: with two vectors of columns they are twelve registers of sums.
const ROWS: usize = 6;
/// Steps of `k` that are worked off at once: a panel of each factor fits L1.
const DEPTH: usize = 256;
/// Rows of `a` that are copied at once.
const A_ROWS: usize = 96;
/// Columns of `b` that are copied at once: with the rows of `a` they fit L2.
const B_COLUMNS: usize = 256;
/// Elements of a line of the cache, as panels are copied.
const LINE: usize = 16;

/// `c += a b` or `c -= a b`, in F32.
///
/// # Panics
/// If the shapes do not go together or are larger than the memory.
#[inline(always)]
pub fn add_product(product: Product<'_, f32>) {
    add_product_ahead(product, NothingAhead);
}

/// [`add_product`], with the memory of sums asked for ahead.
///
/// # Panics
/// As [`add_product`].
#[inline(always)]
pub fn add_product_ahead(product: Product<'_, f32>, ahead: impl Ahead) {
    add::<f32, 16>(product, ahead);
}

/// `c += a b` or `c -= a b`, in F64.
///
/// # Panics
/// If the shapes do not go together or are larger than the memory.
#[inline(always)]
pub fn add_product_f64(product: Product<'_, f64>) {
    add_product_f64_ahead(product, NothingAhead);
}

/// [`add_product_f64`], with the memory of sums asked for ahead.
///
/// # Panics
/// As [`add_product_f64`].
#[inline(always)]
pub fn add_product_f64_ahead(product: Product<'_, f64>, ahead: impl Ahead) {
    add::<f64, 8>(product, ahead);
}

#[inline(always)]
fn add<T: Real, const WIDTH: usize>(product: Product<'_, T>, ahead: impl Ahead) {
    let (m, n, k) = product.shape();
    let Product {
        c,
        a,
        b,
        sign,
        packed,
    } = product;
    packed.resize(DEPTH * (B_COLUMNS + A_ROWS), T::default());
    let (b_panels, a_panels) = packed.split_at_mut(DEPTH * B_COLUMNS);
    for j in (0..n).step_by(B_COLUMNS) {
        let columns = j..(j + B_COLUMNS).min(n);
        for p in (0..k).step_by(DEPTH) {
            let depth = p..(p + DEPTH).min(k);
            copy_columns::<T, WIDTH>((&b, Sign::Plus), &columns, &depth, b_panels, ahead);
            for i in (0..m).step_by(A_ROWS) {
                let rows = i..(i + A_ROWS).min(m);
                copy_columns::<T, ROWS>((&a.transposed(), sign), &rows, &depth, a_panels, ahead);
                for (bj, b) in panels::<T, WIDTH>(columns.clone(), depth.len(), b_panels) {
                    for (ai, a) in panels::<T, ROWS>(rows.clone(), depth.len(), a_panels) {
                        let size = (ROWS.min(rows.end - ai), WIDTH.min(columns.end - bj));
                        let at = ai * c.row_stride + bj;
                        // The next block's sums are a row of the cache each, far from one another.
                        for i in ROWS..2 * ROWS {
                            ahead.fetch(c.values, at + i * c.row_stride);
                            ahead.fetch(c.values, at + i * c.row_stride + WIDTH - 1);
                        }
                        block::<T, WIDTH>((a, b), &mut c.values[at..], c.row_stride, size);
                    }
                }
            }
        }
    }
}

/// Where each panel of `size` rows (or columns) begins, and its memory.
#[inline(always)]
fn panels<T, const SIZE: usize>(
    all: std::ops::Range<usize>,
    depth: usize,
    memory: &mut [T],
) -> impl Iterator<Item = (usize, &mut [T])> {
    all.step_by(SIZE)
        .zip(memory.chunks_exact_mut(SIZE * depth.max(1)))
}

/// The rows from `at` on, as far as the block goes, and the columns `depth` of a matrix.
#[inline(always)]
fn panel<'a, T>(
    matrix: &Matrix<'a, T>,
    at: usize,
    rows: &std::ops::Range<usize>,
    depth: &std::ops::Range<usize>,
) -> Matrix<'a, T> {
    let start = at * matrix.row_stride + depth.start * matrix.column_stride;
    Matrix {
        values: &matrix.values[start..],
        shape: (rows.end - at, depth.len()),
        ..*matrix
    }
}

/// Rows that are asked for ahead of the one that is copied.
const ROWS_AHEAD: usize = 6;

/// Copies the columns of a block, `SIZE` of them to a panel, side by side: all first elements, all second ones.
#[inline(always)]
fn copy_columns<T: Real, const SIZE: usize>(
    (from, sign): (&Matrix<'_, T>, Sign),
    columns: &std::ops::Range<usize>,
    depth: &std::ops::Range<usize>,
    out: &mut [T],
    ahead: impl Ahead,
) {
    if from.column_stride != 1 {
        for (at, out) in panels::<T, SIZE>(columns.clone(), depth.len(), out) {
            let panel = panel(&from.transposed(), at, columns, depth);
            copy_panel::<T, SIZE>(panel, sign, out);
        }
        return;
    }
    // Row by row, through all panels: a panel's own few columns are a line of the cache on a page of its own for each row.
    let size = SIZE * depth.len();
    for (p, row) in depth.clone().enumerate() {
        let start = row * from.row_stride + columns.start;
        let row = &from.values[start..start + columns.len()];
        let next = start + ROWS_AHEAD * from.row_stride;
        for line in (0..columns.len()).step_by(LINE) {
            ahead.fetch(from.values, next + line);
        }
        let (whole, rest) = row.as_chunks::<SIZE>();
        let mut at = p * SIZE;
        for values in whole {
            let out = &mut out[at..at + SIZE];
            out.copy_from_slice(values);
            if sign == Sign::Minus {
                for value in out {
                    *value = -*value;
                }
            }
            at += size;
        }
        if !rest.is_empty() {
            let out = &mut out[at..at + SIZE];
            out.fill(T::default());
            for (out, value) in out.iter_mut().zip(rest) {
                *out = match sign {
                    Sign::Plus => *value,
                    Sign::Minus => -*value,
                };
            }
        }
    }
}

/// The same for up to `SIZE` rows. Rows that are missing are zeros.
#[inline(always)]
fn copy_panel<T: Real, const SIZE: usize>(from: Matrix<'_, T>, sign: Sign, out: &mut [T]) {
    let (rows, depth) = (from.shape.0.min(SIZE), from.shape.1);
    if rows < SIZE {
        out.fill(T::default());
    }
    // A line of each row at a time: it is used up before the next row's pushes it out of the cache.
    for start in (0..depth).step_by(LINE) {
        let end = (start + LINE).min(depth);
        for i in 0..rows {
            let row = &from.values[i * from.row_stride..];
            for p in start..end {
                let value = row[p * from.column_stride];
                out[p * SIZE + i] = match sign {
                    Sign::Plus => value,
                    Sign::Minus => -value,
                };
            }
        }
    }
}

/// One block of sums, of which `size` are in the matrix.
#[inline(always)]
fn block<T: Real, const WIDTH: usize>(
    (a, b): (&[T], &[T]),
    c: &mut [T],
    row_stride: usize,
    (rows, columns): (usize, usize),
) {
    let mut sums = [[T::default(); WIDTH]; ROWS];
    if columns == WIDTH {
        for (i, sums) in sums.iter_mut().enumerate().take(rows) {
            sums.copy_from_slice(&c[i * row_stride..][..WIDTH]);
        }
    } else {
        for (i, sums) in sums.iter_mut().enumerate().take(rows) {
            sums[..columns].copy_from_slice(&c[i * row_stride..][..columns]);
        }
    }
    multiply::<T, WIDTH>(a, b, &mut sums);
    if columns == WIDTH {
        for (i, sums) in sums.iter().enumerate().take(rows) {
            c[i * row_stride..][..WIDTH].copy_from_slice(sums);
        }
    } else {
        for (i, sums) in sums.iter().enumerate().take(rows) {
            c[i * row_stride..][..columns].copy_from_slice(&sums[..columns]);
        }
    }
}

/// The innermost loop: rustc keeps the sums in registers.
#[inline(always)]
fn multiply<T: Real, const WIDTH: usize>(a: &[T], b: &[T], sums: &mut [[T; WIDTH]; ROWS]) {
    let mut kept = *sums;
    let (a, _) = a.as_chunks::<ROWS>();
    let (b, _) = b.as_chunks::<WIDTH>();
    for (a, b) in a.iter().zip(b) {
        for (kept, &a) in kept.iter_mut().zip(a) {
            for (kept, &b) in kept.iter_mut().zip(b) {
                *kept = a.fused(b, *kept);
            }
        }
    }
    *sums = kept;
}

#[cfg(test)]
#[expect(
    clippy::many_single_char_names,
    reason = "what the parts of a product are called everywhere"
)]
mod tests {
    use super::*;
    use crate::matrix::MatrixMut;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    #[test]
    fn each_element_is_one_chain_over_ascending_k() {
        for (m, n, k) in [
            (1, 1, 1),
            (6, 16, 256),
            (7, 17, 300),
            (100, 530, 9),
            (3, 0, 4),
            (0, 3, 4),
            (2, 3, 0),
        ] {
            let (a, b, c) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
            for sign in [Sign::Plus, Sign::Minus] {
                let mut expected = c.clone();
                for i in 0..m {
                    for j in 0..n {
                        for p in 0..k {
                            let factor = if sign == Sign::Minus {
                                -a[i * k + p]
                            } else {
                                a[i * k + p]
                            };
                            expected[i * n + j] = factor.mul_add(b[p * n + j], expected[i * n + j]);
                        }
                    }
                }
                let mut found = c.clone();
                add_product(Product {
                    c: MatrixMut {
                        values: &mut found,
                        shape: (m, n),
                        row_stride: n,
                    },
                    a: Matrix::of_rows(&a, (m, k), k),
                    b: Matrix::of_rows(&b, (k, n), n),
                    sign,
                    packed: &mut Vec::new(),
                });
                assert_eq!(found, expected, "{m} x {n} x {k}, {sign:?}");
            }
        }
    }

    #[test]
    fn factors_may_be_transposed_and_a_part_of_something_larger() {
        let (m, n, k, stride) = (9, 20, 33, 40);
        let (a, b) = (numbers(k * stride, 1), numbers(n * stride, 2));
        let left = Matrix::of_rows(&a, (k, m), stride).transposed();
        let right = Matrix::of_rows(&b, (n, k), stride).transposed();
        let mut found = vec![0.0; m * stride];
        let mut expected = found.clone();
        for i in 0..m {
            for j in 0..n {
                let sum = (0..k).fold(0.0, |sum, p| {
                    a[p * stride + i].mul_add(b[j * stride + p], sum)
                });
                expected[i * stride + j] = sum;
            }
        }
        add_product(Product {
            c: MatrixMut {
                values: &mut found,
                shape: (m, n),
                row_stride: stride,
            },
            a: left,
            b: right,
            sign: Sign::Plus,
            packed: &mut Vec::new(),
        });
        assert_eq!(found, expected);
    }

    #[test]
    #[should_panic(expected = "shapes of a product")]
    fn shapes_must_go_together() {
        add_product(Product {
            c: MatrixMut {
                values: &mut [0.0; 4],
                shape: (2, 2),
                row_stride: 2,
            },
            a: Matrix::of_rows(&[0.0; 6], (2, 3), 3),
            b: Matrix::of_rows(&[0.0; 4], (2, 2), 2),
            sign: Sign::Plus,
            packed: &mut Vec::new(),
        });
    }
}
