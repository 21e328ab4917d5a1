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
mod numbers;
mod ocp_mx;
mod quanto;
mod torch_ao;

use safequant_kernels::Float;
use safequant_schemes::{Code, ColumnFactor, ScaleDirection, Scheme, SuperScale, ZeroPoint};

pub(crate) use self::choice::Choice;
pub(crate) use self::ggml::Blocks;
use crate::{Division, Error, ScaleRule, Target};

/// What is known of the values that share a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Group {
    /// Smallest value; of a whole matrix, 0 if that is smaller.
    pub(crate) low: f32,
    /// Largest value; of a whole matrix, 0 if that is larger.
    pub(crate) high: f32,
    /// The value of largest magnitude; of several the first one where the rule needs it, else any.
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

/// One tool's way of choosing.
pub(crate) trait Reference: std::fmt::Debug {
    /// The scale of the scales of a matrix, from its extremes; only asked where the scheme has one.
    ///
    /// # Errors
    /// The number itself, if it is not finite.
    fn super_scale(&self, _extremes: Group) -> Result<f32, f32> {
        Ok(1.0)
    }

    /// Whether [`Group::extreme`] must be the first of several.
    fn needs_first_extreme(&self) -> bool {
        false
    }

    /// Chooses for a group; `above` is what [`Reference::super_scale`] gave, or 1.
    ///
    /// # Errors
    /// The scale before it is stored, if its dtype cannot hold it.
    fn choose(&self, group: Group, above: f32) -> Result<Choice, f32>;
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
    check(&target.scheme)?;
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
fn check(scheme: &Scheme) -> Result<(), Error> {
    if scheme.direction == ScaleDirection::Divide {
        return unsupported("scales that divide are only read");
    }
    match scheme.super_scale {
        SuperScale::None | SuperScale::Multiply | SuperScale::Divide => {}
        SuperScale::Nested { .. } => {
            return unsupported("doubly quantized scales need the mean over the whole matrix");
        }
        SuperScale::Grouped { .. } | SuperScale::Channel => {
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
