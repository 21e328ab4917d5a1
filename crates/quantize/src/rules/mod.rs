//! From the extremes of a group to its scale, its zero point, and the way its codes are calculated.
//!
//! One file per reference tool; each repeats its tool operation by operation, roundings included, because the product
//! promises that tool's bytes (`specs/quantizers/round_to_nearest.md`; clause numbers in the files are its).

mod awq;
mod bitsandbytes;
mod choice;
mod comfy_ui;
mod compressed_tensors;
mod fine_grained_fp8;
mod ggml;
mod gptq;
mod hqq;
mod micro;
mod mlx;
mod model_opt;
pub(crate) mod numbers;
mod ocp_mx;
mod quanto;
mod torch_ao;

use safequant_kernels::Float;
use safequant_schemes::{
    Code, CodeTile, ColumnFactor, ScaleDirection, Scheme, SuperScale, ZeroPoint,
};

use self::choice::CodeRule;
pub(crate) use self::choice::{Choice, Rules};
pub(crate) use self::ggml::Blocks;
use crate::{Division, Error, ScaleRule, Target};

/// What is known of the values that share a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Group {
    /// Smallest value; of a whole matrix, 0 if that is smaller.
    pub(crate) low: f32,
    /// Largest value; of a whole matrix, 0 if that is larger.
    pub(crate) high: f32,
    /// The value of largest magnitude; of several the first one where [`Sight::Extreme`] says so, else any.
    pub(crate) extreme: f32,
    /// Whether it is shorter than the others.
    pub(crate) is_short: bool,
}

impl Group {
    pub(crate) fn new((low, high): (f32, f32), is_short: bool) -> Self {
        Group {
            low,
            high,
            extreme: if high >= -low { high } else { low },
            is_short,
        }
    }

    /// Of the value of largest magnitude, where nothing else is known.
    pub(crate) fn of_extreme(extreme: f32, is_short: bool) -> Self {
        let high = extreme.abs();
        Group {
            low: -high,
            high,
            extreme,
            is_short,
        }
    }

    /// Whether the largest magnitude has both signs.
    pub(crate) fn has_two_extremes(self) -> bool {
        self.high > 0.0 && self.high.to_bits() == (-self.low).to_bits()
    }

    /// Largest magnitude.
    fn amax(self) -> f32 {
        self.high.max(-self.low)
    }

    /// The extremes with 0 among the values.
    fn with_zero(self) -> (f32, f32) {
        (self.low.min(0.0), self.high.max(0.0))
    }
}

/// What a rule looks at in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The largest magnitude: [`Group::extreme`] has no sign, and the ends are those of a symmetric group.
    Magnitude,
    /// The value of largest magnitude, the first of several: the ends are those of a symmetric group.
    Extreme,
    /// Smallest and largest value.
    Ends,
}

/// Consecutive groups, by what a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Groups<'a> {
    /// Magnitudes, or values of largest magnitude.
    Extremes(&'a [f32]),
    /// Smallest and largest values.
    Ends(&'a [(f32, f32)]),
}

impl Groups<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Groups::Extremes(values) => values.len(),
            Groups::Ends(ends) => ends.len(),
        }
    }

    #[inline]
    fn get(&self, i: usize, is_short: bool) -> Group {
        match self {
            Groups::Extremes(values) => Group::of_extreme(values[i], is_short),
            Groups::Ends(ends) => Group::new(ends[i], is_short),
        }
    }
}

/// What has been chosen for consecutive groups.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// Gets scales, zero points and offsets.
    pub(crate) tile: &'a mut CodeTile,
    /// Which of them.
    pub(crate) zero_point: ZeroPoint,
    /// Gets rules.
    pub(crate) rules: &'a mut Rules,
}

impl Chosen<'_> {
    #[inline]
    fn push(&mut self, choice: Choice) {
        self.tile.scales.push(choice.scale);
        match self.zero_point {
            ZeroPoint::Stored(_) => self.tile.zeros.push(choice.zero),
            ZeroPoint::Offset { .. } => self.tile.offsets.push(choice.offset),
            ZeroPoint::Fixed(_) => {}
        }
        self.rules.push(choice.coder);
    }
}

/// One tool's way of choosing.
pub(crate) trait Reference: std::fmt::Debug + Sync {
    /// The scale of the scales of a matrix, from its extremes; only asked where the scheme has one.
    ///
    /// # Errors
    /// The number itself, if it is not finite.
    fn super_scale(&self, _extremes: Group) -> Result<f32, f32> {
        Ok(1.0)
    }

    /// What it looks at.
    fn sight(&self) -> Sight {
        Sight::Ends
    }

    /// Chooses for a group; `above` is what [`Reference::super_scale`] gave, or 1.
    ///
    /// # Errors
    /// The scale before it is stored, if its dtype cannot hold it.
    fn choose(&self, group: Group, above: f32) -> Result<Choice, f32>;

    /// [`Reference::choose`] for consecutive groups, of which the last one may be shorter: one call for many, so that the rule
    /// is inlined.
    ///
    /// # Errors
    /// The group that was refused, and its scale.
    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}

/// [`Reference::choose`] for group after group.
fn one_by_one(
    reference: &(impl Reference + ?Sized),
    (groups, last_is_short): (Groups<'_>, bool),
    above: f32,
    chosen: &mut Chosen<'_>,
) -> Result<(), (usize, f32)> {
    let n = groups.len();
    for i in 0..n {
        let group = groups.get(i, last_is_short && i + 1 == n);
        let choice = reference.choose(group, above);
        chosen.push(choice.map_err(|scale| (i, scale))?);
    }
    Ok(())
}

/// Scales of groups whose rule is the same but for its number, both from the largest magnitude alone, and without a branch, so
/// that several are calculated at once. Gives up, with nothing chosen, where one of the numbers is not positive and finite: then
/// something special has to be decided, group by group.
fn plainly(
    groups: Groups<'_>,
    chosen: &mut Chosen<'_>,
    (zero, rule): (i32, CodeRule),
    scale_and_number: impl Fn(f32) -> (f32, f32),
) -> bool {
    let Groups::Extremes(magnitudes) = groups else {
        return false;
    };
    let before = chosen.tile.scales.len();
    let n = magnitudes.len();
    chosen.tile.scales.resize(before + n, 0.0);
    let scales = &mut chosen.tile.scales[before..];
    let numbers = chosen.rules.start(rule, n);
    for ((scale, number), &magnitude) in scales.iter_mut().zip(&mut *numbers).zip(magnitudes) {
        (*scale, *number) = scale_and_number(magnitude);
    }
    // Without a way out halfway, so that it is vectorized: positive numbers are those of the bits 1 to infinity's, less one.
    let are_plain = |all: &[f32]| {
        let ordinal = |value: &f32| value.to_bits().wrapping_sub(1);
        all.iter().map(ordinal).max() < Some(f32::INFINITY.to_bits() - 1)
    };
    if !(are_plain(scales) && are_plain(numbers)) {
        chosen.tile.scales.truncate(before);
        chosen.rules.clear();
        return false;
    }
    if let ZeroPoint::Stored(_) = chosen.zero_point {
        let zeros = &mut chosen.tile.zeros;
        zeros.resize(zeros.len() + n, zero);
    }
    true
}

/// What a reference is asked for.
#[derive(Clone, Copy)]
struct Wanted<'t> {
    scheme: &'t Scheme,
    /// The dtype of the dense weight.
    source: Float,
    division: Division,
}

/// A reference that was found, or why there is none.
type Found = Result<Box<dyn Reference>, Error>;

#[expect(
    clippy::unnecessary_wraps,
    reason = "what every file's `reference` returns"
)]
fn found(reference: impl Reference + 'static) -> Found {
    Ok(Box::new(reference))
}

fn unsupported<T>(reason: &'static str) -> Result<T, Error> {
    Err(Error::UnsupportedScheme { reason })
}

/// The reference for a target, and for weights of the dtype `source`.
///
/// # Errors
/// [`Error::UnsupportedScheme`].
pub(crate) fn reference(target: &Target, source: Float) -> Found {
    let wanted = Wanted {
        scheme: &target.scheme,
        source,
        division: target.division,
    };
    check(target)?;
    match target.rule {
        ScaleRule::CompressedTensors => compressed_tensors::reference(wanted),
        ScaleRule::Gptq => gptq::reference(wanted),
        ScaleRule::FineGrainedFp8 => fine_grained_fp8::reference(wanted),
        ScaleRule::Awq => awq::reference(wanted),
        ScaleRule::ModelOpt => model_opt::reference(wanted),
        ScaleRule::Bitsandbytes => bitsandbytes::reference(wanted),
        ScaleRule::Mlx => mlx::reference(wanted),
        ScaleRule::TorchAo => torch_ao::reference(wanted),
        ScaleRule::Hqq => hqq::reference(wanted),
        ScaleRule::Quanto => quanto::reference(wanted),
        ScaleRule::ComfyUi => comfy_ui::reference(wanted),
        ScaleRule::OcpMx => ocp_mx::reference(wanted),
        ScaleRule::Ggml => {
            unsupported("ggml chooses for whole blocks, and this is none of its block types")
        }
    }
}

/// What no rule can do.
fn check(target: &Target) -> Result<(), Error> {
    let scheme = &target.scheme;
    if scheme.direction == ScaleDirection::Divide {
        return unsupported("scales that divide are only read");
    }
    match scheme.super_scale {
        SuperScale::None | SuperScale::Multiply | SuperScale::Divide => {}
        // What is stored for them is chosen once their groups are done ([`crate::nested`]).
        SuperScale::Nested { .. } if target.rule == ScaleRule::Bitsandbytes => {}
        SuperScale::Nested { .. } | SuperScale::Grouped { .. } | SuperScale::Channel => {
            return unsupported("this rule has no scales of scales of this kind");
        }
    }
    if scheme.basis.columns != ColumnFactor::None || scheme.basis.rank > 0 {
        return unsupported("factors per input feature and low-rank parts need calibration");
    }
    match scheme.code {
        Code::Integer { bits, .. } if !(1..=8).contains(&bits) => {
            unsupported("integers have 1 to 8 bits")
        }
        Code::Integer { .. } | Code::Minifloat(_) | Code::Codebook(_) => Ok(()),
        Code::StoredCodebook => unsupported("a stored code book has to be fitted first"),
        Code::Dense(_) => unsupported("dense values have no codes"),
    }
}

/// An integer code.
#[derive(Clone, Copy, Debug)]
struct IntegerRange {
    bits: u32,
    symmetry: Symmetry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symmetry {
    Symmetric,
    Asymmetric,
}

impl IntegerRange {
    /// With integer zero points.
    fn new(bits: u32, zero_point: ZeroPoint) -> Result<Self, Error> {
        let symmetric = IntegerRange {
            bits,
            symmetry: Symmetry::Symmetric,
        };
        match zero_point {
            ZeroPoint::Fixed(zero) if zero == symmetric.middle() => Ok(symmetric),
            ZeroPoint::Fixed(_) => {
                unsupported("a fixed zero point must be in the middle of the codes")
            }
            ZeroPoint::Offset { .. } => unsupported("this rule has no float zero points"),
            ZeroPoint::Stored(_) => Ok(IntegerRange {
                bits,
                symmetry: Symmetry::Asymmetric,
            }),
        }
    }

    /// Largest code of the unsigned form.
    fn max(self) -> i32 {
        (1 << self.bits) - 1
    }

    /// Zero of a symmetric code in the unsigned form.
    fn middle(self) -> i32 {
        1 << (self.bits - 1)
    }
}
