//! HQQ without its optimizer (`optimize=False`): clauses 110-112, in F32.

use safequant_kernels::Float;
use safequant_schemes::{Code, Granularity, OffsetForm, ZeroPoint};

use super::choice::{Choice, CodeRule};
use super::numbers::{exact_f32, float_scale, stored};
use super::{Found, Group, Reference, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let scheme = wanted.scheme;
    let (
        Code::Integer { bits, .. },
        ZeroPoint::Offset {
            zero: 0,
            form: OffsetForm::BeforeScale,
        },
    ) = (scheme.code, scheme.zero_point)
    else {
        return unsupported("HQQ has integers with a float zero point before the scale");
    };
    if matches!(scheme.granularity, Granularity::Strided { .. }) {
        return unsupported("HQQ's groups along the first axis are only read");
    }
    found(Hqq {
        bits,
        scale: float_scale(scheme)?,
    })
}

#[derive(Debug)]
struct Hqq {
    bits: u32,
    /// The compute dtype; of scales and zeros.
    scale: Float,
}

impl Reference for Hqq {
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let max = (1 << self.bits) - 1;
        let width = group.high - group.low;
        let factor = if width.abs() <= 1e-4 {
            1.0
        } else {
            // torch turns a number over a tensor into a reciprocal and a product: two roundings.
            (1.0 / width) * exact_f32(max)
        };
        let factor = factor.min(2e4);
        let exact = -group.low * factor;
        // `round_zero` is what its configuration chooses for 4 bits.
        let zero = if self.bits == 4 {
            exact.round_ties_even()
        } else {
            exact
        };
        Ok(Choice {
            scale: stored(self.scale, 1.0 / factor)?,
            zero: 0,
            offset: stored(self.scale, zero)?,
            coder: CodeRule::Product {
                input: Float::F32,
                arith: Float::F32,
                factor,
                offset: zero,
                min: 0,
                max,
            },
        })
    }
}
