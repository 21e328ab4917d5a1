//! `GPTQModel`: clauses 20-27, in F32.

use safequant_kernels::Float;
use safequant_schemes::Code;

use super::choice::{Choice, CodeRule};
use super::numbers::{
    exact_f32, float_scale, nearest_i32, smallest_positive, stored, stored_positive,
};
use super::{Found, Group, IntegerRange, Reference, Symmetry, Wanted, found, unsupported};
use crate::Division;

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Code::Integer { bits, encoding: _ } = wanted.scheme.code else {
        return unsupported("the rule of GPTQ has no float codes");
    };
    found(Gptq {
        range: IntegerRange::new(bits, wanted.scheme.zero_point)?,
        scale: float_scale(wanted.scheme)?,
        source: wanted.source,
        division: wanted.division,
    })
}

#[derive(Debug)]
struct Gptq {
    range: IntegerRange,
    scale: Float,
    source: Float,
    division: Division,
}

impl Reference for Gptq {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (mut low, mut high) = group.with_zero();
        let range = self.range;
        if range.symmetry == Symmetry::Symmetric {
            high = high.max(-low);
            low = if low < 0.0 { -high } else { low };
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        let exact = (high - low) / exact_f32(range.max());
        match self.division {
            Division::SourceDtype => {
                let scale = stored(self.scale, exact)?;
                Ok(self.tools_bytes(low, exact, scale))
            }
            Division::F32 => {
                let scale = stored_positive(self.scale, exact)?;
                let zero = self.zero(low, scale);
                let coder = self.coder(scale, zero);
                Ok(with_zero(scale, zero, coder))
            }
        }
    }
}

fn with_zero(scale: f32, zero: i32, coder: CodeRule) -> Choice {
    Choice {
        scale,
        zero,
        offset: 0.0,
        coder,
    }
}

impl Gptq {
    /// Codes from the scale before it was stored, recalculated by the packer from the rounded weight.
    fn tools_bytes(&self, low: f32, exact: f32, scale: f32) -> Choice {
        let max = self.range.max();
        if exact == 0.0 {
            let zero = self.range.middle();
            let code = u8::try_from(zero).unwrap_or(u8::MAX);
            return with_zero(scale, zero, CodeRule::Constant { code });
        }
        let zero = self.zero(low, exact);
        let coder = if self.packer_may_change_a_code(exact, max) {
            CodeRule::Repacked {
                source: self.source,
                arith: Float::F32,
                divisor: exact,
                zero,
                max,
            }
        } else {
            self.coder(exact, zero)
        };
        with_zero(scale, zero, coder)
    }

    /// Whether the packer's detour over the rounded weight (clause 25) can end at another code: only if that rounding can
    /// reach half a step. A code is at most `max` steps from zero, so its rounding is at most `max / 256` steps in BF16
    /// (a half for 8 bits, reached in practice) and `max / 2048` in F16, until subnormals are all that is left.
    fn packer_may_change_a_code(&self, scale: f32, max: i32) -> bool {
        (self.source == Float::Bf16 && max > 127) || scale < 4.0 * smallest_positive(self.source)
    }

    /// `clamp(rne(value / divisor) + zero, 0, max)`, which is rounding with the limits moved instead of the value.
    fn coder(&self, divisor: f32, zero: i32) -> CodeRule {
        CodeRule::Integer {
            arith: Float::F32,
            divisor,
            zero: 0,
            min: -zero,
            max: self.range.max() - zero,
        }
    }

    fn zero(&self, low: f32, scale: f32) -> i32 {
        match self.range.symmetry {
            Symmetry::Symmetric => self.range.middle(),
            Symmetry::Asymmetric => {
                nearest_i32((-low / scale).clamp(0.0, exact_f32(self.range.max())))
            }
        }
    }
}
