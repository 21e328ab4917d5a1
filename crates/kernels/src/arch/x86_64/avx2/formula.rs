//! [`Formula`] on eight values, and results to bytes.

use std::arch::x86_64::{
    __m256, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_unpackhi_epi16, _mm_unpacklo_epi16,
    _mm256_add_ps, _mm256_and_si256, _mm256_blend_epi16, _mm256_blendv_epi8, _mm256_castps_si256,
    _mm256_castsi128_si256, _mm256_castsi256_ps, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_div_ps,
    _mm256_inserti128_si256, _mm256_mul_ps, _mm256_or_si256, _mm256_set_m128i, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_srli_epi32, _mm256_sub_ps,
};

use super::lanes::{bf16_no_nan, bf16_one_nan, nan_lanes, round_bf16_upper};
use crate::Float;
use crate::rows::{Entry, Formula};

/// [`Float`] as a constant of a function: the output of its copy.
pub(super) const F32: usize = 0;
/// See [`F32`].
pub(super) const F16: usize = 1;
/// See [`F32`].
pub(super) const BF16: usize = 2;

/// [`Float::nearest`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn nearest(float: Float, v: __m256) -> __m256 {
    match float {
        Float::F32 => v,
        Float::F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)),
        Float::Bf16 => {
            let quiet = _mm256_or_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x0040_0000));
            let bits = _mm256_blendv_epi8(round_bf16_upper(v), quiet, nan_lanes(v));
            _mm256_castsi256_ps(_mm256_and_si256(
                bits,
                _mm256_set1_epi32(0xffff_0000_u32 as i32),
            ))
        }
    }
}

/// The formula of one entry of the grid, then the first rounding.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn apply<const N: usize>(
    formula: Formula<'_>,
    first: Float,
    entry: Entry,
    values: [__m256; N],
) -> [__m256; N] {
    let numbers = (_mm256_set1_ps(entry.scale), _mm256_set1_ps(entry.offset));
    apply_lanes(formula, first, numbers, values)
}

/// The same with a scale and an offset for each lane.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn apply_lanes<const N: usize>(
    formula: Formula<'_>,
    first: Float,
    (scale, offset): (__m256, __m256),
    values: [__m256; N],
) -> [__m256; N] {
    let scaled = |v| _mm256_mul_ps(v, scale);
    let results = match formula {
        Formula::Product => values.map(scaled),
        Formula::Quotient => values.map(|v| _mm256_div_ps(v, scale)),
        Formula::ProductTimes(factor) => {
            let factor = _mm256_set1_ps(factor);
            values.map(|v| _mm256_mul_ps(scaled(v), factor))
        }
        Formula::PlusOffset { step, offsets: _ } => {
            values.map(|v| _mm256_add_ps(nearest(step, scaled(v)), offset))
        }
        Formula::MinusOffset { step, offsets: _ } => {
            values.map(|v| _mm256_sub_ps(nearest(step, scaled(v)), offset))
        }
        Formula::OffsetFirst { step, offsets: _ } => {
            values.map(|v| _mm256_mul_ps(nearest(step, _mm256_sub_ps(v, offset)), scale))
        }
    };
    match first {
        Float::F32 => results,
        Float::F16 | Float::Bf16 => results.map(|v| nearest(first, v)),
    }
}

/// Thirty-two results in a 16-bit output.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn words16<const FLOAT: usize, const MAY_BE_NAN: bool>(
    [a, b, c, d]: [__m256; 4],
) -> [__m256i; 2] {
    match FLOAT {
        F16 => [f16(a, b), f16(c, d)],
        _ if !MAY_BE_NAN => [bf16_no_nan(a, b), bf16_no_nan(c, d)],
        _ => [bf16_one_nan(a, b), bf16_one_nan(c, d)],
    }
}

/// Thirty-two results in F32.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn words32(results: [__m256; 4]) -> [__m256i; 4] {
    results.map(|v| _mm256_castps_si256(v))
}

/// Sixteen values to F16 bits.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn f16(a: __m256, b: __m256) -> __m256i {
    let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
    let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(b);
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
}

/// Sixteen results that are no NaN, rounded to 16 bits: each of `even` before its neighbour in `odd`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn interleaved<const FLOAT: usize>(even: __m256, odd: __m256) -> __m256i {
    if FLOAT == F16 {
        let even = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(even);
        let odd = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(odd);
        return _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
    }
    let low = _mm256_srli_epi32::<16>(round_bf16_upper(even));
    _mm256_blend_epi16::<0b1010_1010>(low, round_bf16_upper(odd))
}

/// Sixteen results in BF16, each of `even` before its neighbour in `odd`; every NaN becomes `FFFF`.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn interleaved_one_nan(even: __m256, odd: __m256) -> __m256i {
    let [even, odd] = [even, odd].map(|v| _mm256_or_si256(round_bf16_upper(v), nan_lanes(v)));
    _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd)
}

/// Bytes of a result.
pub(super) const fn size_of_result<const FLOAT: usize>() -> usize {
    if FLOAT == F32 { 4 } else { 2 }
}
