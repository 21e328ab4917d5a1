//! MLX on a CPU: clauses 90-95.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::{Code, OffsetForm, ZeroPoint};

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, SuperScaleKind, divided, kind, power};
use super::numbers::{e4m3, exact_f32, float_scale, stored};
use super::{Found, Group, Reference, Sight, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let scheme = wanted.scheme;
    match (scheme.code, scheme.zero_point, kind(scheme)) {
        (
            Code::Integer { bits, .. },
            ZeroPoint::Offset {
                zero: 0,
                form: OffsetForm::Added,
            },
            _,
        ) => found(Affine {
            bits,
            scale: float_scale(scheme)?,
        }),
        (_, _, Some(Kind::Mx { format, bytes })) => found(Mx { format, bytes }),
        (
            _,
            _,
            Some(Kind::Nvfp4 {
                above: SuperScaleKind::None,
            }),
        ) => found(Nvfp4),
        _ => unsupported("MLX has no such scheme"),
    }
}

/// F32 throughout; negative scales are normal.
#[derive(Debug)]
struct Affine {
    bits: u32,
    scale: Float,
}

impl Reference for Affine {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (low, high) = (group.low, group.high);
        let max = (1 << self.bits) - 1;
        let steps = exact_f32(max);
        let (scale, bias) = if self.bits == 1 {
            ((high - low).max(1e-7), low)
        } else {
            let width = ((high - low) / steps).max(1e-7);
            let from_low = low.abs() > high.abs();
            let scale = if from_low { width } else { -width };
            let edge = if from_low { low } else { high };
            let first = (edge / scale).round_ties_even();
            if first == 0.0 {
                (scale, 0.0)
            } else {
                (edge / first, edge)
            }
        };
        if !(scale.is_finite() && bias.is_finite()) {
            return Err(scale);
        }
        Ok(Choice {
            scale: stored(self.scale, scale)?,
            zero: 0,
            offset: stored(self.scale, bias)?,
            coder: CodeRule::Shifted {
                arith: Float::F32,
                offset: -bias,
                divisor: scale,
                max,
            },
        })
    }
}

#[derive(Debug)]
struct Mx {
    format: Minifloat,
    bytes: E8M0Rule,
}

impl Reference for Mx {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        // Its byte wraps around below 2^-127: such a scale is no scale, so the smallest one is taken.
        let amax = group.amax();
        let rule = if amax / self.format.max_finite() < f32::MIN_POSITIVE && amax > 0.0 {
            MxScaleRule::CeilQuotient
        } else {
            MxScaleRule::CeilQuotientWrapping
        };
        let (_, scale) = power(rule, self.bytes, self.format, amax)?;
        let divisor = if scale == 0.0 { 1.0 } else { scale };
        let rule = E2M1Rule::TowardZeroUnsigned;
        Ok(Choice::scaled(
            scale,
            divided(self.format, rule, Float::F32, divisor),
        ))
    }
}

#[derive(Debug)]
struct Nvfp4;

impl Reference for Nvfp4 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let scale = e4m3(group.amax() / 6.0);
        if scale == 0.0 {
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        let coder = CodeRule::E2M1 {
            rule: E2M1Rule::TowardZeroUnsigned,
            arith: Float::F32,
            divisor: scale,
        };
        Ok(Choice::scaled(scale, coder))
    }
}
