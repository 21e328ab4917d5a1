//! Codes of small floats: `portable::minifloat` in lanes, saturating, NaN as torch has it.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_EQ_OQ, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_epi8, _mm256_castsi256_ps, _mm256_cmp_ps,
    _mm256_cmpeq_epi32, _mm256_cmpgt_epi32, _mm256_max_epi32, _mm256_min_epi32, _mm256_or_si256,
    _mm256_set1_epi32, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_srl_epi32,
    _mm256_srli_epi32, _mm256_sub_epi32,
};

use super::super::lanes::nan_lanes;
use super::lanes::bits;
use crate::minifloat::Layout;
use crate::{Minifloat, NanRule, OverflowRule};

/// A format that has a code of minus zero, and its NaN.
#[derive(Clone, Copy)]
pub(super) struct Small {
    layout: Layout,
    nan: i32,
}

impl Small {
    const fn of(format: Minifloat, layout: Layout) -> Self {
        let codes = format.special_codes(OverflowRule::Saturate, NanRule::Torch);
        // The NaN with the other sign differs in the sign alone: the formats of `new` are those of which this holds.
        Self {
            layout,
            nan: codes.nan_positive as i32,
        }
    }

    /// `None` for formats that no tool quantizes to on the machines with this instruction set.
    pub(super) const fn new(format: Minifloat) -> Option<Self> {
        Some(Self::of(
            format,
            match format {
                Minifloat::E4M3 => Layout::E4M3,
                Minifloat::E5M2 => Layout::E5M2,
                Minifloat::E2M3 => Layout::E2M3,
                Minifloat::E3M2 => Layout::E3M2,
                Minifloat::E2M1 => Layout::E2M1,
                Minifloat::E4M3Fnuz | Minifloat::E5M2Fnuz | Minifloat::E8M0 => return None,
            },
        ))
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn vectors(self) -> Vectors {
        let Layout {
            mantissa_bits: m,
            bias,
            max_code,
            ..
        } = self.layout;
        let shift = 23 - m;
        let splat = |n: u32| _mm256_set1_epi32(n.cast_signed());
        let sign = self.layout.bits() - 1;
        Vectors {
            shift: _mm_cvtsi32_si128(shift.cast_signed()),
            half: splat((1 << (shift - 1)) - 1),
            exponent: splat((127 - bias) << m),
            unit: splat((127 + 1 + shift - bias) << 23),
            smallest_normal: splat((127 + 1 - bias) << 23),
            largest: splat(max_code.into()),
            nan: _mm256_set1_epi32(self.nan),
            sign_shift: _mm_cvtsi32_si128(31 - sign.cast_signed()),
            sign: splat(1 << sign),
        }
    }
}

/// What a format is in lanes.
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    shift: __m128i,
    half: __m256i,
    exponent: __m256i,
    unit: __m256i,
    smallest_normal: __m256i,
    largest: __m256i,
    nan: __m256i,
    sign_shift: __m128i,
    sign: __m256i,
}

impl Vectors {
    /// `portable::minifloat::encode`: see there for how normal and subnormal results are rounded.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn codes(&self, v: __m256) -> __m256i {
        let magnitude = magnitude(v);
        let odd = _mm256_and_si256(
            _mm256_srl_epi32(magnitude, self.shift),
            _mm256_set1_epi32(1),
        );
        let rounded = _mm256_add_epi32(_mm256_add_epi32(magnitude, self.half), odd);
        let normal = _mm256_sub_epi32(_mm256_srl_epi32(rounded, self.shift), self.exponent);
        let sum = _mm256_add_ps(
            _mm256_castsi256_ps(magnitude),
            _mm256_castsi256_ps(self.unit),
        );
        let subnormal = _mm256_sub_epi32(bits(sum), self.unit);
        let is_subnormal = _mm256_cmpgt_epi32(self.smallest_normal, magnitude);
        let code = _mm256_blendv_epi8(normal, subnormal, is_subnormal);
        let code = _mm256_min_epi32(code, self.largest);
        let is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f80_0000));
        let code = _mm256_blendv_epi8(code, self.nan, is_nan);
        let sign = _mm256_and_si256(_mm256_srl_epi32(bits(v), self.sign_shift), self.sign);
        _mm256_or_si256(code, sign)
    }
}

/// A format with a code for each byte but its sign, whose NaN has all the bits of its largest code.
#[derive(Clone, Copy)]
pub(super) struct EightBits {
    layout: Layout,
    largest: f32,
    nan: u8,
}

impl EightBits {
    /// `None` for every other format.
    pub(super) const fn new(format: Minifloat) -> Option<Self> {
        let layout = match format {
            Minifloat::E4M3 => Layout::E4M3,
            Minifloat::E5M2 => Layout::E5M2,
            Minifloat::E2M3
            | Minifloat::E3M2
            | Minifloat::E2M1
            | Minifloat::E4M3Fnuz
            | Minifloat::E5M2Fnuz
            | Minifloat::E8M0 => return None,
        };
        let codes = format.special_codes(OverflowRule::Saturate, NanRule::Torch);
        assert!(layout.max_code | codes.nan_positive == codes.nan_positive);
        Some(Self {
            layout,
            largest: format.max_finite(),
            nan: codes.nan_positive,
        })
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn vectors(self) -> EightBitVectors {
        let Layout {
            mantissa_bits: m,
            bias,
            ..
        } = self.layout;
        let splat = |n: u32| _mm256_set1_epi32(n.cast_signed());
        EightBitVectors {
            largest: splat(self.largest.to_bits()),
            smallest_normal: splat((127 + 1 - bias) << 23),
            unit: splat((23 - m) << 23),
            shift: _mm_cvtsi32_si128((23 - m).cast_signed()),
            nan: splat(self.nan.into()),
        }
    }
}

/// What such a format is in lanes.
#[derive(Clone, Copy)]
pub(super) struct EightBitVectors {
    largest: __m256i,
    smallest_normal: __m256i,
    unit: __m256i,
    shift: __m128i,
    nan: __m256i,
}

impl EightBitVectors {
    /// Codes of magnitudes: `portable::minifloat::encode` without the sign.
    ///
    /// To the magnitude the power of two is added whose last place is that of the result. What the sum has more than the
    /// power counts these places: from 0 for subnormal results, from the implicit bit for normal ones, and above lie all
    /// codes of smaller exponents.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn magnitude(&self, v: __m256) -> __m256i {
        // Above the largest lie infinity, which becomes it, and NaN.
        let clamped = _mm256_min_epi32(magnitude(v), self.largest);
        let exponent = _mm256_and_si256(clamped, _mm256_set1_epi32(0x7f80_0000));
        let exponent = _mm256_max_epi32(exponent, self.smallest_normal);
        let unit = _mm256_add_epi32(exponent, self.unit);
        let sum = _mm256_add_ps(_mm256_castsi256_ps(clamped), _mm256_castsi256_ps(unit));
        let places = _mm256_sub_epi32(bits(sum), unit);
        let below = _mm256_srl_epi32(_mm256_sub_epi32(exponent, self.smallest_normal), self.shift);
        let code = _mm256_add_epi32(places, below);
        _mm256_or_si256(code, _mm256_and_si256(nan_lanes(v), self.nan))
    }
}

/// [`EightBitVectors::magnitude`] of E2M1, whose largest code is also that of a NaN.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn e2m1_magnitude(v: __m256) -> __m256i {
    let splat = |n: u32| _mm256_set1_epi32(n.cast_signed());
    let clamped = _mm256_min_epi32(magnitude(v), splat(6.0_f32.to_bits()));
    let exponent = _mm256_and_si256(clamped, splat(0x7f80_0000));
    let exponent = _mm256_max_epi32(exponent, splat(127 << 23));
    let unit = _mm256_add_epi32(exponent, splat(22 << 23));
    let sum = _mm256_add_ps(_mm256_castsi256_ps(clamped), _mm256_castsi256_ps(unit));
    let places = _mm256_sub_epi32(bits(sum), unit);
    let below = _mm256_srli_epi32::<22>(_mm256_sub_epi32(exponent, splat(127 << 23)));
    _mm256_add_epi32(places, below)
}

/// [`Vectors::codes`] of E2M1, with its numbers as constants: groups of 16 values do not pay for preparing them. The largest
/// code is also that of a NaN.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn e2m1_even(v: __m256) -> __m256i {
    const SHIFT: i32 = 22;
    let magnitude = magnitude(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<SHIFT>(magnitude), _mm256_set1_epi32(1));
    let half = _mm256_set1_epi32((1 << (SHIFT - 1)) - 1);
    let rounded = _mm256_add_epi32(_mm256_add_epi32(magnitude, half), odd);
    let normal = _mm256_sub_epi32(
        _mm256_srli_epi32::<SHIFT>(rounded),
        _mm256_set1_epi32(126 << 1),
    );
    // The last place of 2^22 is a half, the smallest subnormal.
    let unit = _mm256_set1_epi32(4_194_304.0_f32.to_bits().cast_signed());
    let sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(unit));
    let subnormal = _mm256_sub_epi32(bits(sum), unit);
    let one = _mm256_set1_epi32(1.0_f32.to_bits().cast_signed());
    let code = _mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(one, magnitude));
    let code = _mm256_min_epi32(code, _mm256_set1_epi32(7));
    _mm256_or_si256(code, sign_of_four_bits(v))
}

/// The sign as the highest of four bits.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sign_of_four_bits(v: __m256) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi32::<28>(bits(v)), _mm256_set1_epi32(8))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn magnitude(v: __m256) -> __m256i {
    _mm256_and_si256(bits(v), _mm256_set1_epi32(0x7fff_ffff))
}

/// All ones in the lanes that are a zero of either sign.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn zero_lanes(v: __m256) -> __m256i {
    bits(_mm256_cmp_ps::<_CMP_EQ_OQ>(v, _mm256_setzero_ps()))
}

/// E2M1 magnitudes with ties toward zero, and the same with their signs.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn toward_zero(v: __m256) -> (__m256i, __m256i) {
    let magnitude = magnitude(v);
    let mut code = _mm256_set1_epi32(0);
    for bound in [0.25_f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
        let bound = _mm256_set1_epi32(bound.to_bits().cast_signed());
        // A mask is -1.
        code = _mm256_sub_epi32(code, _mm256_cmpgt_epi32(magnitude, bound));
    }
    (code, _mm256_or_si256(code, sign_of_four_bits(v)))
}

/// [`crate::E2M1Rule::TowardZeroMinusZero`] in lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn toward_zero_minus_zero(v: __m256) -> __m256i {
    let minus = _mm256_and_si256(zero_lanes(v), _mm256_set1_epi32(8));
    _mm256_or_si256(toward_zero(v).1, minus)
}

/// [`crate::E2M1Rule::TowardZeroUnsigned`] in lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn toward_zero_unsigned(v: __m256) -> __m256i {
    let (magnitude, signed) = toward_zero(v);
    let is_zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
    _mm256_andnot_si256(is_zero, signed)
}
