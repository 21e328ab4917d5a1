//! Small floats with small scales, as far as the tools agree.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::{Code, ScaleCoding, Scheme, SuperScale};

use super::choice::CodeRule;

/// What kind of scales stand beside small floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Dense floats.
    Dense { format: Minifloat, scale: Float },
    /// E4M3 scales of E2M1, with or without a scale of scales.
    Nvfp4 { above: SuperScaleKind },
    /// Powers of two.
    Mx { format: Minifloat, bytes: E8M0Rule },
}

/// What stands above E4M3 scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuperScaleKind {
    None,
    Multiply,
    Divide,
}

/// The kind of a scheme with small floats; `None` for what no tool writes.
pub(super) fn kind(scheme: &Scheme) -> Option<Kind> {
    let Code::Minifloat(format) = scheme.code else {
        return None;
    };
    let above = match scheme.super_scale {
        SuperScale::None => SuperScaleKind::None,
        SuperScale::Multiply => SuperScaleKind::Multiply,
        SuperScale::Divide => SuperScaleKind::Divide,
        SuperScale::Nested { .. } | SuperScale::Grouped { .. } | SuperScale::Channel => {
            return None;
        }
    };
    match (format, scheme.scale, above) {
        (Minifloat::E8M0, _, _) => None,
        (format, ScaleCoding::Float(scale), SuperScaleKind::None) => {
            Some(Kind::Dense { format, scale })
        }
        (Minifloat::E2M1, ScaleCoding::Minifloat(Minifloat::E4M3), above) => {
            Some(Kind::Nvfp4 { above })
        }
        (format, ScaleCoding::E8M0(bytes), SuperScaleKind::None) => {
            Some(Kind::Mx { format, bytes })
        }
        _ => None,
    }
}

/// The byte of a power-of-two scale and what it is, as its readers decode it.
///
/// # Errors
/// `amax` over the largest value, if that is beyond every power of two.
pub(super) fn power(
    rule: MxScaleRule,
    bytes: E8M0Rule,
    format: Minifloat,
    amax: f32,
) -> Result<(u8, f32), f32> {
    let byte = rule.encode(format, amax);
    let scale = bytes.decode(byte);
    if byte < 255 && scale.is_finite() {
        Ok((byte, scale))
    } else {
        Err(amax / format.max_finite())
    }
}

/// As [`power`], without a branch: NaN where that refuses.
pub(super) fn power_or_nan(
    rule: MxScaleRule,
    bytes: E8M0Rule,
    format: Minifloat,
    amax: f32,
) -> (u8, f32) {
    let byte = rule.encode(format, amax);
    let scale = bytes.decode(byte);
    (byte, if byte < 255 { scale } else { f32::NAN })
}

/// Codes of `value / divisor`: E2M1 by the tool's rule, all others to the nearest even.
pub(super) fn divided(format: Minifloat, rule: E2M1Rule, arith: Float, divisor: f32) -> CodeRule {
    if format == Minifloat::E2M1 {
        CodeRule::E2M1 {
            rule,
            arith,
            divisor,
        }
    } else {
        CodeRule::Divided {
            arith,
            format,
            divisor,
        }
    }
}
