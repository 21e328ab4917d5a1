//! torchao: clauses 100-106.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::{Code, OffsetForm, ZeroPoint};

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, SuperScaleKind, divided, kind, power};
use super::numbers::{
    e4m3, exact_f32, float_scale, nearest_i32, smallest_normal, smallest_positive, stored,
    stored_positive,
};
use super::{Found, Group, Reference, Sight, Wanted, found, unsupported};

/// The smallest normal E4M3.
const SMALLEST_E4M3: f32 = 0.015_625;

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Wanted { scheme, source, .. } = wanted;
    match (scheme.code, scheme.zero_point, kind(scheme)) {
        (
            Code::Integer { bits: 4, .. },
            ZeroPoint::Offset {
                zero: 8,
                form: OffsetForm::Added,
            },
            _,
        ) => found(Int4 {
            scale: float_scale(scheme)?,
        }),
        (Code::Integer { bits, .. }, ZeroPoint::Fixed(_), _) => found(Integer {
            bits,
            scale: float_scale(scheme)?,
            source,
        }),
        (Code::Integer { bits, .. }, ZeroPoint::Stored(_), _) => found(Asymmetric {
            bits,
            scale: float_scale(scheme)?,
            source,
        }),
        (_, _, Some(Kind::Dense { format, scale })) => found(Float8 {
            format,
            scale,
            source,
        }),
        (_, _, Some(Kind::Mx { format, bytes })) => found(Mx { format, bytes }),
        (
            _,
            _,
            Some(Kind::Nvfp4 {
                above: SuperScaleKind::None | SuperScaleKind::Multiply,
            }),
        ) => found(Nvfp4),
        _ => unsupported("torchao has no such scheme"),
    }
}

/// Symmetric: 8 bits in F32 with F32 scales, fewer bits in the weight's dtype.
#[derive(Debug)]
struct Integer {
    bits: u32,
    scale: Float,
    source: Float,
}

impl Reference for Integer {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let t = self.source;
        let half = 1 << (self.bits - 1);
        let is_wide = self.bits == 8 && self.scale == Float::F32;
        let floor = if is_wide {
            f32::EPSILON
        } else {
            smallest_normal(t)
        };
        let steps = exact_f32((1 << self.bits) - 1) / 2.0;
        let exact = t.nearest(group.amax() / steps).max(floor);
        let scale = stored(self.scale, exact)?;
        let arith = if is_wide { Float::F32 } else { t };
        Ok(Choice {
            scale,
            zero: half,
            offset: 0.0,
            coder: CodeRule::Product {
                input: Float::F32,
                arith,
                factor: arith.nearest(1.0 / exact),
                offset: 0.0,
                min: -half,
                max: half - 1,
            },
        })
    }
}

/// With zero points, in the weight's dtype (`MappingType.ASYMMETRIC`).
#[derive(Debug)]
struct Asymmetric {
    bits: u32,
    scale: Float,
    source: Float,
}

impl Reference for Asymmetric {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let t = self.source;
        let (low, high) = group.with_zero();
        let max = (1 << self.bits) - 1;
        let exact = t.nearest(t.nearest(high - low) / exact_f32(max));
        let exact = exact.max(smallest_normal(t));
        // In the unsigned form; the zero point is added after rounding.
        let zero = (-nearest_i32(t.nearest(low / exact))).clamp(0, max);
        Ok(Choice {
            scale: stored(self.scale, exact)?,
            zero,
            offset: 0.0,
            coder: CodeRule::Product {
                input: Float::F32,
                arith: t,
                factor: t.nearest(1.0 / exact),
                offset: 0.0,
                min: -zero,
                max: max - zero,
            },
        })
    }
}

/// The offset is the value of the middle code.
#[derive(Debug)]
struct Int4 {
    scale: Float,
}

impl Reference for Int4 {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let scale = (group.high - group.low).max(1e-6) / 15.0;
        let offset = group.low + scale * 8.0;
        Ok(Choice {
            scale: stored(self.scale, scale)?,
            zero: 8,
            offset: stored(self.scale, offset)?,
            coder: CodeRule::Shifted {
                arith: Float::F32,
                offset: -group.low,
                divisor: scale,
                max: 15,
            },
        })
    }
}

#[derive(Debug)]
struct Float8 {
    format: Minifloat,
    scale: Float,
    source: Float,
}

impl Reference for Float8 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let exact = self.source.nearest(group.amax() / self.format.max_finite());
        if exact == 0.0 {
            // The tool stores 0 here, and the row becomes NaN.
            let scale = smallest_positive(self.scale);
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        let scale = stored_positive(self.scale, exact)?;
        let coder = CodeRule::Divided {
            arith: Float::F32,
            format: self.format,
            divisor: exact,
        };
        Ok(Choice::scaled(scale, coder))
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
        let (byte, scale) = power(
            MxScaleRule::CeilQuotient,
            self.bytes,
            self.format,
            group.amax(),
        )?;
        // Byte 0 does not scale.
        let divisor = if byte == 0 {
            1.0
        } else {
            E8M0Rule::Ocp.decode(byte)
        };
        let rule = E2M1Rule::EvenSigned;
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

    fn super_scale(&self, extremes: Group) -> Result<f32, f32> {
        let scale = extremes.amax() / (6.0 * 448.0);
        Ok(if scale == 0.0 { 1.0 } else { scale })
    }

    fn choose(&self, group: Group, above: f32) -> Result<Choice, f32> {
        let exact = group.amax() / 6.0 / above;
        let scale = e4m3(exact.clamp(SMALLEST_E4M3, 448.0));
        let factor = (1.0 / above) / scale;
        let coder = CodeRule::Multiplied {
            arith: Float::F32,
            format: Minifloat::E2M1,
            factor: factor.min(f32::MAX),
        };
        Ok(Choice::scaled(scale, coder))
    }
}
