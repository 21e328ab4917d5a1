//! From the extremes of a group to its scale, its zero point, and the way its codes are calculated.
//!
//! Every rule repeats one reference operation by operation, roundings included, because the product promises that tool's
//! bytes (`specs/quantizers/round_to_nearest.md`; clause numbers below are its).

use safequant_kernels::{Backend, Float, Minifloat};
use safequant_schemes::{Code, ScaleCoding, ScaleDirection, ZeroPoint};

use crate::{Division, Error, ScaleRule, Target};

/// A target that was found quantizable, reduced to numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    reference: Reference,
    /// The dtype that scales are stored in.
    scale: Float,
    /// The dtype of the dense weight.
    source: Float,
    division: Division,
}

/// A reference implementation with the code it produces.
#[derive(Clone, Copy, Debug)]
enum Reference {
    CompressedTensorsInteger { range: IntegerRange },
    CompressedTensorsFloat { format: Minifloat },
    Gptq { range: IntegerRange },
    FineGrainedFp8 { format: Minifloat },
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
    /// Largest code of the unsigned form.
    fn max(self) -> i32 {
        (1 << self.bits) - 1
    }

    /// Zero of a symmetric code in the unsigned form.
    fn middle(self) -> i32 {
        1 << (self.bits - 1)
    }
}

/// What was chosen for one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// The scale as stored: a value of the scale's dtype.
    pub(crate) scale: f32,
    /// Zero of the unsigned form; 0 for floats.
    pub(crate) zero: i32,
    coder: Coder,
}

/// How the codes of a group follow from its values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coder {
    /// `rne(clamp(value / divisor + zero))`, every operation in `arith`; `zero` and the limits are signed.
    Integer {
        arith: Float,
        divisor: f32,
        zero: i32,
        min: i32,
        max: i32,
    },
    /// As `GPTQModel` packs: the code of the value that was already quantized, dequantized and rounded to `source`.
    Repacked {
        source: Float,
        divisor: f32,
        zero: i32,
        max: i32,
    },
    /// `encode(clamp(value / divisor))`, the quotient in `arith`.
    Divided {
        arith: Float,
        format: Minifloat,
        divisor: f32,
    },
    /// `encode(clamp(value * factor))` in F32.
    Multiplied { format: Minifloat, factor: f32 },
    /// Every value gets this code.
    Constant { code: u8 },
}

impl Rule {
    /// # Errors
    /// [`Error::UnsupportedScheme`].
    pub(crate) fn new(target: &Target, source: Float) -> Result<Self, Error> {
        let unsupported = |reason| Err(Error::UnsupportedScheme { reason });
        let scheme = &target.scheme;
        if scheme.direction == ScaleDirection::Divide {
            return unsupported("scales that divide are only read");
        }
        let ScaleCoding::Float(scale) = scheme.scale else {
            return unsupported("power-of-two scales have no rule yet");
        };
        let reference = match (scheme.code, target.rule) {
            (Code::Integer { bits, encoding: _ }, rule) => {
                let range = integer_range(bits, scheme.zero_point)?;
                match rule {
                    ScaleRule::CompressedTensors => Reference::CompressedTensorsInteger { range },
                    ScaleRule::Gptq => Reference::Gptq { range },
                    ScaleRule::FineGrainedFp8 => {
                        return unsupported("the rule of fine-grained FP8 has no integer codes");
                    }
                    ScaleRule::Awq
                    | ScaleRule::ModelOpt
                    | ScaleRule::Bitsandbytes
                    | ScaleRule::Mlx
                    | ScaleRule::TorchAo
                    | ScaleRule::Hqq
                    | ScaleRule::Quanto
                    | ScaleRule::ComfyUi
                    | ScaleRule::Ggml
                    | ScaleRule::OcpMx => return unsupported("this rule is not there yet"),
                }
            }
            (Code::Minifloat(Minifloat::E8M0), _) => {
                return unsupported("E8M0 is a format of scales");
            }
            (Code::Minifloat(format), ScaleRule::CompressedTensors) => {
                Reference::CompressedTensorsFloat { format }
            }
            (Code::Minifloat(format), ScaleRule::FineGrainedFp8) => {
                Reference::FineGrainedFp8 { format }
            }
            (Code::Minifloat(_), _) => {
                return unsupported("this rule has no float codes");
            }
            (Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_), _) => {
                return unsupported("code books are not rounded to");
            }
        };
        Ok(Rule {
            reference,
            scale,
            source,
            division: target.division,
        })
    }

    /// Chooses for a group with these extremes, which include 0 (`low <= 0 <= high`).
    ///
    /// # Errors
    /// The scale before it is stored, if its dtype cannot hold it.
    pub(crate) fn choose(&self, (low, high): (f32, f32)) -> Result<Choice, f32> {
        match self.reference {
            Reference::CompressedTensorsInteger { range } => {
                self.compressed_tensors_integer(range, low, high)
            }
            Reference::CompressedTensorsFloat { format } => {
                let arith = self.source;
                let scale = arith.nearest(high.max(-low) / format.max_finite());
                let (scale, divisor) = self.stored_or_eps(scale)?;
                let coder = Coder::Divided {
                    arith: self.arith(),
                    format,
                    divisor,
                };
                Ok(Choice {
                    scale,
                    zero: 0,
                    coder,
                })
            }
            Reference::Gptq { range } => self.gptq(range, low, high),
            Reference::FineGrainedFp8 { format } => self.fine_grained(format, high.max(-low)),
        }
    }

    /// The dtype in which codes are calculated under compressed-tensors' rule.
    fn arith(&self) -> Float {
        match self.division {
            Division::SourceDtype => self.source,
            Division::F32 => Float::F32,
        }
    }

    /// Clauses 10-15. `calculate_qparams` runs in the weight's dtype wherever the division runs.
    fn compressed_tensors_integer(
        &self,
        range: IntegerRange,
        low: f32,
        high: f32,
    ) -> Result<Choice, f32> {
        let t = self.source;
        let (min, max) = (-range.middle(), range.middle() - 1);
        let steps = exact_f32(range.max());
        let (scale, zero) = match range.symmetry {
            Symmetry::Symmetric => (t.nearest(high.max(-low) / (steps / 2.0)), 0),
            Symmetry::Asymmetric => {
                let scale = t.nearest(t.nearest(high - low) / steps);
                // 0 / 0 is NaN, which the conversion makes 0, as torch's does.
                let zero = t.nearest(exact_f32(min) - t.nearest(low / scale));
                (
                    scale,
                    nearest_i32(zero.clamp(exact_f32(min), exact_f32(max))),
                )
            }
        };
        let (scale, divisor) = self.stored_or_eps(scale)?;
        let coder = Coder::Integer {
            arith: self.arith(),
            divisor,
            zero,
            min,
            max,
        };
        Ok(Choice {
            scale,
            zero: zero - min,
            coder,
        })
    }

    /// A scale in its stored dtype, a zero replaced by that dtype's eps (clause 12), and the same as a value of the
    /// weight's dtype, which is what weights are divided by.
    fn stored_or_eps(&self, scale: f32) -> Result<(f32, f32), f32> {
        let stored = self.stored(scale)?;
        let stored = if stored == 0.0 {
            eps(self.scale)
        } else {
            stored
        };
        Ok((stored, self.source.nearest(stored)))
    }

    fn stored(&self, scale: f32) -> Result<f32, f32> {
        let stored = self.scale.nearest(scale);
        if stored.is_finite() {
            Ok(stored)
        } else {
            Err(scale)
        }
    }

    /// Clauses 20-26, in F32.
    fn gptq(&self, range: IntegerRange, low: f32, high: f32) -> Result<Choice, f32> {
        let (mut low, mut high) = (low, high);
        if range.symmetry == Symmetry::Symmetric {
            high = high.max(-low);
            low = if low < 0.0 { -high } else { low };
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        let exact = (high - low) / exact_f32(range.max());
        let scale = self.stored(exact)?;
        match self.division {
            Division::SourceDtype => Ok(self.gptq_reference(range, low, exact, scale)),
            Division::F32 => Ok(self.gptq_stored_scale(range, low, scale)),
        }
    }

    /// The tool's bytes: codes from the scale before it was stored, recalculated by the packer from the rounded weight.
    fn gptq_reference(&self, range: IntegerRange, low: f32, exact: f32, scale: f32) -> Choice {
        let max = range.max();
        if exact == 0.0 {
            let zero = range.middle();
            return Choice {
                scale,
                zero,
                coder: constant(zero),
            };
        }
        let zero = gptq_zero(range, low, exact);
        let coder = if self.packer_may_change_a_code(exact, max) {
            Coder::Repacked {
                source: self.source,
                divisor: exact,
                zero,
                max,
            }
        } else {
            gptq_coder(exact, zero, max)
        };
        Choice { scale, zero, coder }
    }

    /// Whether the packer's detour over the rounded weight (clause 25) can end at another code: only if that rounding can
    /// reach half a step. A code is at most `max` steps from zero, so its rounding is at most `max / 256` steps in BF16
    /// (a half for 8 bits, reached in practice) and `max / 2048` in F16, until subnormals are all that is left.
    fn packer_may_change_a_code(&self, scale: f32, max: i32) -> bool {
        (self.source == Float::Bf16 && max > 127) || scale < 4.0 * smallest_positive(self.source)
    }

    /// Codes that agree with the stored scale: closer to the weight, but not the tool's bytes.
    fn gptq_stored_scale(&self, range: IntegerRange, low: f32, scale: f32) -> Choice {
        let scale = if scale == 0.0 {
            smallest_positive(self.scale)
        } else {
            scale
        };
        let zero = gptq_zero(range, low, scale);
        Choice {
            scale,
            zero,
            coder: gptq_coder(scale, zero, range.max()),
        }
    }

    /// Clauses 30-34, in F32: the reference multiplies by the reciprocal under either [`Division`].
    fn fine_grained(&self, format: Minifloat, largest: f32) -> Result<Choice, f32> {
        // torch turns `448.0 / tensor` into `tensor.reciprocal() * 448.0`: two roundings.
        let factor = if largest > 0.0 {
            (1.0 / largest) * format.max_finite()
        } else {
            1.0
        };
        // Below 2^-119 the reference's factor is infinite, and its zeros become NaN: we stop short of that.
        let factor = factor.min(f32::MAX);
        let inverse = 1.0 / factor;
        let scale = self.stored(inverse)?;
        if scale == 0.0 {
            let scale = smallest_positive(self.scale);
            return Ok(Choice {
                scale,
                zero: 0,
                coder: constant(0),
            });
        }
        // As the reference does where it stores a rounded scale: what divides is the reciprocal of what is stored.
        let factor = if scale.to_bits() == inverse.to_bits() {
            factor
        } else {
            1.0 / scale
        };
        Ok(Choice {
            scale,
            zero: 0,
            coder: Coder::Multiplied { format, factor },
        })
    }
}

impl Choice {
    /// Codes of values that share this choice, in unsigned form or as bit patterns.
    ///
    /// `values`, `codes`: the same length.
    pub(crate) fn encode(&self, values: &[f32], codes: &mut [u8], backend: &'static Backend) {
        match self.coder {
            Coder::Integer {
                arith,
                divisor,
                zero,
                min,
                max,
            } => {
                (backend.quantize_integer)(arith, values, divisor, zero, min, max, codes);
            }
            Coder::Repacked {
                source,
                divisor,
                zero,
                max,
            } => {
                repack(source, values, divisor, zero, max, codes);
            }
            Coder::Divided {
                arith,
                format,
                divisor,
            } => {
                (backend.quantize_minifloat)(arith, format, values, divisor, codes);
            }
            Coder::Multiplied { format, factor } => {
                multiply(format, values, factor, codes, backend);
            }
            Coder::Constant { code } => codes.fill(code),
        }
    }
}

fn integer_range(bits: u32, zero_point: ZeroPoint) -> Result<IntegerRange, Error> {
    if !(1..=8).contains(&bits) {
        return Err(Error::UnsupportedScheme {
            reason: "integers have 1 to 8 bits",
        });
    }
    let symmetric = IntegerRange {
        bits,
        symmetry: Symmetry::Symmetric,
    };
    match zero_point {
        ZeroPoint::Fixed(zero) if zero == symmetric.middle() => Ok(symmetric),
        ZeroPoint::Fixed(_) => Err(Error::UnsupportedScheme {
            reason: "a fixed zero point must be in the middle of the codes",
        }),
        ZeroPoint::Offset { .. } => Err(Error::UnsupportedScheme {
            reason: "float zero points have no rule yet",
        }),
        ZeroPoint::Stored(_) => Ok(IntegerRange {
            bits,
            symmetry: Symmetry::Asymmetric,
        }),
    }
}

/// `clamp(rne(value / divisor) + zero, 0, max)`, which is rounding with the limits moved instead of the value.
fn gptq_coder(divisor: f32, zero: i32, max: i32) -> Coder {
    Coder::Integer {
        arith: Float::F32,
        divisor,
        zero: 0,
        min: -zero,
        max: max - zero,
    }
}

fn gptq_zero(range: IntegerRange, low: f32, scale: f32) -> i32 {
    match range.symmetry {
        Symmetry::Symmetric => range.middle(),
        Symmetry::Asymmetric => nearest_i32((-low / scale).clamp(0.0, exact_f32(range.max()))),
    }
}

fn constant(code: i32) -> Coder {
    Coder::Constant {
        code: u8::try_from(code).unwrap_or(u8::MAX),
    }
}

/// The packer's arithmetic (clause 25).
fn repack(source: Float, values: &[f32], scale: f32, zero: i32, max: i32, codes: &mut [u8]) {
    let (zero, max) = (exact_f32(zero), exact_f32(max));
    for (code, &value) in codes.iter_mut().zip(values) {
        let first = (nearest_of_small(value / scale) + zero).clamp(0.0, max);
        let weight = source.nearest(scale * (first - zero));
        let second = nearest_of_small((weight + zero * scale) / scale).clamp(0.0, max);
        *code = small_u8(second);
    }
}

/// The nearest integer to a value that will be clamped to less than 512 afterwards, ties to even: the adder rounds at the
/// last place of 1.5 * 2^23, which is 1. (`round_ties_even` is a call on baseline x86-64.)
fn nearest_of_small(value: f32) -> f32 {
    const UNIT: f32 = 12_582_912.0;
    (value.clamp(-1024.0, 1024.0) + UNIT) - UNIT
}

/// An integer in 0..=255.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the codes; the cast saturates"
)]
fn small_u8(value: f32) -> u8 {
    value as u8
}

fn multiply(
    format: Minifloat,
    values: &[f32],
    factor: f32,
    codes: &mut [u8],
    backend: &'static Backend,
) {
    const CHUNK: usize = 256;
    let mut products = [0.0; CHUNK];
    for (values, codes) in values.chunks(CHUNK).zip(codes.chunks_mut(CHUNK)) {
        let products = &mut products[..values.len()];
        for (product, &value) in products.iter_mut().zip(values) {
            *product = value * factor;
        }
        // Dividing by 1 is exact; the primitive clamps and encodes.
        (backend.quantize_minifloat)(Float::F32, format, products, 1.0, codes);
    }
}

/// The distance from 1 to the next larger value: what compressed-tensors puts in place of a zero scale.
fn eps(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => f32::EPSILON,
        Float::F16 => half::f16::EPSILON.to_f32(),
        Float::Bf16 => half::bf16::EPSILON.to_f32(),
    }
}

/// The smallest subnormal.
fn smallest_positive(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => f32::from_bits(1),
        Float::F16 => half::f16::from_bits(1).to_f32(),
        Float::Bf16 => half::bf16::from_bits(1).to_f32(),
    }
}

/// An integer of at most 2^24 as F32.
#[expect(
    clippy::cast_precision_loss,
    reason = "codes and zero points have at most 9 bits"
)]
fn exact_f32(n: i32) -> f32 {
    n as f32
}

/// The nearest integer, ties to even; NaN gives 0, as torch's conversion on x86 does after its wrap to 8 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a rounded value; the cast saturates"
)]
fn nearest_i32(value: f32) -> i32 {
    value.round_ties_even() as i32
}
