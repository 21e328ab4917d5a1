//! optimum-quanto: clauses 120-122, in the weight's dtype.

use safequant_kernels::{Float, Minifloat};
use safequant_schemes::{Code, OffsetForm, ZeroPoint};

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, kind};
use super::numbers::{exact_f32, float_scale, smallest_positive, stored, stored_positive};
use super::{Found, Group, IntegerRange, Reference, Sight, Symmetry, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Wanted { scheme, source, .. } = wanted;
    match (scheme.code, scheme.zero_point, kind(scheme)) {
        (
            Code::Integer { bits, .. },
            ZeroPoint::Offset {
                zero: 0,
                form: OffsetForm::Subtracted,
            },
            _,
        ) => found(Shifted {
            bits,
            scale: float_scale(scheme)?,
            source,
        }),
        (Code::Integer { bits, .. }, zero_point, _) => {
            let range = IntegerRange::new(bits, zero_point)?;
            if range.symmetry == Symmetry::Asymmetric {
                return unsupported("quanto's shifts are floats");
            }
            found(Symmetric {
                range,
                scale: float_scale(scheme)?,
                source,
            })
        }
        (_, _, Some(Kind::Dense { format, scale })) => found(Float8 {
            format,
            scale,
            source,
        }),
        _ => unsupported("quanto has no such scheme"),
    }
}

/// `MaxOptimizer`: a scale and a shift for each group.
#[derive(Debug)]
struct Shifted {
    bits: u32,
    scale: Float,
    source: Float,
}

impl Reference for Shifted {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (t, max) = (self.source, (1 << self.bits) - 1);
        let exact = t.nearest(t.nearest(group.high - group.low) / exact_f32(max));
        // A group of equal values has the scale 0, as the tool stores it: all of it is in the shift.
        let offset = -group.low;
        Ok(Choice {
            scale: stored(self.scale, exact)?,
            zero: 0,
            offset: self.scale.nearest(offset),
            coder: CodeRule::Shifted {
                arith: t,
                offset,
                divisor: exact,
                max,
            },
        })
    }
}

#[derive(Debug)]
struct Symmetric {
    range: IntegerRange,
    scale: Float,
    source: Float,
}

impl Reference for Symmetric {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (min, max) = (-self.range.middle(), self.range.middle() - 1);
        let exact = self.source.nearest(group.amax() / exact_f32(max));
        let coder = if exact == 0.0 {
            let code = u8::try_from(-min).unwrap_or(u8::MAX);
            CodeRule::Constant { code }
        } else {
            CodeRule::Integer {
                arith: self.source,
                divisor: exact,
                zero: 0,
                min,
                max,
            }
        };
        Ok(Choice {
            scale: stored(self.scale, exact)?,
            zero: -min,
            offset: 0.0,
            coder,
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
            arith: self.source,
            format: self.format,
            divisor: exact,
        };
        Ok(Choice::scaled(scale, coder))
    }
}
