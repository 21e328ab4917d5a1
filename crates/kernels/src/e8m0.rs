//! Power-of-two scales: how each tool reads a scale byte, and how it chooses one.
//!
//! All readers agree on the bytes 1 to 254 but for ggml's halved values; they differ in the two at the ends
//! (nvfp4-mxfp4.md §5, comfyui.md §3.5, mlx.md §4, gguf.md §4). The rules by which the writers choose a byte differ for
//! ordinary blocks (nvfp4-mxfp4.md §6, torchao.md §5).

use crate::{Float, Minifloat};

/// What an E8M0 scale byte means.
///
/// | rule | 0 | 1 ..= 254 | 255 |
/// |---|---|---|---|
/// | `Ocp` | 2^-127 | 2^(byte - 127) | NaN |
/// | `TopIsInfinity` | 2^-127 | 2^(byte - 127) | infinity |
/// | `ExponentField` | 0 | 2^(byte - 127) | infinity |
/// | `Half` | 2^-128 | 2^(byte - 128) | 2^127 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum E8M0Rule {
    /// OCP, torch, torchao, GPTQModel.
    Ocp,
    /// MLX, transformers (`exp2`), compressed-tensors' decompressor.
    TopIsInfinity,
    /// The byte is the exponent field of an F32: comfy-kitchen.
    ExponentField,
    /// ggml, whose `MXFP4` table holds doubled values.
    Half,
}

static TABLES: [[f32; 256]; E8M0Rule::ALL.len()] = {
    let mut tables = [[0.0; 256]; E8M0Rule::ALL.len()];
    let mut rule = 0;
    while rule < tables.len() {
        let mut code = 0;
        while code < 256 {
            tables[rule][code] = E8M0Rule::ALL[rule].decode(code as u8);
            code += 1;
        }
        rule += 1;
    }
    tables
};

impl E8M0Rule {
    /// Every rule, in the order of the declaration.
    pub const ALL: &'static [E8M0Rule] = &[
        E8M0Rule::Ocp,
        E8M0Rule::TopIsInfinity,
        E8M0Rule::ExponentField,
        E8M0Rule::Half,
    ];

    /// The value of a byte.
    ///
    /// ```
    /// use safequant_kernels::E8M0Rule;
    /// assert_eq!(E8M0Rule::ExponentField.decode(0), 0.0);
    /// assert_eq!(E8M0Rule::Half.decode(127), 0.5);
    /// ```
    pub const fn decode(self, code: u8) -> f32 {
        let field = f32::from_bits((code as u32) << 23);
        match (self, code) {
            (E8M0Rule::Ocp, _) | (E8M0Rule::TopIsInfinity, 0) => Minifloat::E8M0.decode(code),
            (E8M0Rule::TopIsInfinity | E8M0Rule::ExponentField, _) => field,
            (E8M0Rule::Half, 0 | 1) => f32::from_bits(0x0020_0000 << code),
            (E8M0Rule::Half, _) => f32::from_bits((code as u32 - 1) << 23),
        }
    }

    /// The 256 values, indexed by byte: for [`crate::Backend::dequantize_table`].
    pub fn table(self) -> &'static [f32; 256] {
        &TABLES[self as usize]
    }
}

/// Unsigned E4M3, as ggml reads the scales of `NVFP4` blocks (gguf.md §4): bit 7 is not part of the number, 0 and 7F are 0.
/// (FF is 480, as in ggml's own function; a file with such a byte is malformed.)
pub static UNSIGNED_E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = match code {
            0x7f => 0.0,
            0xff => 480.0,
            _ => Minifloat::E4M3.decode(code as u8 & 0x7f),
        };
        code += 1;
    }
    table
};

/// How a writer chooses the E8M0 byte of a block from its largest magnitude.
///
/// `emax` is the exponent of the element format's largest value (E2M1: 2, E4M3: 8), `max` that value (6, 448).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MxScaleRule {
    /// `floor(log2(amax)) - emax`: OCP, torchao `FLOOR`. The largest value may be clamped.
    Floor,
    /// As `Floor`, after `amax` is rounded to the element's mantissa, halves up: torchao `EVEN`.
    Even,
    /// As `Floor`, after a mantissa of 1.75 or more is rounded up, whatever the element: compressed-tensors. The rule works
    /// on the bits of the weight's dtype, which only shows at the ends of F16: subnormals become 0 or 2^-14, and from
    /// 1.75 * 2^15 on the byte is 255.
    SevenFourths {
        /// The dtype that `amax` has.
        amax: Float,
    },
    /// `ceil(log2(amax)) - emax`: torchao `CEIL`.
    Ceil,
    /// `ceil(log2(amax / max))`, all in F32: torchao `RCEIL`, `ModelOpt`, comfy-kitchen, vLLM. Zero becomes byte 0. See
    /// [`ceil_log2`] on quotients a hair above a power of two.
    CeilQuotient,
    /// As `CeilQuotient`, but zero becomes byte 127, and exponents below -127 wrap around: MLX from 0.32.2 on CPUs.
    CeilQuotientWrapping,
}

impl MxScaleRule {
    /// Every rule.
    pub const ALL: &'static [MxScaleRule] = &[
        MxScaleRule::Floor,
        MxScaleRule::Even,
        MxScaleRule::SevenFourths { amax: Float::F32 },
        MxScaleRule::SevenFourths { amax: Float::F16 },
        MxScaleRule::SevenFourths { amax: Float::Bf16 },
        MxScaleRule::Ceil,
        MxScaleRule::CeilQuotient,
        MxScaleRule::CeilQuotientWrapping,
    ];

    /// The scale byte of a block of `element` whose largest magnitude is `amax`; the sign of `amax` is ignored, NaN becomes
    /// 255, an infinity what the rule makes of it.
    ///
    /// ```
    /// use safequant_kernels::{Minifloat, MxScaleRule};
    /// assert_eq!(MxScaleRule::Floor.encode(Minifloat::E2M1, 7.0), 127);
    /// assert_eq!(MxScaleRule::CeilQuotient.encode(Minifloat::E2M1, 7.0), 128);
    /// ```
    #[inline]
    pub fn encode(self, element: Minifloat, amax: f32) -> u8 {
        let amax = amax.abs();
        if amax.is_nan() {
            return 0xff;
        }
        let bits = amax.to_bits();
        let emax = element.max_finite().to_bits() >> 23;
        // Both are exponent fields: their difference is the exponent, biased by 127 once more.
        let byte =
            |field: u32| (field.cast_signed() - emax.cast_signed() + 127).clamp(0, 255) as u8;
        match self {
            MxScaleRule::Floor => byte(bits >> 23),
            MxScaleRule::Even => byte((bits + half_ulp(element)) >> 23),
            MxScaleRule::SevenFourths { amax: dtype } => match seven_fourths(dtype, bits) {
                0 => 0,
                0xff => 0xff,
                field => byte(field),
            },
            MxScaleRule::Ceil => byte((bits >> 23) + u32::from(bits & 0x7f_ffff > 0)),
            MxScaleRule::CeilQuotient => {
                let quotient = amax / element.max_finite();
                if quotient == 0.0 {
                    0
                } else {
                    (ceil_log2(quotient) + 127).clamp(0, 254) as u8
                }
            }
            MxScaleRule::CeilQuotientWrapping => {
                let quotient = amax / element.max_finite();
                if quotient == 0.0 {
                    127
                } else {
                    (ceil_log2(quotient) + 127) as u8
                }
            }
        }
    }
}

/// Half a unit of the element's last mantissa bit, as bits of an F32.
const fn half_ulp(element: Minifloat) -> u32 {
    let mantissa_bits = match element.layout() {
        Some(layout) => layout.mantissa_bits,
        None => 0,
    };
    1 << (23 - mantissa_bits - 1)
}

/// The exponent field after compressed-tensors' rounding, of a magnitude's bits.
fn seven_fourths(dtype: Float, bits: u32) -> u32 {
    const SMALLEST_F16_FIELD: u32 = 127 - 14;
    const LARGEST_F16_FIELD: u32 = 127 + 15;
    let field = (bits + (1 << 21)) >> 23;
    match dtype {
        // 0.75 * 2^-14 is where the carry reaches the exponent of the smallest normal F16.
        Float::F16 if bits >> 23 < SMALLEST_F16_FIELD => {
            let three_fourths = (SMALLEST_F16_FIELD - 1) << 23 | 1 << 22;
            if bits >= three_fourths {
                SMALLEST_F16_FIELD
            } else {
                0
            }
        }
        // F16 overflows to infinity where F32 does not.
        Float::F16 if field > LARGEST_F16_FIELD => 0xff,
        Float::F32 | Float::F16 | Float::Bf16 => field,
    }
}

/// `ceil(log2(value))` as F32 arithmetic gives it, where the logarithm is rounded before the ceiling is taken: a value that
/// is a hair above a power of two has that power's logarithm.
///
/// With `value = 2^k * (1 + j * 2^-23)` the logarithm is `k + j * 2^-23 / ln 2`, and it rounds to `k` while that is less than
/// half a unit in the last place of `k`. torch (vectorized or not), numpy and glibc all give these values (every `k`, 300
/// values of `j` each). Infinity gives 128.
///
/// # Panics
/// Debug only: if the value is not positive.
pub fn ceil_log2(value: f32) -> i32 {
    debug_assert!(value > 0.0, "only positive values have a logarithm");
    let bits = value.to_bits();
    let (k, j) = if bits >> 23 == 0 {
        // A subnormal: shift the highest bit to where the hidden one would be.
        let shift = bits.leading_zeros().saturating_sub(8);
        (-126 - shift as i32, bits << shift & 0x7f_ffff)
    } else {
        ((bits >> 23) as i32 - 127, bits & 0x7f_ffff)
    };
    k + i32::from(j > largest_hair(k))
}

/// The largest `j` for which the F32 logarithm of `2^k * (1 + j * 2^-23)` is `k`: the whole part of `2^(p - 1) * ln 2`, where
/// `2^p` is the power of two at or below the logarithms that lie just above `k`.
const fn largest_hair(k: i32) -> u32 {
    // Above a negative k the magnitudes are smaller.
    let magnitude = if k < 0 { -k - 1 } else { k };
    match magnitude {
        0..4 => 0,
        4..8 => 1,
        8..16 => 2,
        16..32 => 5,
        32..64 => 11,
        64..128 => 22,
        _ => 44,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_agree_but_for_the_ends_and_ggml() {
        for code in 1..255 {
            let value = 2f32.powi(i32::from(code) - 127);
            for rule in [
                E8M0Rule::Ocp,
                E8M0Rule::TopIsInfinity,
                E8M0Rule::ExponentField,
            ] {
                assert_eq!(rule.decode(code), value, "{rule:?} {code}");
            }
            assert_eq!(E8M0Rule::Half.decode(code), value / 2.0, "{code}");
        }
        let bottom = E8M0Rule::ALL.iter().map(|rule| rule.decode(0));
        let tiny = 2f32.powi(-127);
        assert!(bottom.eq([tiny, tiny, 0.0, tiny / 2.0]));
        assert!(E8M0Rule::Ocp.decode(255).is_nan());
        let top = E8M0Rule::ALL[1..].iter().map(|rule| rule.decode(255));
        assert!(top.eq([f32::INFINITY, f32::INFINITY, 2f32.powi(127)]));
    }

    #[test]
    fn tables_hold_the_values() {
        for (i, &rule) in E8M0Rule::ALL.iter().enumerate() {
            assert_eq!(rule as usize, i);
            for code in 0..=255u8 {
                let (found, expected) = (rule.table()[usize::from(code)], rule.decode(code));
                assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
    }

    #[test]
    fn unsigned_e4m3_has_no_sign_and_no_nan() {
        for (code, &value) in UNSIGNED_E4M3.iter().enumerate() {
            assert!(value.is_sign_positive() && value.is_finite(), "{code:x}");
        }
        assert_eq!(
            [0, 1, 0x38, 0x7e, 0x7f].map(|c: usize| UNSIGNED_E4M3[c]),
            [0.0, 2f32.powi(-9), 1.0, 448.0, 0.0]
        );
    }

    /// nvfp4-mxfp4.md §6, run there for compressed-tensors.
    #[test]
    fn mxfp4_scales_of_the_dossier() {
        let amax = [6.0, 6.01, 7.0, 7.9, 8.0, 3.9, 12.0, 1.0];
        for (rule, expected) in [
            (
                MxScaleRule::SevenFourths { amax: Float::Bf16 },
                [127, 127, 128, 128, 128, 127, 128, 125],
            ),
            (
                MxScaleRule::CeilQuotient,
                [127, 128, 128, 128, 128, 127, 128, 125],
            ),
            (MxScaleRule::Floor, [127, 127, 127, 127, 128, 126, 128, 125]),
            // E2M1 has one mantissa bit: the same as seven fourths.
            (MxScaleRule::Even, [127, 127, 128, 128, 128, 127, 128, 125]),
        ] {
            let found = amax.map(|amax| rule.encode(Minifloat::E2M1, amax));
            assert_eq!(found, expected, "{rule:?}");
        }
    }

    /// nvfp4-mxfp4.md §6: 448 with MXFP8; comfyui.md §11: 500; mlx.md §11: 1.25.
    #[test]
    fn mxfp8_scales_of_the_dossiers() {
        let compressed_tensors = MxScaleRule::SevenFourths { amax: Float::F32 };
        assert_eq!(compressed_tensors.encode(Minifloat::E4M3, 448.0), 128);
        assert_eq!(compressed_tensors.encode(Minifloat::E4M3, 1.55), 119);
        assert_eq!(
            MxScaleRule::CeilQuotient.encode(Minifloat::E4M3, 448.0),
            127
        );
        assert_eq!(
            MxScaleRule::CeilQuotient.encode(Minifloat::E4M3, 500.0),
            128
        );
        assert_eq!(
            MxScaleRule::CeilQuotientWrapping.encode(Minifloat::E4M3, 1.25),
            0x77
        );
        assert_eq!(
            MxScaleRule::CeilQuotientWrapping.encode(Minifloat::E2M1, 1.25),
            0x7d
        );
        // torchao.md §11: a block whose largest value is 6.
        assert_eq!(MxScaleRule::Floor.encode(Minifloat::E2M3, 6.0), 127);
        assert_eq!(MxScaleRule::Floor.encode(Minifloat::E3M2, 6.0), 125);
    }

    #[test]
    fn zero_and_tiny_blocks() {
        let zero = |rule: &MxScaleRule| rule.encode(Minifloat::E2M1, 0.0);
        let zeros: Vec<u8> = MxScaleRule::ALL.iter().map(zero).collect();
        assert_eq!(zeros, [0, 0, 0, 0, 0, 0, 0, 127]);
        // mlx.md §5.
        assert_eq!(
            MxScaleRule::CeilQuotientWrapping.encode(Minifloat::E2M1, 1e-40),
            248
        );
        assert_eq!(MxScaleRule::CeilQuotient.encode(Minifloat::E2M1, 1e-40), 0);
    }

    #[test]
    fn f16_subnormals_are_cleared_or_rounded_up_by_compressed_tensors() {
        let rule = MxScaleRule::SevenFourths { amax: Float::F16 };
        let unit = 2f32.powi(-24);
        assert_eq!(rule.encode(Minifloat::E2M1, 1024.0 * unit), 127 - 14 - 2);
        assert_eq!(rule.encode(Minifloat::E2M1, 768.0 * unit), 127 - 14 - 2);
        assert_eq!(rule.encode(Minifloat::E2M1, 767.0 * unit), 0);
        let wide = MxScaleRule::SevenFourths { amax: Float::F32 };
        assert_eq!(wide.encode(Minifloat::E2M1, 767.0 * unit), 127 - 15 - 2);
    }

    #[test]
    fn nan_is_nan_and_infinity_does_not_panic() {
        for &rule in MxScaleRule::ALL {
            for &element in &[Minifloat::E2M1, Minifloat::E4M3, Minifloat::E5M2] {
                assert_eq!(rule.encode(element, f32::NAN), 255);
                rule.encode(element, f32::INFINITY);
                rule.encode(element, f32::MAX);
            }
        }
    }

    /// The definition: the logarithm, correctly rounded to F32, then the ceiling.
    #[test]
    fn ceil_log2_is_that_of_f32_arithmetic() {
        for k in -149..128 {
            for j in (0..200).chain([1 << 10, 1 << 20, (1 << 23) - 1]) {
                let value = 2f64.powi(k) * (1.0 + f64::from(j) * 2f64.powi(-23));
                let value = value as f32; // subnormals have fewer bits
                let expected = (f64::from(value).log2() as f32).ceil() as i32;
                assert_eq!(ceil_log2(value), expected, "2^{k} + {j}");
            }
        }
        assert_eq!(ceil_log2(f32::INFINITY), 128);
    }
}
