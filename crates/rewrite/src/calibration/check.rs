//! What numbers can be statistics (specs/calibration.md, clauses 13 to 15; specs/imatrix.md, clause 14).

use super::{Error, SecondMoment, Statistics};

/// How far a sum of F32 products may be from the exact one, relative to the product of the two columns' norms: 4096 roundings.
const ALLOWANCE: f64 = 1.0 / 4096.0;

/// Below the normal range squares vanish whose roots do not.
const VANISHED: f64 = f32::MIN_POSITIVE as f64;

/// Whose numbers are looked at.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) file: &'a str,
    pub(super) module: &'a str,
}

impl Subject<'_> {
    fn wrong(self, statistic: &'static str, expected: &'static str, found: String) -> Error {
        Error::Value {
            file: self.file.to_owned(),
            module: self.module.to_owned(),
            statistic,
            expected,
            found,
        }
    }

    /// That every value is finite.
    pub(super) fn finite(self, statistic: &'static str, values: &[f32]) -> Result<(), Error> {
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let found = values.get(at).copied().unwrap_or_default();
                Err(self.wrong(statistic, "finite numbers", format!("{found} at {at}")))
            }
        }
    }

    /// That every value is finite and not negative.
    pub(super) fn not_negative(self, statistic: &'static str, values: &[f32]) -> Result<(), Error> {
        self.finite(statistic, values)?;
        match values.iter().enumerate().find(|(_, value)| **value < 0.0) {
            None => Ok(()),
            Some((at, found)) => {
                let found = format!("{found} at {at}");
                Err(self.wrong(statistic, "no negative number", found))
            }
        }
    }
}

/// Checks all statistics of a module, and makes a full second moment exactly symmetric.
pub(super) fn statistics(subject: Subject<'_>, found: &mut Statistics) -> Result<(), Error> {
    let diagonal = found.second_moment.diagonal();
    match &mut found.second_moment {
        SecondMoment::Diagonal(diagonal) => subject.not_negative("hessian_diagonal", diagonal)?,
        SecondMoment::Full(matrix) => {
            subject.finite("hessian", matrix)?;
            subject.not_negative("hessian", &diagonal)?;
            symmetric(subject, matrix, &diagonal)?;
        }
    }
    if let Some(mean_abs) = &found.mean_abs {
        subject.not_negative("mean_abs_input", mean_abs)?;
        let above = mean_abs.iter().zip(&diagonal).position(|(&mean, &square)| {
            f64::from(mean).powi(2) > f64::from(square) * (1.0 + ALLOWANCE) + VANISHED
        });
        if let Some(at) = above {
            let found = format!("more at {at}");
            return Err(subject.wrong(
                "mean_abs_input",
                "at most the root of the mean square",
                found,
            ));
        }
    }
    if let Some(mean) = &found.mean {
        subject.finite("mean_input", mean)?;
        let bounds = found.mean_abs.iter().flatten();
        let above = mean.iter().zip(bounds).position(|(&mean, &bound)| {
            f64::from(mean).abs() > f64::from(bound) * (1.0 + ALLOWANCE) + VANISHED
        });
        if let Some(at) = above {
            let found = format!("more at {at}");
            return Err(subject.wrong("mean_input", "at most mean_abs_input", found));
        }
    }
    Ok(())
}

/// Side of the squares that a matrix is compared in: two of them lie in a core's first-level cache.
const TILE: usize = 32;

/// Compares each pair across the diagonal, and puts their mean in both places.
fn symmetric(subject: Subject<'_>, matrix: &mut [f32], diagonal: &[f32]) -> Result<(), Error> {
    let n = diagonal.len();
    let norms: Vec<f64> = diagonal
        .iter()
        .map(|&square| (f64::from(square) + VANISHED).sqrt())
        .collect();
    for top in (0..n).step_by(TILE) {
        for left in (top..n).step_by(TILE) {
            for row in top..n.min(top + TILE) {
                for column in left.max(row + 1)..n.min(left + TILE) {
                    // Rows and columns are below `n`, and the matrix has `n * n` values.
                    let places = (row * n + column, column * n + row);
                    let pair = (matrix[places.0], matrix[places.1]);
                    let mean = mean_of(pair, norms[row] * norms[column])
                        .map_err(|fault| fault.at(subject, (row, column), pair))?;
                    matrix[places.0] = mean;
                    matrix[places.1] = mean;
                }
            }
        }
    }
    Ok(())
}

/// What is wrong with a pair across the diagonal.
enum Fault {
    Differs,
    TooLarge,
}

impl Fault {
    fn at(self, subject: Subject<'_>, (row, column): (usize, usize), pair: (f32, f32)) -> Error {
        let (a, b) = pair;
        let found = format!("{a} at [{row}, {column}] and {b} at [{column}, {row}]");
        let expected = match self {
            Fault::Differs => "a symmetric matrix",
            Fault::TooLarge => "at most the root of the product of the two on the diagonal",
        };
        subject.wrong("hessian", expected, found)
    }
}

/// `product`: of the norms of the two columns.
fn mean_of((a, b): (f32, f32), product: f64) -> Result<f32, Fault> {
    let (a, b) = (f64::from(a), f64::from(b));
    if (a - b).abs() > ALLOWANCE * product {
        return Err(Fault::Differs);
    }
    if a.abs().max(b.abs()) > (1.0 + ALLOWANCE) * product {
        return Err(Fault::TooLarge);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the mean of two F32 lies between them"
    )]
    Ok(f64::midpoint(a, b) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject<'_> = Subject {
        file: "f",
        module: "m",
    };

    fn of(matrix: [f32; 4], mean_abs: Option<Vec<f32>>, mean: Option<Vec<f32>>) -> Statistics {
        Statistics {
            in_features: 2,
            token_count: Some(8),
            second_moment: SecondMoment::Full(matrix.to_vec()),
            mean_abs,
            mean,
        }
    }

    fn checked(mut found: Statistics) -> Result<Statistics, String> {
        match statistics(SUBJECT, &mut found) {
            Ok(()) => Ok(found),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_matrix_is_made_exactly_symmetric_within_the_rounding_of_f32() {
        let found = checked(of([4.0, 1.0, 1.000_1, 1.0], None, None)).unwrap();
        let SecondMoment::Full(matrix) = found.second_moment else {
            panic!("not full");
        };
        assert!((matrix[1] - 1.000_05).abs() < 1e-6);
        assert_eq!(matrix[1].to_bits(), matrix[2].to_bits());
        assert_eq!((matrix[0], matrix[3]), (4.0, 1.0));
    }

    #[test]
    fn what_is_no_second_moment_is_refused_with_its_place() {
        let nan = f32::NAN;
        for (matrix, expected) in [
            ([4.0, 1.0, 1.01, 1.0], "1.01 at [1, 0]"),
            ([4.0, 2.1, 2.1, 1.0], "root of the product"),
            ([4.0, nan, 0.0, 1.0], "NaN at 1"),
            ([4.0, 0.0, 0.0, -1.0], "-1 at 1"),
            ([f32::INFINITY, 0.0, 0.0, 1.0], "inf at 0"),
        ] {
            let error = checked(of(matrix, None, None)).unwrap_err();
            assert!(error.starts_with("f: m: hessian"), "{error}");
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn means_are_bounded_by_what_is_above_them() {
        let identity = [1.0, 0.0, 0.0, 1.0];
        let with = |mean_abs: [f32; 2], mean: [f32; 2]| {
            checked(of(identity, Some(mean_abs.to_vec()), Some(mean.to_vec())))
        };
        assert!(with([1.0, 0.5], [-1.0, 0.5]).is_ok());
        let too_much = with([1.01, 0.5], [0.0, 0.0]).unwrap_err();
        assert!(too_much.contains("mean_abs_input: expected at most"));
        let too_much = with([1.0, 0.5], [0.0, -0.51]).unwrap_err();
        assert!(too_much.contains("mean_input: expected at most"));
        assert!(with([-1.0, 0.5], [0.0, 0.0]).is_err());
        assert!(with([1.0, 0.5], [f32::NAN, 0.0]).is_err());
    }

    /// Squares of values near 1e-30 vanish in F32; their means do not.
    #[test]
    fn vanished_squares_are_no_contradiction() {
        let tiny = of(
            [0.0, 1e-18, 1e-18, 1e10],
            Some(vec![1e-23, 1e5]),
            Some(vec![-1e-23, 0.0]),
        );
        assert!(checked(tiny).is_ok());
    }
}
