//! The factor that error feedback needs: `H + lambda I = R R^T` with `R` upper triangular, in the order in which columns are rounded.
//!
//! Seen from the last column that is `T^T T` with `T` upper triangular, a Cholesky factorization of `K^3 / 6` multiply-adds, and `R` is `T`
//! turned by half a circle. GPTQ's `U`, with `(H + lambda I)^-1 = U^T U`, is the inverse of `R`; nothing here needs it. The pivots, squares of
//! the diagonal of `R`, are `1 / U_jj^2`: what an error in a column costs when all later columns make up for it as well as they can.

use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Sub};

use rayon::prelude::*;
use safequant_kernels::portable::product::Real;
use safequant_kernels::{Backend, Matrix, MatrixMut, Product, Sign};

use crate::Order;

/// Columns that are factored before the rest is brought up to date.
const PANEL: usize = 128;
/// Rows of the rest that are brought up to date at once.
const ROWS: usize = 96;

/// The factor of one second moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factor {
    /// The column that is rounded at each step.
    pub(crate) columns: Vec<usize>,
    /// What each column passes on to later ones, `[K, K]` in that order: `R_kj / R_jj`, zeros below the diagonal.
    pub(crate) passes: Vec<f32>,
    /// `R_jj^2` of each step.
    pub(crate) pivots: Vec<f32>,
    /// What was added to the diagonal, as a share of its mean.
    pub(crate) damping: f64,
    /// The same as a number.
    pub(crate) added: f32,
}

/// Factors `H + damping * mean(diag H) * I`; more is added, tenfold each time, as long as that is not positive definite.
///
/// `H` is `[n, n]`, finite and symmetric with a positive trace, `group` the columns of a group. `None` if nothing helps.
pub(crate) fn factor(
    moment: &[f32],
    n: usize,
    (order, group): (Order, usize),
    damping: f64,
    backend: &'static Backend,
) -> Option<Factor> {
    let diagonal: Vec<f32> = moment.iter().step_by(n + 1).copied().collect();
    let mut share = damping.max(1e-8);
    while share <= 1.0 {
        let found = attempt::<f32>(moment, &diagonal, (order, group), share, backend)
            .filter(is_well_conditioned)
            .or_else(|| attempt::<f64>(moment, &diagonal, (order, group), share, backend));
        if found.is_some() {
            return found;
        }
        share *= 10.0;
    }
    None
}

/// Whether F32 was enough: the spread of the pivots is a lower bound of the condition number.
fn is_well_conditioned(factor: &Factor) -> bool {
    let (least, most) = factor
        .pivots
        .iter()
        .fold((f32::INFINITY, 0.0_f32), |(l, m), &p| (l.min(p), m.max(p)));
    least > most * 1e-5
}

/// What is calculated with.
trait Scalar:
    Real
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    const ONE: Self;
    fn of(value: f64) -> Self;
    fn narrow(self) -> f32;
    fn root(self) -> Self;
    fn multiply(backend: &'static Backend, product: Product<'_, Self>);
}

impl Scalar for f32 {
    const ONE: Self = 1.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding is what is asked for"
    )]
    fn of(value: f64) -> Self {
        value as f32
    }
    fn narrow(self) -> f32 {
        self
    }
    fn root(self) -> Self {
        self.sqrt()
    }
    fn multiply(backend: &'static Backend, product: Product<'_, Self>) {
        (backend.add_product)(product);
    }
}

impl Scalar for f64 {
    const ONE: Self = 1.0;
    fn of(value: f64) -> Self {
        value
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding is what is asked for"
    )]
    fn narrow(self) -> f32 {
        self as f32
    }
    fn root(self) -> Self {
        self.sqrt()
    }
    fn multiply(backend: &'static Backend, product: Product<'_, Self>) {
        (backend.add_product_f64)(product);
    }
}

fn attempt<T: Scalar>(
    moment: &[f32],
    diagonal: &[f32],
    (order, group): (Order, usize),
    share: f64,
    backend: &'static Backend,
) -> Option<Factor> {
    let n = diagonal.len();
    let mean = diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / to_f64(n);
    let extra = T::of(share * mean);
    // The last column comes first.
    let mut places: Vec<usize> = columns_of(order, diagonal, group);
    places.reverse();
    let mut matrix: Vec<T> = Vec::with_capacity(n * n);
    for &i in &places {
        let row = &moment[i * n..][..n];
        matrix.extend(places.iter().map(|&j| T::of(f64::from(row[j]))));
    }
    for i in 0..n {
        matrix[i * n + i] = matrix[i * n + i] + extra;
    }
    let pivoting = if order == Order::MinPivot {
        Pivoting::Least
    } else {
        Pivoting::None
    };
    cholesky(&mut matrix, n, pivoting, &mut places, backend)?;
    let pivots: Vec<f32> = (0..n).rev().map(|i| square(matrix[i * n + i])).collect();
    let mut passes = vec![0.0; n * n];
    turn(&matrix, n, &mut passes);
    drop(matrix);
    let is_finite = passes.iter().chain(&pivots).all(|v| v.is_finite());
    places.reverse();
    is_finite.then_some(Factor {
        columns: places,
        passes,
        pivots,
        damping: share,
        added: extra.narrow(),
    })
}

/// Writes `R_kj / R_jj`: a row of `T` is a column of `R`, turned. Some columns at once, so that a line of the cache is used up.
fn turn<T: Scalar>(matrix: &[T], n: usize, passes: &mut [f32]) {
    const COLUMNS: usize = 16;
    for first in (0..n).step_by(COLUMNS) {
        let columns = first..(first + COLUMNS).min(n);
        let lines: Vec<&[T]> = columns
            .clone()
            .map(|q| &matrix[(n - 1 - q) * n..][..n])
            .collect();
        for (p, row) in passes.chunks_exact_mut(n).enumerate().take(columns.end) {
            for ((q, out), line) in columns.clone().zip(&mut row[columns.clone()]).zip(&lines) {
                if p <= q {
                    *out = (line[n - 1 - p] * (T::ONE / line[n - 1 - q])).narrow();
                }
            }
        }
    }
}

fn square<T: Scalar>(value: T) -> f32 {
    (value * value).narrow()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "columns are far fewer than 2^52"
)]
fn to_f64(n: usize) -> f64 {
    n as f64
}

/// The columns in the order in which they are rounded, before pivoting.
fn columns_of(order: Order, diagonal: &[f32], group: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..diagonal.len()).collect();
    let by_diagonal = |a: &usize, b: &usize| diagonal[*b].total_cmp(&diagonal[*a]);
    match order {
        Order::Natural | Order::MinPivot => {}
        Order::Activation => columns.sort_by(by_diagonal),
        Order::GroupAware => {
            let group = group.max(1);
            let largest = |g: usize| {
                let members = diagonal.iter().skip(g * group).take(group);
                members.fold(0.0_f32, |most, d| most.max(*d))
            };
            let mut groups: Vec<usize> = (0..diagonal.len().div_ceil(group)).collect();
            groups.sort_by(|&a, &b| largest(b).total_cmp(&largest(a)));
            columns.clear();
            for g in groups {
                let mut members: Vec<usize> =
                    (g * group..((g + 1) * group).min(diagonal.len())).collect();
                members.sort_by(by_diagonal);
                columns.extend(members);
            }
        }
    }
    columns
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pivoting {
    None,
    /// The least diagonal element that is left.
    Least,
}

/// `A = T^T T`, `T` in the upper triangle of `a`; `None` if `A` is not positive definite. Pivoting exchanges rows and columns, and
/// with them the entries of `places`.
fn cholesky<T: Scalar>(
    a: &mut [T],
    n: usize,
    pivoting: Pivoting,
    places: &mut [usize],
    backend: &'static Backend,
) -> Option<()> {
    let mut left: Vec<T> = (0..n).map(|i| a[i * n + i]).collect();
    let mut exchanged = Vec::new();
    for start in (0..n).step_by(PANEL) {
        let end = (start + PANEL).min(n);
        exchanged.clear();
        for k in start..end {
            if pivoting == Pivoting::Least {
                let rest = left.iter().enumerate().skip(k);
                let least = rest.fold(k, |least, (i, d)| if *d < left[least] { i } else { least });
                exchange(a, n, (start, k), least);
                exchanged.push((k, least));
                left.swap(k, least);
                places.swap(k, least);
            }
            let (above, row) = a.split_at_mut(k * n);
            let row = &mut row[k..n];
            for line in above[start * n..].chunks_exact(n) {
                let factor = line[k];
                for (value, other) in row.iter_mut().zip(&line[k..]) {
                    *value = *value - *other * factor;
                }
            }
            let pivot = row[0];
            // Also gives up on what is not a number.
            if pivot.partial_cmp(&T::default()) != Some(Ordering::Greater) {
                return None;
            }
            let per_root = T::ONE / pivot.root();
            for (value, left) in row.iter_mut().zip(&mut left[k..]) {
                *value = *value * per_root;
                *left = *left - *value * *value;
            }
        }
        // Rows that were done before the panel follow at once, each while it is in the cache.
        for row in a.chunks_exact_mut(n).take(start) {
            for &(k, other) in &exchanged {
                row.swap(k, other);
            }
        }
        update(a, n, start, end, backend);
    }
    Some(())
}

/// Exchanges rows and columns `k` and `other`, `k <= other`, of a symmetric matrix of which the upper triangle is kept; rows from
/// `start` to `k` are of the factor.
fn exchange<T: Copy>(a: &mut [T], n: usize, (start, k): (usize, usize), other: usize) {
    if k == other {
        return;
    }
    for row in a[start * n..k * n].chunks_exact_mut(n) {
        row.swap(k, other);
    }
    a.swap(k * n + k, other * n + other);
    for i in k + 1..other {
        a.swap(k * n + i, i * n + other);
    }
    for i in other + 1..n {
        a.swap(k * n + i, other * n + i);
    }
}

/// Takes the panel's share from the rest of the upper triangle.
fn update<T: Scalar>(a: &mut [T], n: usize, start: usize, end: usize, backend: &'static Backend) {
    let (done, rest) = a.split_at_mut(end * n);
    let panel = &done[start * n..];
    let rows = rest.par_chunks_mut(ROWS * n).enumerate();
    rows.for_each_init(Vec::new, |packed, (chunk, rows)| {
        let first = end + chunk * ROWS;
        let n_rows = rows.len() / n;
        let columns = n - first;
        let of = |width| Matrix::of_rows(&panel[first..], (end - start, width), n);
        T::multiply(
            backend,
            Product {
                c: MatrixMut {
                    values: &mut rows[first..],
                    shape: (n_rows, columns),
                    row_stride: n,
                },
                a: of(n_rows).transposed(),
                b: of(columns),
                sign: Sign::Minus,
                packed,
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `X^T X / n` of correlated columns of unequal size.
    fn moment(n: usize) -> Vec<f32> {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / 16_777_216.0 - 0.5
        };
        let tokens = 2 * n;
        let mut x = vec![0.0_f64; tokens * n];
        for row in x.chunks_exact_mut(n) {
            let common = next();
            for (j, value) in row.iter_mut().enumerate() {
                *value = (next() + common) * (1.0 + to_f64(j % 5));
            }
        }
        let sum = |i: usize, j: usize| x.chunks_exact(n).map(|r| r[i] * r[j]).sum::<f64>();
        let all = (0..n * n).map(|at| f32::of(sum(at / n, at % n) / to_f64(tokens)));
        all.collect()
    }

    fn check(n: usize, order: Order, tolerance: f64) {
        let moment = moment(n);
        let backend = Backend::detect();
        let found = factor(&moment, n, (order, 8), 0.01, backend).unwrap();
        let mut sorted = found.columns.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..n), "every column once");
        let mean = moment
            .iter()
            .step_by(n + 1)
            .map(|d| f64::from(*d))
            .sum::<f64>()
            / to_f64(n);
        // R R^T = H + lambda I.
        let r = |p: usize, q: usize| {
            f64::from(found.passes[p * n + q]) * f64::from(found.pivots[q]).sqrt()
        };
        for p in 0..n {
            let i = found.columns[p];
            for q in 0..n {
                let sum: f64 = (p.max(q)..n).map(|k| r(p, k) * r(q, k)).sum();
                let extra = if p == q { found.damping * mean } else { 0.0 };
                let expected = f64::from(moment[i * n + found.columns[q]]) + extra;
                let off = (sum - expected).abs() / mean;
                assert!(off < tolerance, "{order} {n}: {p}, {q}: {sum}, {expected}");
            }
        }
    }

    #[test]
    fn the_factor_is_that_of_the_damped_moment() {
        for order in Order::ALL {
            check(1, order, 1e-5);
            check(40, order, 1e-3);
            check(150, order, 3e-3);
        }
    }

    #[test]
    fn the_least_pivot_comes_last() {
        let n = 60;
        let moment = moment(n);
        let found = factor(&moment, n, (Order::MinPivot, 8), 0.01, Backend::detect()).unwrap();
        let least = (0..n).min_by(|&a, &b| moment[a * n + a].total_cmp(&moment[b * n + b]));
        assert_eq!(found.columns.last().copied(), least);
        let expected = |order| {
            let factor = factor(&moment, n, (order, 8), 0.01, Backend::detect()).unwrap();
            factor.pivots.iter().map(|p| f64::from(*p)).sum::<f64>()
        };
        assert!(expected(Order::MinPivot) < expected(Order::Natural));
    }

    #[test]
    fn what_is_singular_is_damped_more() {
        let n = 32;
        // Rank one, and far from what F32 can factor undamped.
        let moment: Vec<f32> = vec![1.0; n * n];
        let found = factor(&moment, n, (Order::Activation, 8), 1e-8, Backend::detect()).unwrap();
        assert!(found.damping >= 1e-8);
        let negative: Vec<f32> = (0..n * n)
            .map(|at| if at % (n + 1) == 0 { 1.0 } else { -1.0 })
            .collect();
        assert_eq!(
            factor(&negative, n, (Order::Natural, 8), 0.01, Backend::detect()),
            None
        );
    }

    #[test]
    fn threads_do_not_matter() {
        let n = 300;
        let moment = moment(n);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| factor(&moment, n, (Order::MinPivot, 8), 0.01, Backend::detect()))
        };
        assert_eq!(with(1), with(3));
    }
}
