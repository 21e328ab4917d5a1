//! NVIDIA `ModelOpt`: clauses 60-65.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::{Code, Granularity};

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, SuperScaleKind, divided, kind, power};
use super::numbers::{e4m3, exact_f32, float_scale, stored_positive};
use super::{Found, Group, IntegerRange, Reference, Sight, Symmetry, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Wanted { scheme, source, .. } = wanted;
    match (scheme.code, kind(scheme)) {
        (
            _,
            Some(Kind::Nvfp4 {
                above: SuperScaleKind::Multiply,
            }),
        ) => found(Nvfp4),
        (_, Some(Kind::Mx { format, bytes })) => found(Mx { format, bytes }),
        (_, Some(Kind::Dense { format, scale })) => found(Float8 {
            format,
            scale,
            // A scale of no dimension does not widen the quotient, others do.
            arith: match scheme.granularity {
                Granularity::Tensor => source,
                Granularity::Channel
                | Granularity::Group { .. }
                | Granularity::IndexedGroup { .. }
                | Granularity::Block { .. }
                | Granularity::Flat { .. }
                | Granularity::Strided { .. } => Float::F32,
            },
        }),
        (Code::Integer { bits, .. }, _) => {
            let range = IntegerRange::new(bits, scheme.zero_point)?;
            if range.symmetry == Symmetry::Asymmetric {
                return unsupported("ModelOpt's integers are symmetric");
            }
            found(Integer {
                range,
                scale: float_scale(scheme)?,
            })
        }
        _ => unsupported("ModelOpt has no such scheme"),
    }
}

/// F32 throughout.
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
        let exact = group.amax() / (6.0 * above);
        let scale = e4m3(if exact == 0.0 { 1.0 } else { exact });
        let divisor = scale * above;
        if divisor == 0.0 {
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        let coder = CodeRule::E2M1 {
            rule: E2M1Rule::EvenPlusZero,
            arith: Float::F32,
            divisor,
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
        // What divides is the power itself, whatever a reader makes of byte 0.
        let divisor = E8M0Rule::Ocp.decode(byte);
        let rule = E2M1Rule::TowardZeroMinusZero;
        Ok(Choice::scaled(
            scale,
            divided(self.format, rule, Float::F32, divisor),
        ))
    }
}

#[derive(Debug)]
struct Float8 {
    format: Minifloat,
    scale: Float,
    arith: Float,
}

impl Reference for Float8 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let amax = group.amax();
        let exact = if amax > 0.0 {
            amax / self.format.max_finite()
        } else {
            1.0
        };
        let scale = stored_positive(self.scale, exact)?;
        let coder = CodeRule::Divided {
            arith: self.arith,
            format: self.format,
            divisor: scale,
        };
        Ok(Choice::scaled(scale, coder))
    }
}

/// The scale is a tensor of as many dimensions as the weight, and widens the quotient to F32.
#[derive(Debug)]
struct Integer {
    range: IntegerRange,
    scale: Float,
}

impl Reference for Integer {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (min, max) = (-self.range.middle(), self.range.middle() - 1);
        let amax = group.amax();
        let exact = if amax > 0.0 {
            amax / exact_f32(max)
        } else {
            1.0
        };
        let scale = stored_positive(self.scale, exact)?;
        Ok(Choice {
            scale,
            zero: -min,
            offset: 0.0,
            coder: CodeRule::Integer {
                arith: Float::F32,
                divisor: scale,
                zero: 0,
                min,
                max,
            },
        })
    }
}
