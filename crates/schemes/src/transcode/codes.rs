//! Codes of one kind as codes of another that stand for the same numbers.

use crate::{Code, Scheme, ZeroPoint};

/// One byte for another; or the same bytes.
pub(crate) struct CodeMap {
    /// `None` where codes stay as they are.
    table: Option<Box<[u8; 256]>>,
    /// What is added to an integer code.
    pub(crate) shift: i64,
    /// Target values are source values times this (a power of two): scales are divided by it.
    pub(crate) factor: f64,
}

/// The middle of the unsigned form of integer codes.
pub(crate) fn middle(code: Code) -> Option<i32> {
    match code {
        Code::Integer { bits, .. } => 1_i32.checked_shl(bits.checked_sub(1)?),
        Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => None,
    }
}

impl CodeMap {
    /// # Errors
    /// Why not, for people.
    pub(crate) fn new(from: &Scheme, to: &Scheme) -> Result<Self, String> {
        let same = Self {
            table: None,
            shift: 0,
            factor: 1.0,
        };
        match (middle(from.code), middle(to.code)) {
            (Some(a), Some(b)) => Self::integers(from, to, (a, b)),
            (None, None) if from.code == to.code => Ok(same),
            (None, None) => Self::tables(from.code, to.code),
            _ => Err(format!("its codes are {:?}, not {:?}", from.code, to.code)),
        }
    }

    fn integers(from: &Scheme, to: &Scheme, (a, b): (i32, i32)) -> Result<Self, String> {
        let shift = match (from.zero_point, to.zero_point) {
            (ZeroPoint::Fixed(from), ZeroPoint::Fixed(to)) => i64::from(to) - i64::from(from),
            (_, ZeroPoint::Fixed(_)) => {
                return Err("its zero points are not all in the middle".to_owned());
            }
            (ZeroPoint::Offset { .. }, ZeroPoint::Stored(_)) => {
                return Err("its float zero points are no whole steps".to_owned());
            }
            (_, ZeroPoint::Stored(_) | ZeroPoint::Offset { .. }) => i64::from(b) - i64::from(a),
        };
        let (last, top) = (2 * i64::from(a) - 1, 2 * i64::from(b) - 1);
        if shift < 0 || last + shift > top {
            return Err(format!("codes up to {last} do not fit codes up to {top}"));
        }
        let moved = |code: usize| {
            let code = i64::try_from(code).unwrap_or(0) + shift;
            u8::try_from(code.min(255)).unwrap_or(u8::MAX)
        };
        Ok(Self {
            table: (shift != 0).then(|| Box::new(std::array::from_fn(moved))),
            shift,
            factor: 1.0,
        })
    }

    /// Tables of the same numbers, perhaps all times two, perhaps in another order.
    fn tables(from: Code, to: Code) -> Result<Self, String> {
        let refuse = || format!("its codes are {from:?}, not {to:?}");
        let (Some(a), Some(b)) = (values(from), values(to)) else {
            return Err(refuse());
        };
        let at = |code: usize, factor: f32| {
            let wanted = a[code] * factor;
            let equal =
                |value: f32| (value - wanted).abs() == 0.0 || (value.is_nan() && wanted.is_nan());
            let same = b.get(code).is_some_and(|&v| equal(v)).then_some(code);
            same.or_else(|| b.iter().position(|&v| equal(v)))
        };
        for factor in [1.0_f32, 2.0, 0.5] {
            let found: Option<Vec<usize>> = (0..a.len()).map(|code| at(code, factor)).collect();
            let Some(found) = found else { continue };
            let table = std::array::from_fn(|code| {
                let code = found.get(code).copied().unwrap_or(0);
                u8::try_from(code).unwrap_or(0)
            });
            let is_identity = found.iter().enumerate().all(|(i, &code)| i == code);
            return Ok(Self {
                table: (!is_identity).then(|| Box::new(table)),
                shift: 0,
                factor: f64::from(factor),
            });
        }
        Err(refuse())
    }

    pub(crate) fn apply(&self, codes: &[u8]) -> Vec<u8> {
        match &self.table {
            None => codes.to_vec(),
            Some(table) => codes.iter().map(|&c| table[usize::from(c)]).collect(),
        }
    }
}

/// The numbers that codes stand for.
fn values(code: Code) -> Option<Vec<f32>> {
    match code {
        Code::Minifloat(format) => {
            let n = 1_usize.checked_shl(format.bits())?.min(256);
            Some(format.table()[..n].to_vec())
        }
        Code::Codebook(book) => Some(book.values().to_vec()),
        Code::Integer { .. } | Code::StoredCodebook | Code::Dense(_) => None,
    }
}
