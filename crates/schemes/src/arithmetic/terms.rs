//! Terms of a formula beside codes and scales: super-scales, offsets, zero points as products.

use safequant_kernels::Float;

use crate::{OffsetForm, SuperScale};

/// Applies a super-scale to the scales that have it.
pub(super) fn apply_super(
    kind: SuperScale,
    factor: f32,
    round: impl Fn(f32) -> f32,
    scales: &mut [f32],
) {
    match kind {
        SuperScale::None | SuperScale::Channel => {}
        SuperScale::Multiply => {
            let factor = round(factor);
            for scale in scales {
                *scale = round(*scale * factor);
            }
        }
        SuperScale::Divide => {
            for scale in scales {
                *scale /= factor;
            }
        }
        SuperScale::Nested { size: _, offset } => {
            for scale in scales {
                *scale = *scale * factor + offset;
            }
        }
        SuperScale::Grouped { size: _ } => {
            for scale in scales {
                *scale *= factor;
            }
        }
    }
}

/// What torch on a CPU makes of every NaN, and so what references hold (specs/dtypes/bf16.md).
pub(super) const BF16_NAN: [u8; 2] = [0xff, 0xff];

/// Adds, or subtracts, a float zero point; `values` are the products, or the codes where it comes first.
pub(super) fn add_offset(
    form: OffsetForm,
    offset: f32,
    scale: f32,
    step: Option<Float>,
    values: &mut [f32],
) {
    let round = |value: f32| step.map_or(value, |float| float.nearest(value));
    for value in values {
        *value = match form {
            OffsetForm::BeforeScale => round(*value - offset) * scale,
            OffsetForm::Added => round(*value) + offset,
            OffsetForm::Subtracted => round(*value) - offset,
        };
    }
}

/// `round(-(scale * zero))`: how AWQ `gemv_fast` stores a zero point, and what its kernel adds.
pub(crate) fn negated_product(float: Float, zero: i32, scale: f32) -> f32 {
    // Zero points of at most 8 bits are exact, and so are their products with F16 and BF16 scales.
    let zero = i16::try_from(zero).map_or(f32::NAN, f32::from);
    float.nearest(-(scale * zero))
}
