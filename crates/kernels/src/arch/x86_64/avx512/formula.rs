//! [`Formula`] on sixteen values, and results to bytes.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi256_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtph_ps,
    _mm512_cvtps_ph, _mm512_div_ps, _mm512_inserti64x4, _mm512_mask_mov_epi32, _mm512_mul_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_srli_epi32, _mm512_sub_ps,
};

use crate::Float;
use crate::rows::{CodedRows, Entry, Formula};

/// [`Float`] as a constant of a function: the output of its copy.
pub(super) const F32: usize = 0;
/// See [`F32`].
pub(super) const F16: usize = 1;
/// See [`F32`].
pub(super) const BF16: usize = 2;

/// Bytes of a result.
pub(super) const fn size_of_result<const FLOAT: usize>() -> usize {
    if FLOAT == F32 { 4 } else { 2 }
}

/// Whether results are products and nothing else.
pub(super) fn is_plain(rows: &CodedRows<'_>) -> bool {
    matches!(rows.formula, Formula::Product) && rows.first_rounded_to == Float::F32
}

/// F32 bits rounded to BF16 in the upper half of each lane, if they are no NaN; the lower half is rubbish.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn round_bf16_upper(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let bias = _mm512_set1_epi32(0x7fff);
    _mm512_add_epi32(_mm512_add_epi32(bits, bias), odd)
}

/// [`Float::nearest`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn nearest(float: Float, v: __m512) -> __m512 {
    match float {
        Float::F32 => v,
        Float::F16 => _mm512_cvtph_ps(f16(v)),
        Float::Bf16 => {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_or_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x0040_0000));
            let bits = _mm512_mask_mov_epi32(round_bf16_upper(v), nan, quiet);
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(bits, upper))
        }
    }
}

/// The formula of one entry of the grid, then the first rounding.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn apply(formula: Formula<'_>, first: Float, entry: Entry, value: __m512) -> __m512 {
    let (scale, offset) = (_mm512_set1_ps(entry.scale), _mm512_set1_ps(entry.offset));
    let scaled = |v| _mm512_mul_ps(v, scale);
    let result = match formula {
        Formula::Product => scaled(value),
        Formula::Quotient => _mm512_div_ps(value, scale),
        Formula::ProductTimes(factor) => _mm512_mul_ps(scaled(value), _mm512_set1_ps(factor)),
        Formula::PlusOffset { step, offsets: _ } => {
            _mm512_add_ps(nearest(step, scaled(value)), offset)
        }
        Formula::MinusOffset { step, offsets: _ } => {
            _mm512_sub_ps(nearest(step, scaled(value)), offset)
        }
        Formula::OffsetFirst { step, offsets: _ } => {
            _mm512_mul_ps(nearest(step, _mm512_sub_ps(value, offset)), scale)
        }
    };
    nearest(first, result)
}

/// Sixteen results in a 16-bit output. Every NaN is FFFF in BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn words<const FLOAT: usize>(v: __m512) -> __m256i {
    if FLOAT == F16 {
        return f16(v);
    }
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    let bits = _mm512_mask_mov_epi32(round_bf16_upper(v), nan, _mm512_set1_epi32(-1));
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits))
}

/// Thirty-two results in a 16-bit output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn words32<const FLOAT: usize>([a, b]: [__m512; 2]) -> __m512i {
    let low = _mm512_castsi256_si512(words::<FLOAT>(a));
    _mm512_inserti64x4::<1>(low, words::<FLOAT>(b))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn f16(v: __m512) -> __m256i {
    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
}
