//! From the codes of one tensor to another layout's, without going through weights: what stays, what is rounded, and what
//! cannot be held. Decided by the two schemes and by the numbers, never by a pair of conventions.

mod cells;
mod codes;
mod zeros;

use std::ops::Range;

use safequant_kernels::Float;

use self::cells::Cells;
use self::codes::CodeMap;
use self::zeros::{Zero, ZeroMap};
use crate::storage::{scale_rows, segments, super_rows, to_usize};
use crate::{
    Arithmetic, Axes, CodeTile, Decoder, Error, Granularity, OffsetForm, QuantizedTensor, Role,
    ScaleCoding, ScaleDirection, Scheme, Storage, SuperScale, ZeroCoding, ZeroPoint,
};

/// What happened to the scales (and float zero points) of a tensor on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// Scales, super-scales and float zero points written.
    pub n_numbers: u64,
    /// Of these, how many the target holds only rounded.
    pub n_rounded: u64,
    /// Of these, how many became zero.
    pub n_underflows: u64,
    /// Largest relative error of a rounded one.
    pub max_relative_error: f64,
}

impl Changes {
    /// Adds those of further rows.
    pub fn add(&mut self, other: &Changes) {
        self.n_numbers += other.n_numbers;
        self.n_rounded += other.n_rounded;
        self.n_underflows += other.n_underflows;
        self.max_relative_error = self.max_relative_error.max(other.max_relative_error);
    }

    /// Rounds one number by `round` and keeps account of it.
    fn rounded(&mut self, exact: f64, round: impl Fn(f64) -> f32) -> Option<f32> {
        let stored = round(exact);
        self.n_numbers += 1;
        if exact.is_nan() && stored.is_nan() {
            return Some(stored);
        }
        let back = f64::from(stored);
        // Equal as numbers: the sign of zero counts as the same.
        if back.total_cmp(&exact).is_eq() || (back == 0.0 && exact == 0.0) {
            return Some(stored);
        }
        if !stored.is_finite() {
            return None;
        }
        self.n_rounded += 1;
        self.n_underflows += u64::from(back == 0.0);
        let error = ((back - exact) / exact).abs();
        self.max_relative_error = self.max_relative_error.max(error);
        Some(stored)
    }
}

/// The tensor with its scheme as simple as its numbers allow: a group index that is trivial is none, float zero points
/// that are whole numbers of steps are integers, zero points that all stand in the middle are symmetric. Reads the zero
/// points, never the codes.
///
/// This is what [`crate::ConventionWriter::lay_out_like`] should see: two conventions that spell the same numbers
/// differently then come to the same layout.
///
/// # Errors
/// I/O, or stored values that no reader accepts.
pub fn normalize(decoder: &Decoder<'_>) -> Result<QuantizedTensor, Error> {
    let mut tensor = decoder.tensor.clone();
    let scheme = &mut tensor.scheme;
    if let (Granularity::IndexedGroup { size }, None) = (scheme.granularity, decoder.group_index())
    {
        scheme.granularity = Granularity::Group { size };
    }
    let (Some(half), false) = (
        codes::middle(scheme.code),
        matches!(scheme.zero_point, ZeroPoint::Fixed(_)),
    ) else {
        return Ok(tensor);
    };
    let (mut all_integers, mut all_middle) = (true, true);
    each_piece(decoder, |tile| {
        for i in 0..tile.zeros.len().max(tile.offsets.len()) {
            match Zero::of(decoder.tensor, tile, i) {
                Zero::Integer(zero) => {
                    all_middle &= zero == i64::from(half);
                    all_integers &= (0..=2 * i64::from(half)).contains(&zero);
                }
                Zero::BeforeScale(_) | Zero::Added { .. } => all_integers = false,
            }
        }
        all_integers
    })?;
    if all_integers {
        tensor.scheme.zero_point = if all_middle {
            ZeroPoint::Fixed(half)
        } else {
            ZeroPoint::Stored(ZeroCoding::Direct)
        };
    }
    Ok(tensor)
}

/// The tensor with a scale of its own, where it stands among those of other modules: two modules cannot write one part.
///
/// # Errors
/// A size that this machine cannot address.
pub fn with_own_parts(tensor: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
    let mut own = tensor.clone();
    for i in 0..own.parts.len() {
        if let Storage::SharedElements { .. } = own.parts[i].storage {
            let mut part = own.parts[i].clone();
            part.storage = Storage::Elements { axes: Axes::OutIn };
            part.name = format!("{}.weight_scale_inv", own.module);
            part.shape = crate::storage::shape_of(&own, &part)?;
            own.parts[i] = part;
        }
    }
    Ok(own)
}

/// Calls `f` with scales and zero points of all rows, piece by piece, while it answers true.
fn each_piece(decoder: &Decoder<'_>, mut f: impl FnMut(&CodeTile) -> bool) -> Result<(), Error> {
    const PIECE_BYTES: u64 = 1 << 20;
    let tensor = decoder.tensor;
    let rows = tensor.n_rows();
    let per_row = decoder.scale_bytes(1).max(1);
    let unit = crate::encode::row_unit(tensor).max(1);
    let step = (PIECE_BYTES / per_row)
        .max(1)
        .div_ceil(unit)
        .saturating_mul(unit);
    let mut at = 0;
    while at < rows {
        let end = at.saturating_add(step).min(rows);
        if !f(&decoder.scales(at..end)?) {
            return Ok(());
        }
        at = end;
    }
    Ok(())
}

/// Carries tiles of one tensor over into the layout of another.
pub struct Transcoder<'a> {
    source: &'a QuantizedTensor,
    target: &'a QuantizedTensor,
    codes: CodeMap,
    cells: Cells,
    zeros: ZeroMap,
    supers: Supers,
    in_features: usize,
}

/// What becomes of the super-scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Supers {
    /// There are none.
    None,
    /// They stay.
    Kept,
    /// Their reciprocal is stored.
    Inverted,
    /// They are multiplied into the scales.
    Applied,
}

impl<'a> Transcoder<'a> {
    /// Compares two tensors. `plain` is the source as [`normalize`] gives it, or the source itself.
    ///
    /// # Errors
    /// Why the target cannot hold the source's codes, for people.
    pub fn new(
        source: &'a QuantizedTensor,
        plain: &QuantizedTensor,
        target: &'a QuantizedTensor,
    ) -> Result<Self, String> {
        let (from, to) = (&plain.scheme, &target.scheme);
        if source.shape != target.shape {
            return Err(format!(
                "the shape would change from {:?} to {:?}",
                source.shape, target.shape
            ));
        }
        if from.basis != to.basis {
            return Err("it is stored in another basis (rotated, rescaled or in parts)".to_owned());
        }
        let is_grid = |s: &Scheme| matches!(s.arithmetic, Arithmetic::Int8Grid(_));
        if is_grid(from) != is_grid(to) {
            return Err("its codes have two levels that cannot be taken apart".to_owned());
        }
        let codes = CodeMap::new(from, to)?;
        Ok(Self {
            cells: Cells::new(plain, target)?,
            zeros: ZeroMap::new(target, codes.shift),
            supers: supers(from.super_scale, to.super_scale)?,
            in_features: to_usize(&source.module, "a row", source.in_features())
                .map_err(|e| e.to_string())?,
            codes,
            source,
            target,
        })
    }

    /// Whether the result says as much as the source and no more, so that the way back exists: same granularity, same
    /// levels of scales. (Numbers that were rounded are another matter: see [`Changes`].)
    pub fn keeps_structure(&self) -> bool {
        self.cells.is_identity() && self.supers != Supers::Applied
    }

    /// Whether the same numbers stand for the same weights, computed in F32: a product that one side stores rounded, and the
    /// other one does not store at all, differs.
    pub fn keeps_arithmetic(&self) -> bool {
        let rounds = |tensor: &QuantizedTensor| match tensor.scheme.arithmetic {
            Arithmetic::RoundedZero(float) => Some(float),
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::EachStep(_)
            | Arithmetic::Over127
            | Arithmetic::Probed(_)
            | Arithmetic::ScaleOver127
            | Arithmetic::Int8Grid(_) => None,
        };
        // The zero of the code where a float is added to the product.
        let adds = |tensor: &QuantizedTensor| match tensor.scheme.zero_point {
            ZeroPoint::Offset {
                form: OffsetForm::Added | OffsetForm::Subtracted,
                zero,
            } => Some(zero),
            ZeroPoint::Offset {
                form: OffsetForm::BeforeScale,
                ..
            }
            | ZeroPoint::Fixed(_)
            | ZeroPoint::Stored(_) => None,
        };
        // Codes of 8 bits times scales of 11 are exact in F32, so that it does not matter when the zero point comes in;
        // with scales of 24 bits it does.
        let is_wide = self.target.scheme.scale == ScaleCoding::Float(Float::F32);
        let moves = adds(self.source) != adds(self.target);
        rounds(self.source) == rounds(self.target) && !(moves && is_wide)
    }

    /// What would happen to the numbers of all rows; reads no codes.
    ///
    /// # Errors
    /// A number that the target cannot hold at all; I/O.
    pub fn survey(&self, decoder: &Decoder<'_>) -> Result<Changes, Error> {
        let mut all = Changes::default();
        let mut failed = None;
        each_piece(decoder, |tile| {
            let carried = self.scales(tile).and_then(|(tile, changes)| {
                crate::encode::check_scales(self.target, &tile)?;
                Ok(changes)
            });
            match carried {
                Ok(changes) => all.add(&changes),
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })?;
        failed.map_or(Ok(all), Err)
    }

    /// One tile of the source as a tile of the target.
    ///
    /// # Errors
    /// A number that the target cannot hold at all: names module, row and group.
    pub fn tile(&self, tile: &CodeTile) -> Result<(CodeTile, Changes), Error> {
        let (mut out, changes) = self.scales(tile)?;
        out.codes = self.codes.apply(&tile.codes);
        out.marks.clone_from(&tile.marks);
        out.starts.clone_from(&tile.starts);
        Ok((out, changes))
    }

    /// Everything but the codes.
    fn scales(&self, tile: &CodeTile) -> Result<(CodeTile, Changes), Error> {
        let mut out = CodeTile {
            rows: tile.rows.clone(),
            ..CodeTile::default()
        };
        let mut changes = Changes::default();
        let (from, to) = (&self.source.scheme, &self.target.scheme);
        let (mut scale_base, mut super_base) = (0, 0);
        let out_features = self.source.out_features();
        for (_, local) in segments(&self.source.module, &tile.rows, out_features)? {
            let groups = scale_rows(from.granularity, &local, self.in_features);
            let above = super_rows(from.super_scale, &groups, self.cells.source_columns());
            let n_supers = above.len() * self.cells.super_columns();
            for place in self.cells.of_rows(&local, &groups) {
                let i = scale_base + place.source;
                let factor = self.applied(tile, &groups, above.start, i - scale_base, super_base);
                let scale = self.scale(tile, i, factor, &mut changes, &place)?;
                out.scales.extend(scale);
                let wrote = if let Some(sign) = self.kept_offset() {
                    let offset = f64::from(sign * tile.offsets[i]);
                    self.zeros.write_offset(offset, &mut changes, &mut out)
                } else {
                    let zero = Zero::of_scaled(self.source, tile, i, factor);
                    let exact = self.exact_scale(tile, i, factor);
                    self.zeros.write(zero, exact, &mut changes, &mut out)
                };
                wrote.map_err(|value| self.unstorable("zero point", value, &place))?;
            }
            for (supers, written) in [
                (&tile.supers, &mut out.supers),
                (&tile.offset_supers, &mut out.offset_supers),
            ] {
                let end = (super_base + n_supers).min(supers.len());
                for &value in &supers[super_base.min(end)..end] {
                    written.extend(self.super_scale(value, &mut changes)?);
                }
            }
            scale_base += groups.len() * self.cells.source_columns();
            super_base += n_supers;
        }
        if to.scale == ScaleCoding::One {
            out.scales.clear();
        }
        Ok((out, changes))
    }

    /// 1 or −1 where offsets are the source's up to the sign, that of a zero included.
    fn kept_offset(&self) -> Option<f32> {
        let zero_points = (self.source.scheme.zero_point, self.target.scheme.zero_point);
        let (
            ZeroPoint::Offset { zero: a, form },
            ZeroPoint::Offset {
                zero: b,
                form: target,
            },
        ) = zero_points
        else {
            return None;
        };
        let moves = a != b || self.codes.shift != 0 || self.supers == Supers::Applied;
        let is_scaled = self.codes.factor.to_bits() != 1.0_f64.to_bits();
        match (form, target) {
            _ if moves || is_scaled => None,
            (OffsetForm::Added, OffsetForm::Subtracted)
            | (OffsetForm::Subtracted, OffsetForm::Added) => Some(-1.0),
            (OffsetForm::BeforeScale, OffsetForm::BeforeScale)
            | (OffsetForm::Added, OffsetForm::Added)
            | (OffsetForm::Subtracted, OffsetForm::Subtracted) => Some(1.0),
            (OffsetForm::BeforeScale, OffsetForm::Added | OffsetForm::Subtracted)
            | (OffsetForm::Added | OffsetForm::Subtracted, OffsetForm::BeforeScale) => None,
        }
    }

    /// The super-scale that is multiplied into a scale, as the decoder does it: `(factor, offset)`.
    fn applied(
        &self,
        tile: &CodeTile,
        groups: &Range<usize>,
        first: usize,
        at: usize,
        base: usize,
    ) -> Applied {
        if self.supers != Supers::Applied {
            return Applied::None;
        }
        let columns = self.cells.source_columns().max(1);
        let (row, column) = (groups.start + at / columns, at % columns);
        let length = |size: u64| usize::try_from(size).unwrap_or(usize::MAX).max(1);
        let get = |i: usize| tile.supers[base + i];
        match self.source.scheme.super_scale {
            SuperScale::None => Applied::None,
            SuperScale::Multiply => Applied::Times(get(0), None),
            SuperScale::Divide => Applied::Over(get(0)),
            SuperScale::Nested { size, offset } => {
                Applied::TimesPlus(get((row * columns + column) / length(size) - first), offset)
            }
            SuperScale::Grouped { size } => {
                let i = (row - groups.start) * self.cells.super_columns() + column / length(size);
                Applied::Times(get(i), tile.offset_supers.get(base + i).copied())
            }
            SuperScale::Channel => Applied::Times(get(row - groups.start), None),
        }
    }

    /// The factor between codes and weights, as a number.
    fn exact_scale(&self, tile: &CodeTile, i: usize, applied: Applied) -> f64 {
        let scheme = &self.source.scheme;
        let stored = tile.scales.get(i).copied().unwrap_or(1.0);
        // As the decoder rounds, in F32.
        let scale = f64::from(applied.to(stored));
        let scale = match scheme.direction {
            ScaleDirection::Multiply => scale,
            ScaleDirection::Divide => 1.0 / scale,
        };
        let scale = match scheme.arithmetic {
            Arithmetic::Over127 | Arithmetic::ScaleOver127 => scale / 127.0,
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::EachStep(_)
            | Arithmetic::Probed(_)
            | Arithmetic::Int8Grid(_) => scale,
        };
        scale / self.codes.factor
    }

    /// One scale of the target.
    fn scale(
        &self,
        tile: &CodeTile,
        i: usize,
        applied: Applied,
        changes: &mut Changes,
        place: &cells::Place,
    ) -> Result<Option<f32>, Error> {
        let (from, to) = (&self.source.scheme, &self.target.scheme);
        if to.scale == ScaleCoding::One {
            return Ok(None);
        }
        let over_127 =
            |s: &Scheme| matches!(s.arithmetic, Arithmetic::Over127 | Arithmetic::ScaleOver127);
        let is_same_reading = from.direction == to.direction && over_127(from) == over_127(to);
        let exact = if is_same_reading {
            let stored = tile.scales.get(i).copied().unwrap_or(1.0);
            f64::from(applied.to(stored)) / self.codes.factor
        } else {
            let scale = self.exact_scale(tile, i, applied);
            let scale = match to.direction {
                ScaleDirection::Multiply => scale,
                ScaleDirection::Divide => 1.0 / scale,
            };
            if over_127(to) { scale * 127.0 } else { scale }
        };
        let stored = changes.rounded(exact, |x| match to.scale {
            ScaleCoding::Float(float) => nearest(float, x),
            // Only numbers that these hold can be written; `encode` refuses others.
            ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => nearest(Float::F32, x),
        });
        let stored = stored.ok_or_else(|| self.unstorable("scale", exact, place))?;
        Ok(Some(stored))
    }

    fn super_scale(&self, value: f32, changes: &mut Changes) -> Result<Option<f32>, Error> {
        let exact = match self.supers {
            Supers::None | Supers::Applied => return Ok(None),
            Supers::Kept => f64::from(value),
            Supers::Inverted => 1.0 / f64::from(value),
        };
        let part = self.target.part(Role::SuperScale);
        let float = part.and_then(|p| crate::scheme::float_of(p.dtype));
        let stored = changes.rounded(exact, |x| nearest(float.unwrap_or(Float::F32), x));
        let place = cells::Place::default();
        let stored = stored.ok_or_else(|| self.unstorable("super-scale", exact, &place))?;
        Ok(Some(stored))
    }

    fn unstorable(&self, what: &'static str, value: f64, place: &cells::Place) -> Error {
        Error::Unstorable {
            module: self.target.module.clone(),
            what,
            value: value.to_string(),
            row: place.row,
            group: place.column,
            detail: format!("{} cannot hold it", self.target.convention),
        }
    }
}

/// A super-scale on its way into a scale, with the operations of the decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Applied {
    None,
    /// The scale's factor, and the offset's where it has one of its own.
    Times(f32, Option<f32>),
    Over(f32),
    TimesPlus(f32, f32),
}

impl Applied {
    fn to(self, scale: f32) -> f32 {
        match self {
            Applied::None => scale,
            Applied::Times(factor, _) => scale * factor,
            Applied::Over(factor) => scale / factor,
            Applied::TimesPlus(factor, offset) => scale * factor + offset,
        }
    }

    fn to_offset(self, offset: f32) -> f32 {
        match self {
            Applied::Times(_, Some(factor)) => offset * factor,
            Applied::None | Applied::Times(_, None) | Applied::Over(_) | Applied::TimesPlus(..) => {
                offset
            }
        }
    }
}

fn supers(from: SuperScale, to: SuperScale) -> Result<Supers, String> {
    match (from, to) {
        (SuperScale::None, SuperScale::None) => Ok(Supers::None),
        (a, b) if a == b => Ok(Supers::Kept),
        (SuperScale::Multiply, SuperScale::Divide) | (SuperScale::Divide, SuperScale::Multiply) => {
            Ok(Supers::Inverted)
        }
        (_, SuperScale::None) => Ok(Supers::Applied),
        _ => Err("its scales have no second level, or another one".to_owned()),
    }
}

/// The value of a dtype nearest to a number, ties to even: rounded once.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to nearest is what is wanted"
)]
fn nearest(float: Float, value: f64) -> f32 {
    let single = value as f32;
    if float == Float::F32 || f64::from(single).to_bits() == value.to_bits() {
        return float.nearest(single);
    }
    // Rounding to odd first makes the second rounding come out as one alone would.
    let is_beyond = f64::from(single).abs() > value.abs();
    let toward_zero = single.to_bits() - u32::from(is_beyond);
    float.nearest(f32::from_bits(toward_zero | 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_rounded_once() {
        // Just above the middle of two BF16 values, by less than F32 can tell.
        let middle = f64::from(f32::from_bits(0x3f80_8000));
        let above = middle * (1.0 + 1e-12);
        assert_eq!(nearest(Float::Bf16, middle).to_bits(), 0x3f80_0000);
        assert_eq!(nearest(Float::Bf16, above).to_bits(), 0x3f81_0000);
        assert_eq!(nearest(Float::F16, 1.0).to_bits(), 1.0_f32.to_bits());
        let below = f64::from(f32::from_bits(0x3f81_8000)) * (1.0 - 1e-12);
        assert_eq!(nearest(Float::Bf16, below).to_bits(), 0x3f81_0000);
    }

    #[test]
    fn rounding_is_counted() {
        let mut changes = Changes::default();
        let f16 = |x: f64| nearest(Float::F16, x);
        assert!(changes.rounded(0.5, f16).is_some());
        assert!(changes.rounded(1e-12, f16).is_some());
        assert!(changes.rounded(1e9, f16).is_none());
        assert_eq!(
            (changes.n_numbers, changes.n_rounded, changes.n_underflows),
            (3, 1, 1)
        );
    }
}
