//! `AutoAWQ`'s `pseudo_quantize_tensor` and packer: clauses 70-73. The search for channel factors is not part of it.

use safequant_kernels::Float;
use safequant_schemes::{Code, Granularity};

use super::choice::{Choice, CodeRule};
use super::numbers::{exact_f32, float_scale, nearest_i32, stored_positive};
use super::{Found, Group, IntegerRange, Reference, Symmetry, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Code::Integer { bits, encoding: _ } = wanted.scheme.code else {
        return unsupported("the rule of AWQ has no float codes");
    };
    match wanted.scheme.granularity {
        Granularity::Group { .. } | Granularity::Channel => {}
        Granularity::Tensor
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => return unsupported("AWQ has groups of input features"),
    }
    found(Awq {
        range: IntegerRange::new(bits, wanted.scheme.zero_point)?,
        scale: float_scale(wanted.scheme)?,
        source: wanted.source,
    })
}

#[derive(Debug)]
struct Awq {
    range: IntegerRange,
    scale: Float,
    source: Float,
}

impl Reference for Awq {
    /// In the weight's dtype. The extremes need not include 0.
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (t, range) = (self.source, self.range);
        let max = exact_f32(range.max());
        let floor = t.nearest(1e-5);
        let (exact, zero) = match range.symmetry {
            Symmetry::Asymmetric => {
                let width = t.nearest(group.high - group.low).max(floor);
                let scale = t.nearest(width / max);
                let zero = nearest_i32((-t.nearest(group.low / scale)).clamp(-1e6, 1e6));
                (scale, zero.clamp(0, range.max()))
            }
            Symmetry::Symmetric => {
                let largest = exact_f32(range.middle() - 1);
                (t.nearest(group.amax().max(floor) / largest), range.middle())
            }
        };
        let scale = stored_positive(self.scale, exact)?;
        Ok(Choice {
            scale,
            zero,
            offset: 0.0,
            coder: CodeRule::Repacked {
                source: t,
                arith: t,
                divisor: exact,
                zero,
                max: range.max(),
            },
        })
    }
}
