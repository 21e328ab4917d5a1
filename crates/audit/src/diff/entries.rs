//! The entries of a tile's grid of scales as plain numbers: everything that scales a code, and where its zero lies.

use std::ops::Range;

use safequant_schemes::{
    Arithmetic, CodeTile, Granularity, OffsetForm, QuantizedTensor, ScaleCoding, ScaleDirection,
    SuperScale, ZeroPoint,
};

use super::figures::{Scales, ZeroPoints};
use crate::measure::Grid;

/// Of one tile of one matrix.
pub(super) struct Entries {
    /// What a step of the code is worth.
    pub(super) scales: Vec<f64>,
    /// The code that stands for zero, which need not be one.
    pub(super) zeros: Vec<f64>,
}

impl Entries {
    /// `rows`: those of the grid that the tile has.
    pub(super) fn of(
        tensor: &QuantizedTensor,
        grid: &Grid,
        rows: &Range<u64>,
        tile: &CodeTile,
    ) -> Self {
        let n = rows.end.saturating_sub(rows.start);
        let n = usize::try_from(n.saturating_mul(grid.columns)).unwrap_or(usize::MAX);
        let n = match tensor.scheme.scale {
            // Nothing is stored, so that nothing says how many there are but the grid, which the rows bound.
            ScaleCoding::One => n.min(tile.codes.len().max(tile.zeros.len())),
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer => n.min(tile.scales.len()),
        };
        let supers = Supers {
            tensor,
            grid,
            first_row: rows.start,
        };
        let mut entries = Self {
            scales: Vec::with_capacity(n),
            zeros: Vec::with_capacity(n),
        };
        for at in 0..n {
            let above = supers.at(at);
            let scale = scale(tensor, tile, at, above);
            entries.scales.push(scale);
            entries.zeros.push(zero(tensor, tile, at, above, scale));
        }
        entries
    }
}

/// Where super-scales stand.
struct Supers<'a> {
    tensor: &'a QuantizedTensor,
    grid: &'a Grid,
    /// The first row of the grid in the tile.
    first_row: u64,
}

impl Supers<'_> {
    /// Which of a tile's super-scales belongs to entry `at` of its grid.
    fn at(&self, at: usize) -> usize {
        let columns = self.grid.columns.max(1);
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        let (row, column) = (at / columns, at % columns);
        let above = match self.tensor.scheme.super_scale {
            SuperScale::None | SuperScale::Multiply | SuperScale::Divide => 0,
            SuperScale::Nested { size, offset: _ } => {
                let before = self.first_row.saturating_mul(columns);
                before.saturating_add(at) / size.max(1) - before / size.max(1)
            }
            SuperScale::Grouped { size } => {
                let per_row = columns.div_ceil(size.max(1));
                row.saturating_mul(per_row)
                    .saturating_add(column / size.max(1))
            }
            SuperScale::Channel => row,
        };
        usize::try_from(above).unwrap_or(usize::MAX)
    }
}

fn scale(tensor: &QuantizedTensor, tile: &CodeTile, at: usize, above: usize) -> f64 {
    let scheme = &tensor.scheme;
    let stored = tile.scales.get(at).map_or(1.0, |&scale| f64::from(scale));
    let above = tile.supers.get(above).map(|&scale| f64::from(scale));
    let scale = match (scheme.super_scale, above) {
        (SuperScale::None, _) | (_, None) => stored,
        (SuperScale::Multiply | SuperScale::Grouped { .. } | SuperScale::Channel, Some(above)) => {
            stored * above
        }
        (SuperScale::Divide, Some(above)) => stored / above,
        (SuperScale::Nested { size: _, offset }, Some(above)) => stored * above + f64::from(offset),
    };
    let scale = match scheme.direction {
        ScaleDirection::Multiply => scale,
        ScaleDirection::Divide => 1.0 / scale,
    };
    match scheme.arithmetic {
        Arithmetic::Over127 | Arithmetic::ScaleOver127 => scale / 127.0,
        Arithmetic::ScaledDifference
        | Arithmetic::RoundedTo(_)
        | Arithmetic::RoundedScale(_)
        | Arithmetic::RoundedZero(_)
        | Arithmetic::EachStep(_)
        | Arithmetic::Int8Grid(_)
        | Arithmetic::Probed(_) => scale,
    }
}

fn zero(tensor: &QuantizedTensor, tile: &CodeTile, at: usize, above: usize, scale: f64) -> f64 {
    match tensor.scheme.zero_point {
        ZeroPoint::Fixed(zero) => f64::from(zero),
        ZeroPoint::Stored(_) => tile.zeros.get(at).map_or(f64::NAN, |&zero| f64::from(zero)),
        ZeroPoint::Offset { zero, form } => {
            let offset = tile.offsets.get(at).map_or(f64::NAN, |&o| f64::from(o));
            let above = tile.offset_supers.get(above);
            let offset = above.map_or(offset, |&above| offset * f64::from(above));
            // The quotient is exact where it is a whole number of steps.
            f64::from(zero)
                + match form {
                    OffsetForm::BeforeScale => offset,
                    OffsetForm::Added => -(offset / scale),
                    OffsetForm::Subtracted => offset / scale,
                }
        }
    }
}

/// The granularity by what it amounts to: the same grid of the same groups is the same, whatever it is called.
///
/// `index`: the group of each input feature, unless groups are consecutive.
pub(super) fn canonical(tensor: &QuantizedTensor, index: Option<&[u32]>) -> Granularity {
    let width = tensor.in_features().max(1);
    let granularity = tensor.scheme.granularity;
    match granularity {
        Granularity::Channel => Granularity::Group { size: width },
        Granularity::Group { size } => Granularity::Group {
            size: size.clamp(1, width),
        },
        Granularity::IndexedGroup { size } => match index {
            Some(_) => granularity,
            None => Granularity::Group {
                size: size.clamp(1, width),
            },
        },
        Granularity::Block {
            rows: 0 | 1,
            columns,
        } => Granularity::Group {
            size: columns.clamp(1, width),
        },
        Granularity::Flat { size } if size > 0 && width.is_multiple_of(size) => {
            Granularity::Group { size }
        }
        Granularity::Tensor
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => granularity,
    }
}

impl Scales {
    /// Compares one of A with one of B.
    pub(super) fn add_pair(&mut self, a: f64, b: f64, tolerance: f64, place: [u64; 2]) {
        self.n += 1;
        if !is_near(a, b, tolerance, 0.0) {
            self.n_differ += 1;
            self.first.get_or_insert(place);
        }
        let ratio = b / a;
        if a != 0.0 && ratio.is_finite() {
            self.note_ratio(ratio);
        }
    }
}

impl ZeroPoints {
    /// Compares one of A with one of B, where the scales are such that there is one.
    pub(super) fn add_pair(&mut self, a: f64, b: f64, tolerance: f64, place: [u64; 2]) {
        self.n += 1;
        // A scale of zero leaves no steps to count in; what is added then shows in the values.
        if !a.is_finite() || !b.is_finite() {
            return;
        }
        if !is_near(a, b, tolerance, 1.0) {
            self.n_differ += 1;
            self.first.get_or_insert(place);
        }
        self.max_distance = self.max_distance.max((b - a).abs());
    }
}

/// What F64 may round on the way from stored numbers, relative: far below the steps of F32, in which they are stored.
const ROUNDING: f64 = 1e-12;

/// Whether two numbers are as near as is asked for. `unit`: what rounding is relative to where both are smaller.
fn is_near(a: f64, b: f64, tolerance: f64, unit: f64) -> bool {
    let is_equal = a.total_cmp(&b).is_eq() || (a - b) == 0.0 || (a.is_nan() && b.is_nan());
    let distance = (a - b).abs();
    let rounding = ROUNDING * a.abs().max(b.abs()).max(unit);
    is_equal || (distance.is_finite() && (distance <= rounding || distance <= tolerance * a.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearness_is_relative_and_nan_is_only_near_itself() {
        assert!(is_near(0.0, -0.0, 0.0, 0.0));
        assert!(is_near(f64::NAN, f64::NAN, 0.0, 0.0));
        assert!(!is_near(f64::NAN, 1.0, 1.0, 0.0));
        assert!(!is_near(1.0, 1.0 + 1e-9, 0.0, 0.0));
        assert!(is_near(100.0, 101.0, 0.01, 0.0));
        assert!(is_near(f64::INFINITY, f64::INFINITY, 0.0, 0.0));
        assert!(!is_near(0.0, 1.0, 0.5, 0.0));
        assert!(!is_near(f64::INFINITY, 1.0, 0.5, 0.0));
        let step = 1.0 + f64::from(f32::EPSILON);
        assert!(!is_near(1.0, step, 0.0, 1.0), "the last bit of F32");
        assert!(is_near(0.0, 1e-15, 0.0, 1.0) && !is_near(0.0, 1e-15, 0.0, 0.0));
    }

    #[test]
    fn ratios_of_nothing_are_left_out() {
        let mut scales = Scales::default();
        scales.add_pair(0.0, 1.0, 0.0, [0, 0]);
        assert_eq!((scales.n_differ, scales.min_ratio), (1, None));
        scales.add_pair(2.0, 1.0, 0.0, [0, 1]);
        scales.add_pair(2.0, 4.0, 0.0, [0, 2]);
        assert_eq!((scales.min_ratio, scales.max_ratio), (Some(0.5), Some(2.0)));
        assert_eq!((scales.first, scales.n), (Some([0, 0]), 3));
    }
}
