//! transformers' `Fp8Quantize`: clauses 30-35.

use safequant_kernels::{Float, Minifloat};

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, kind};
use super::numbers::{smallest_positive, stored};
use super::{Found, Group, Reference, Sight, Wanted, found, unsupported};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    match kind(wanted.scheme) {
        Some(Kind::Dense { format, scale }) => found(FineGrained { format, scale }),
        Some(Kind::Nvfp4 { .. } | Kind::Mx { .. }) | None => {
            unsupported("the rule of fine-grained FP8 has no such scheme")
        }
    }
}

#[derive(Debug)]
struct FineGrained {
    format: Minifloat,
    scale: Float,
}

impl Reference for FineGrained {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    /// In F32: the reference multiplies by the reciprocal under either [`crate::Division`].
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (format, largest) = (self.format, group.amax());
        // torch turns `448.0 / tensor` into `tensor.reciprocal() * 448.0`: two roundings.
        let factor = if largest > 0.0 {
            (1.0 / largest) * format.max_finite()
        } else {
            1.0
        };
        // Below 2^-119 the reference's factor is infinite, and its zeros become NaN: we stop short of that.
        let factor = factor.min(f32::MAX);
        let inverse = 1.0 / factor;
        let scale = stored(self.scale, inverse)?;
        if scale == 0.0 {
            let scale = smallest_positive(self.scale);
            return Ok(Choice::scaled(scale, CodeRule::Constant { code: 0 }));
        }
        // As the reference does where it stores a rounded scale: what divides is the reciprocal of what is stored.
        let factor = if scale.to_bits() == inverse.to_bits() {
            factor
        } else {
            1.0 / scale
        };
        let coder = CodeRule::Multiplied {
            arith: Float::F32,
            format,
            factor,
        };
        Ok(Choice::scaled(scale, coder))
    }
}
