//! The E2M1 encoders of the tools. All of them take the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and saturate; they differ
//! where a value lies halfway between two, and in the sign of zero (nvfp4-mxfp4.md §2, mlx.md §5, gguf.md §5).

use crate::{Minifloat, NanRule, OverflowRule};

/// How a value becomes an E2M1 code.
///
/// | rule | ties | +0.0 | -0.0 | rounds to zero from below |
/// |---|---|---|---|---|
/// | `EvenSigned` | to even: .25 → 0, .75 → 1, 1.75 → 2, 2.5 → 2, 3.5 → 4, 5 → 4 | 0 | 8 | 8 |
/// | `EvenPlusZero` | to even | 0 | 0 | 8 |
/// | `TowardZeroMinusZero` | to the smaller magnitude: .75 → .5, 1.75 → 1.5, 3.5 → 3 | 8 | 8 | 8 |
/// | `TowardZeroUnsigned` | to the smaller magnitude | 0 | 0 | 0 |
///
/// NaN becomes the largest magnitude with its sign: torch has no such cast and the tools' results are accidents. Writers of
/// ours refuse NaN before it gets this far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum E2M1Rule {
    /// `ml_dtypes`, torchao, comfy-kitchen (`NVFP4`), MLX on GPUs: the sign is always kept. [`Minifloat::E2M1`]'s own rule.
    EvenSigned,
    /// compressed-tensors and `ModelOpt` `NVFP4`: minus zero itself becomes plus zero, a small negative value does not.
    EvenPlusZero,
    /// `ModelOpt` `MXFP4`: zero of either sign is coded 8, a small positive value 0.
    TowardZeroMinusZero,
    /// MLX on CPUs, ggml `MXFP4` and `NVFP4`: code 8 never occurs.
    TowardZeroUnsigned,
}

impl E2M1Rule {
    /// Every rule.
    pub const ALL: &'static [E2M1Rule] = &[
        E2M1Rule::EvenSigned,
        E2M1Rule::EvenPlusZero,
        E2M1Rule::TowardZeroMinusZero,
        E2M1Rule::TowardZeroUnsigned,
    ];

    /// The code of a value.
    ///
    /// ```
    /// use safequant_kernels::E2M1Rule;
    /// assert_eq!(E2M1Rule::EvenSigned.encode(-0.75), 0b1010);
    /// assert_eq!(E2M1Rule::TowardZeroUnsigned.encode(-0.75), 0b1001);
    /// ```
    #[inline(always)]
    pub fn encode(self, value: f32) -> u8 {
        match self {
            E2M1Rule::EvenPlusZero if value == 0.0 => 0,
            E2M1Rule::EvenSigned | E2M1Rule::EvenPlusZero => even(value),
            E2M1Rule::TowardZeroMinusZero if value == 0.0 => 8,
            E2M1Rule::TowardZeroMinusZero => toward_zero(value) | sign(value),
            E2M1Rule::TowardZeroUnsigned => match toward_zero(value) {
                0 => 0,
                magnitude => magnitude | sign(value),
            },
        }
    }
}

fn sign(value: f32) -> u8 {
    u8::from(value.is_sign_negative()) << 3
}

fn even(value: f32) -> u8 {
    Minifloat::E2M1.encode(value, OverflowRule::Saturate, NanRule::Torch)
}

/// The midpoints that the magnitude exceeds. NaN exceeds all of them.
fn toward_zero(value: f32) -> u8 {
    // Magnitudes of floats are ordered as their bits are, NaN above infinity.
    let magnitude = value.to_bits() & 0x7fff_ffff;
    [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
        .into_iter()
        .map(|bound| u8::from(magnitude > bound.to_bits()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// nvfp4-mxfp4.md §2 and mlx.md §5: what each tie becomes.
    #[test]
    fn ties_are_those_of_the_tools() {
        let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
        for (rule, expected) in [
            (E2M1Rule::EvenSigned, [0, 2, 2, 4, 4, 6, 6]),
            (E2M1Rule::EvenPlusZero, [0, 2, 2, 4, 4, 6, 6]),
            (E2M1Rule::TowardZeroMinusZero, [0, 1, 2, 3, 4, 5, 6]),
            (E2M1Rule::TowardZeroUnsigned, [0, 1, 2, 3, 4, 5, 6]),
        ] {
            assert_eq!(ties.map(|tie| rule.encode(tie)), expected, "{rule:?}");
            let negative = ties.map(|tie| rule.encode(-tie));
            let unsigned = rule == E2M1Rule::TowardZeroUnsigned;
            let expected = expected.map(|c| if c == 0 && unsigned { 0 } else { c | 8 });
            assert_eq!(negative, expected, "{rule:?}");
        }
    }

    #[test]
    fn zeros_are_those_of_the_tools() {
        for (rule, expected) in [
            (E2M1Rule::EvenSigned, [0, 8, 0, 8]),
            (E2M1Rule::EvenPlusZero, [0, 0, 0, 8]),
            (E2M1Rule::TowardZeroMinusZero, [8, 8, 0, 8]),
            (E2M1Rule::TowardZeroUnsigned, [0, 0, 0, 0]),
        ] {
            assert_eq!(
                [0.0, -0.0, 1e-9, -1e-9].map(|v| rule.encode(v)),
                expected,
                "{rule:?}"
            );
        }
    }

    #[test]
    fn infinity_and_nan_saturate() {
        for &rule in E2M1Rule::ALL {
            for value in [6.1, f32::MAX, f32::INFINITY, f32::NAN.copysign(1.0)] {
                assert_eq!(
                    (rule.encode(value), rule.encode(-value)),
                    (7, 15),
                    "{rule:?} {value}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn the_code_is_a_nearest_one(value in -8f32..8.0, rule in proptest::sample::select(E2M1Rule::ALL)) {
            let distance = |code: u8| (Minifloat::E2M1.decode(code) - value).abs();
            let code = rule.encode(value);
            prop_assert!((0..16).all(|other| distance(code) <= distance(other)));
        }
    }
}
