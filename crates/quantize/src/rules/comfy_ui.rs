//! comfy-kitchen: clauses 130-136.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::Code;

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, SuperScaleKind, divided, kind, power};
use super::numbers::{e4m3, float_scale, smallest_normal, smallest_positive, stored};
use super::{
    Chosen, Found, Group, Groups, IntegerRange, Reference, Sight, Symmetry, Wanted, found,
    one_by_one, plainly, unsupported,
};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Wanted { scheme, source, .. } = wanted;
    match (scheme.code, kind(scheme)) {
        (
            Code::Integer {
                bits: bits @ (4 | 8),
                ..
            },
            _,
        ) => {
            let range = IntegerRange::new(bits, scheme.zero_point)?;
            if range.symmetry == Symmetry::Asymmetric {
                return unsupported("comfy-kitchen's integers are symmetric");
            }
            let scale = float_scale(scheme)?;
            if bits == 8 {
                found(Int8 { scale, source })
            } else {
                found(Int4 { scale, source })
            }
        }
        (_, Some(Kind::Dense { format, scale })) => found(Float8 {
            format,
            scale,
            source,
        }),
        (
            _,
            Some(Kind::Nvfp4 {
                above: SuperScaleKind::Multiply,
            }),
        ) => found(Nvfp4 { source }),
        (_, Some(Kind::Mx { format, bytes })) => found(Mx { format, bytes }),
        _ => unsupported("comfy-kitchen has no such scheme"),
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
        let t = self.source;
        let exact = t.nearest(group.amax() / self.format.max_finite());
        let exact = if exact == 0.0 {
            smallest_positive(t)
        } else {
            exact
        };
        let scale = stored(self.scale, exact)?;
        let factor = t.nearest(1.0 / exact);
        if !factor.is_finite() {
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        let coder = CodeRule::Multiplied {
            arith: t,
            format: self.format,
            factor,
        };
        Ok(Choice::scaled(scale, coder))
    }
}

#[derive(Debug)]
struct Int8 {
    scale: Float,
    source: Float,
}

impl Reference for Int8 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let exact = (group.amax() / 127.0).max(1e-30);
        let scale = stored(self.scale, exact)?;
        let divisor = self.source.nearest(exact);
        let divisor = if divisor == 0.0 {
            smallest_normal(self.source)
        } else {
            divisor
        };
        Ok(symmetric(scale, self.source, divisor, -128, 127))
    }
}

/// `convrot_w4a4`: 4 bits, one scale per row.
#[derive(Debug)]
struct Int4 {
    scale: Float,
    source: Float,
}

impl Reference for Int4 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let exact = self.source.nearest(group.amax() / 7.0);
        let exact = if exact == 0.0 {
            smallest_normal(self.source)
        } else {
            exact
        };
        let scale = stored(self.scale, exact)?;
        // The tool clamps to -7; no quotient rounds to -8.
        Ok(symmetric(scale, self.source, exact, -8, 7))
    }
}

fn symmetric(scale: f32, arith: Float, divisor: f32, min: i32, max: i32) -> Choice {
    Choice {
        scale,
        zero: -min,
        offset: 0.0,
        coder: CodeRule::Integer {
            arith,
            divisor,
            zero: 0,
            min,
            max,
        },
    }
}

#[derive(Debug)]
struct Nvfp4 {
    source: Float,
}

impl Reference for Nvfp4 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn super_scale(&self, extremes: Group) -> Result<f32, f32> {
        Ok(self.source.nearest(extremes.amax() / (6.0 * 448.0)))
    }

    fn choose(&self, group: Group, above: f32) -> Result<Choice, f32> {
        let exact = (group.amax() / 6.0) / above;
        let scale = if exact.is_nan() {
            0.0
        } else {
            e4m3(exact.min(448.0))
        };
        let divisor = above * scale;
        if divisor == 0.0 {
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        let coder = CodeRule::E2M1 {
            rule: E2M1Rule::EvenSigned,
            arith: Float::F32,
            divisor,
        };
        Ok(Choice::scaled(scale, coder))
    }

    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        let rule = CodeRule::E2M1 {
            rule: E2M1Rule::EvenSigned,
            arith: Float::F32,
            divisor: 0.0,
        };
        let scales = |magnitude: f32| {
            let scale = e4m3(((magnitude / 6.0) / above).min(448.0));
            (scale, above * scale)
        };
        // Beside a super-scale of 0 every quotient is infinite or NaN, which `min` would hide.
        if above > 0.0 && plainly(groups, chosen, (0, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
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
        let largest = self.format.max_finite();
        if group.amax() == 0.0 {
            let scale = self.bytes.decode(0);
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        // At least 2^-127, which is byte 0.
        let amax = group.amax().max(E8M0Rule::Ocp.decode(0) * largest);
        let (byte, scale) = power(MxScaleRule::CeilQuotient, self.bytes, self.format, amax)?;
        let divisor = E8M0Rule::Ocp.decode(byte);
        let rule = E2M1Rule::EvenSigned;
        Ok(Choice::scaled(
            scale,
            divided(self.format, rule, Float::F32, divisor),
        ))
    }
}
