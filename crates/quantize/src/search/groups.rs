//! Formats with one scale (and zero point or offset) for each group: what can be stored, and the search for it.

use safequant_kernels::{Backend, Candidate, E8M0Rule, Float, Levels};
use safequant_schemes::{
    Arithmetic, Code, OffsetForm, ScaleCoding, ScaleDirection, Scheme, SuperScale, ZeroCoding,
    ZeroPoint,
};

use super::one::{Range, Signs, search};
use super::{Freedom, RowFormat, RowScales, Stored};
use crate::nested::Nesting;
use crate::rules::numbers::e4m3;
use crate::rules::{Blocks, Group, Reference, reference};
use crate::{Effort, Error, Rows, ScaleRule, Target};

/// Such a format, for the rows of one matrix.
#[derive(Debug)]
pub(crate) struct GroupFormat {
    levels: Levels,
    range: Range,
    first: First,
    numbers: Numbers,
    /// Columns of a group.
    group: usize,
    freedom: Freedom,
}

/// Whether rows share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Each row has its own.
    None,
    /// Some or all rows have the same.
    Rows,
}

/// Who chooses the candidate that a search begins with.
#[derive(Debug)]
enum First {
    Rule(Box<dyn Reference>),
    Blocks(Blocks),
}

/// How numbers are stored and what they stand for.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    coding: Coding,
    signs: Signs,
    above: Above,
    /// What a stored scale is divided by.
    divisor: f32,
    zero: Zero,
}

#[derive(Clone, Copy, Debug)]
enum Coding {
    Float(Float),
    Power(E8M0Rule),
    E4M3,
    /// Half an unsigned E4M3: ggml's NVFP4.
    HalfE4M3,
    /// Entries of bitsandbytes' dynamic map.
    DynamicMap,
}

/// The scale of scales.
#[derive(Clone, Copy, Debug)]
enum Above {
    None,
    Multiply(f32),
    Divide(f32),
    /// Each block of scales has its own.
    Nested(Nesting, f32),
}

#[derive(Clone, Copy, Debug)]
enum Zero {
    None,
    /// From and to.
    Integer(i32, i32),
    Offset(OffsetForm, Float),
}

impl GroupFormat {
    /// The format of a target; `group` columns share a scale, with other rows if `sharing` says so, and scales are scaled by
    /// `above`.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`].
    pub(crate) fn new(
        target: &Target,
        source: Float,
        (group, sharing): (usize, Sharing),
        above: f32,
    ) -> Result<Self, Error> {
        let scheme = &target.scheme;
        let first = if target.rule == ScaleRule::Ggml {
            First::Blocks(Blocks::of(scheme)?)
        } else {
            First::Rule(reference(target, source)?)
        };
        let levels = levels(scheme)?;
        let numbers = Numbers::new(scheme, &first, above)?;
        let (range, freedom) = match numbers.zero {
            Zero::None => (scale_range(scheme, numbers.signs), Freedom::Scale),
            Zero::Integer(..) => (Range::Ends, Freedom::Scale),
            Zero::Offset(..) => (Range::Ends, Freedom::Both),
        };
        let freedom = match sharing {
            Sharing::None => freedom,
            Sharing::Rows => Freedom::Fixed,
        };
        Ok(Self {
            levels,
            range,
            first,
            numbers,
            group: group.max(1),
            freedom,
        })
    }

    /// What the convention's own tool would choose for a group that `values` are all of, or have these ends; `under` what its scale
    /// is scaled by, where that is not the same for all ([`RowScales::nested`]).
    pub(crate) fn first_of(
        &self,
        ends: (f32, f32),
        is_short: bool,
        under: Option<f32>,
    ) -> Result<(Stored, Candidate), f32> {
        let First::Rule(rule) = &self.first else {
            return Ok((Stored::default(), Candidate::default()));
        };
        let numbers = self.numbers.under(under);
        let choice = rule.choose(Group::new(ends, is_short), numbers.above())?;
        let stored = Stored {
            scale: match numbers.above {
                Above::Nested(nesting, above) => nesting.entry(choice.scale, above),
                Above::None | Above::Multiply(_) | Above::Divide(_) => choice.scale,
            },
            // The tool may choose a zero that the convention cannot hold.
            zero: match numbers.zero {
                Zero::Integer(least, most) => choice.zero.clamp(least, most),
                Zero::None | Zero::Offset(..) => choice.zero,
            },
            offset: choice.offset,
        };
        Ok((stored, numbers.effective(stored)))
    }

    /// The tool's scale of a group, before it is quantized itself.
    pub(crate) fn scale_of(&self, ends: (f32, f32), is_short: bool) -> Result<f32, f32> {
        match &self.first {
            First::Rule(rule) => Ok(rule.choose(Group::new(ends, is_short), 1.0)?.scale),
            First::Blocks(_) => Ok(0.0),
        }
    }

    /// What can be stored and is nearest to a wanted scale and offset.
    pub(crate) fn store(&self, wanted: Candidate) -> Option<(Stored, Candidate)> {
        self.numbers.store(wanted)
    }

    /// The best for values that share a scale, of which `first` was the tool's choice; `under` as in [`GroupFormat::first_of`].
    pub(crate) fn search(
        &self,
        (values, weights): (&[f32], &[f32]),
        first: (Stored, Candidate),
        under: Option<f32>,
        effort: Effort,
        backend: &'static Backend,
    ) -> (Stored, Candidate) {
        let numbers = self.numbers.under(under);
        let store = |wanted| numbers.store(wanted);
        let of = (self.levels, self.range);
        search(of, (values, weights), first, store, effort, backend)
    }

    /// The scale of the scales of a matrix with these extremes; 1 where there is none.
    ///
    /// # Errors
    /// The number itself, if it is not finite; [`Error::UnsupportedScheme`].
    pub(crate) fn super_scale(
        target: &Target,
        source: Float,
        extremes: (f32, f32),
    ) -> Result<Result<f32, f32>, Error> {
        let rule = reference(target, source)?;
        Ok(rule.super_scale(Group::new(extremes, false)))
    }
}

impl RowFormat for GroupFormat {
    fn levels(&self) -> Levels {
        self.levels
    }

    fn group(&self) -> usize {
        self.group
    }

    fn freedom(&self) -> Freedom {
        self.freedom
    }

    fn choose(
        &self,
        values: &[f32],
        weights: &[f32],
        effort: Effort,
        backend: &'static Backend,
        row: &mut RowScales,
    ) -> Result<(), (usize, f32)> {
        row.clear();
        let blocks = match &self.first {
            First::Blocks(blocks) => Some(of_blocks(*blocks, values, backend)?),
            First::Rule(_) => None,
        };
        let groups = values.chunks(self.group).zip(weights.chunks(self.group));
        for (g, (values, weights)) in groups.enumerate() {
            let under = row.nested.get(g).copied();
            let first = if let Some(stored) = &blocks {
                let stored = stored.get(g).copied().unwrap_or_default();
                (stored, self.numbers.effective(stored))
            } else {
                let first = self.first_of(ends_of(values), values.len() < self.group, under);
                first.map_err(|scale| (g, scale))?
            };
            let of = (values, weights);
            let (stored, effective) = self.search(of, first, under, effort, backend);
            row.stored.push(stored);
            row.effective.push(effective);
        }
        Ok(())
    }

    fn near(
        &self,
        row: &RowScales,
        group: usize,
        wanted: Candidate,
    ) -> Option<(Stored, Candidate)> {
        let now = row.stored.get(group)?;
        let numbers = self.numbers.under(row.nested.get(group).copied());
        let found = match self.freedom {
            Freedom::Fixed => None,
            Freedom::Scale => numbers.store_scale(wanted.scale, now.zero),
            Freedom::Both => numbers.store(wanted),
        };
        found.filter(|(stored, _)| stored != now)
    }
}

/// Smallest and largest value.
pub(crate) fn ends_of(values: &[f32]) -> (f32, f32) {
    let first = values.first().copied().unwrap_or(0.0);
    values.iter().fold((first, first), |(low, high), &value| {
        (low.min(value), high.max(value))
    })
}

/// The scales that ggml gives the groups of a row.
fn of_blocks(
    blocks: Blocks,
    values: &[f32],
    backend: &'static Backend,
) -> Result<Vec<Stored>, (usize, f32)> {
    let rows = Rows {
        values: safequant_kernels::Floats::F32(values),
        in_features: values.len(),
        first_row: 0,
        out_features: 1,
        source: Float::F32,
    };
    let tile = blocks
        .quantize(&rows, values, backend)
        .map_err(|error| match error {
            Error::ScaleOverflow { group, scale, .. } => {
                (usize::try_from(group).unwrap_or(usize::MAX), scale)
            }
            Error::NonFinite { .. }
            | Error::UnsupportedScheme { .. }
            | Error::Inputs { .. }
            | Error::Unreadable { .. }
            | Error::MissingStatistics { .. } => (0, f32::NAN),
        })?;
    let offsets = tile.offsets.iter().copied().chain(std::iter::repeat(0.0));
    let stored = tile
        .scales
        .iter()
        .zip(offsets)
        .map(|(&scale, offset)| Stored {
            scale,
            zero: 0,
            offset,
        });
    Ok(stored.collect())
}

/// What codes of a scheme stand for.
pub(crate) fn levels(scheme: &Scheme) -> Result<Levels, Error> {
    let zero = match scheme.zero_point {
        ZeroPoint::Fixed(zero) | ZeroPoint::Offset { zero, .. } => zero,
        ZeroPoint::Stored(_) => 0,
    };
    let found = match scheme.code {
        Code::Integer { bits, .. } if bits <= 8 => Some(Levels::integers(bits, zero)),
        Code::Minifloat(format) => Levels::minifloat(format),
        Code::Codebook(book) => Some(Levels::codebook(book)),
        Code::Integer { .. } | Code::StoredCodebook | Code::Dense(_) => None,
    };
    found.ok_or(Error::UnsupportedScheme {
        reason: "a search needs codes with a fixed set of levels",
    })
}

/// Multiples of the largest magnitude over the largest level that are worth a look: with few levels it pays to cut off what is
/// large, with floats it is where the levels fall that matters.
fn scale_range(scheme: &Scheme, signs: Signs) -> Range {
    let (from, to) = match scheme.code {
        Code::Integer { bits: 0..=3, .. } => (0.35, 1.3),
        Code::Integer { bits: 4, .. } | Code::Codebook(_) => (0.45, 1.2),
        Code::Integer { bits: 5 | 6, .. } => (0.6, 1.1),
        Code::Integer { .. } => (0.8, 1.1),
        Code::Minifloat(format) if format.bits() < 6 => (0.6, 1.8),
        Code::Minifloat(_) | Code::StoredCodebook | Code::Dense(_) => (0.6, 2.0),
    };
    Range::Scale { from, to, signs }
}

impl Numbers {
    fn new(scheme: &Scheme, first: &First, above: f32) -> Result<Self, Error> {
        let unsupported = |reason| Err(Error::UnsupportedScheme { reason });
        if scheme.direction == ScaleDirection::Divide {
            return unsupported("scales that divide are only read");
        }
        let is_half = matches!(first, First::Blocks(blocks) if blocks.has_half_e4m3_scales());
        let coding = match scheme.scale {
            ScaleCoding::Float(Float::F32) if is_half => Coding::HalfE4M3,
            ScaleCoding::Float(float) => Coding::Float(float),
            ScaleCoding::E8M0(rule) => Coding::Power(rule),
            ScaleCoding::Minifloat(safequant_kernels::Minifloat::E4M3) => Coding::E4M3,
            ScaleCoding::StoredTable => Coding::DynamicMap,
            ScaleCoding::Minifloat(_) | ScaleCoding::Integer | ScaleCoding::One => {
                return unsupported("a search needs scales that are stored one by one");
            }
        };
        let above = match (scheme.super_scale, coding) {
            (SuperScale::None, _) => Above::None,
            (SuperScale::Multiply, _) => Above::Multiply(above),
            (SuperScale::Divide, _) => Above::Divide(above),
            (SuperScale::Nested { size, offset }, Coding::DynamicMap) => {
                Above::Nested(Nesting::new(size, offset), above)
            }
            (SuperScale::Nested { .. } | SuperScale::Grouped { .. } | SuperScale::Channel, _) => {
                return unsupported("a search needs scales that are stored one by one");
            }
        };
        let divisor = match scheme.arithmetic {
            Arithmetic::Over127 | Arithmetic::ScaleOver127 => 127.0,
            Arithmetic::Int8Grid(_) | Arithmetic::Probed(_) => {
                return unsupported("its readers round more than once: there is no best scale");
            }
            Arithmetic::ScaledDifference
            | Arithmetic::RoundedTo(_)
            | Arithmetic::RoundedScale(_)
            | Arithmetic::RoundedZero(_)
            | Arithmetic::EachStep(_) => 1.0,
        };
        let zero = match (scheme.zero_point, scheme.code, coding) {
            (ZeroPoint::Fixed(_), _, _) => Zero::None,
            (ZeroPoint::Stored(zeros), Code::Integer { bits, .. }, _) => {
                let least = match zeros {
                    // A zero of 0 is stored as -1, which some readers do not wrap.
                    ZeroCoding::MinusOne
                    | ZeroCoding::MinusOneModulo
                    | ZeroCoding::MinusOneWord => 1,
                    ZeroCoding::Direct | ZeroCoding::Signed | ZeroCoding::NegatedProduct => 0,
                };
                Zero::Integer(least, (1 << bits) - 1)
            }
            (ZeroPoint::Offset { form, .. }, _, Coding::Float(float)) => Zero::Offset(form, float),
            (ZeroPoint::Stored(_) | ZeroPoint::Offset { .. }, _, _) => {
                return unsupported("zero points and offsets belong to dense scales");
            }
        };
        // From 6 bits on the level without a partner is worth less than the surprise of a negative scale.
        let lopsided = match scheme.code {
            Code::Integer { bits, .. } => bits <= 5,
            Code::Codebook(book) => {
                let values = book.values();
                values.iter().any(|value| !values.contains(&-value))
            }
            Code::Minifloat(_) | Code::StoredCodebook | Code::Dense(_) => false,
        };
        let is_plain = matches!(zero, Zero::None) && matches!(coding, Coding::Float(_));
        let signs = if lopsided && is_plain && matches!(above, Above::None) && divisor < 2.0 {
            Signs::Either
        } else {
            Signs::Positive
        };
        Ok(Self {
            coding,
            signs,
            above,
            divisor,
            zero,
        })
    }

    /// Those of a group whose scale is scaled by a number of its own.
    fn under(self, under: Option<f32>) -> Self {
        match (self.above, under) {
            (Above::Nested(nesting, _), Some(above)) => Self {
                above: Above::Nested(nesting, above),
                ..self
            },
            (Above::None | Above::Multiply(_) | Above::Divide(_) | Above::Nested(..), _) => self,
        }
    }

    fn above(&self) -> f32 {
        match self.above {
            Above::None => 1.0,
            Above::Multiply(above) | Above::Divide(above) | Above::Nested(_, above) => above,
        }
    }

    fn effective_scale(&self, scale: f32) -> f32 {
        let scale = scale / self.divisor;
        match self.above {
            Above::None => scale,
            Above::Multiply(above) => scale * above,
            Above::Divide(above) => scale / above,
            Above::Nested(nesting, above) => nesting.scale(scale, above),
        }
    }

    fn effective(&self, stored: Stored) -> Candidate {
        let scale = self.effective_scale(stored.scale);
        #[expect(clippy::cast_precision_loss, reason = "zeros have at most 9 bits")]
        let offset = match self.zero {
            Zero::None => 0.0,
            Zero::Integer(..) => -(scale * stored.zero as f32),
            Zero::Offset(OffsetForm::BeforeScale, _) => -(stored.offset * scale),
            Zero::Offset(OffsetForm::Added, _) => stored.offset,
            Zero::Offset(OffsetForm::Subtracted, _) => -stored.offset,
        };
        Candidate { scale, offset }
    }

    /// The stored scale nearest to a wanted one; `None` where there is no useful one.
    fn coded(&self, wanted: f32) -> Option<f32> {
        if self.signs == Signs::Positive && wanted <= 0.0 {
            return None;
        }
        let raw = wanted * self.divisor;
        let raw = match self.above {
            Above::None => raw,
            Above::Multiply(above) => raw / above,
            Above::Divide(above) => raw * above,
            Above::Nested(nesting, above) => nesting.nearest(raw, above)?,
        };
        let coded = match self.coding {
            Coding::DynamicMap => raw,
            Coding::Float(float) => float.nearest(raw),
            Coding::E4M3 => e4m3(raw),
            Coding::HalfE4M3 => 0.5 * e4m3(2.0 * raw),
            Coding::Power(rule) => power(rule, raw)?,
        };
        let candidate = Candidate {
            scale: self.effective_scale(coded),
            offset: 0.0,
        };
        (coded.is_finite() && candidate.scale.is_finite() && candidate.inverse() != 0.0)
            .then_some(coded)
    }

    /// As wanted, with a zero that stays.
    fn store_scale(&self, wanted: f32, zero: i32) -> Option<(Stored, Candidate)> {
        let stored = Stored {
            scale: self.coded(wanted)?,
            zero,
            offset: 0.0,
        };
        Some((stored, self.effective(stored)))
    }

    fn store(&self, wanted: Candidate) -> Option<(Stored, Candidate)> {
        let scale = self.coded(wanted.scale)?;
        let effective = self.effective_scale(scale);
        let mut stored = Stored {
            scale,
            ..Stored::default()
        };
        match self.zero {
            Zero::None => {}
            Zero::Integer(least, most) => {
                #[expect(clippy::cast_possible_truncation, reason = "saturates, and is clamped")]
                let zero = (-wanted.offset / effective).round_ties_even() as i32;
                stored.zero = zero.clamp(least, most);
            }
            Zero::Offset(form, float) => {
                stored.offset = float.nearest(match form {
                    OffsetForm::BeforeScale => -wanted.offset / effective,
                    OffsetForm::Added => wanted.offset,
                    OffsetForm::Subtracted => -wanted.offset,
                });
                if !stored.offset.is_finite() {
                    return None;
                }
            }
        }
        Some((stored, self.effective(stored)))
    }
}

/// The power of two nearest to a positive number, as a byte of this rule gives it; `None` at the ends of the range, where rules
/// differ.
fn power(rule: E8M0Rule, wanted: f32) -> Option<f32> {
    if !(1e-36..1e36).contains(&wanted) {
        return None;
    }
    // The mantissa's rounding carries into the exponent at 1.5.
    let power = f32::from_bits((wanted.to_bits() + (1 << 22)) & 0x7F80_0000);
    rule.table().contains(&power).then_some(power)
}
