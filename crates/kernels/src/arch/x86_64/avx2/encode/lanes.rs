//! Eight values of a dense float type in, eight codes out; and rounding in between.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_storel_epi64, _mm256_and_si256,
    _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_packus_epi16,
    _mm256_packus_epi32, _mm256_permutevar8x32_epi32, _mm256_set1_epi32, _mm256_setr_epi32,
    _mm256_slli_epi32,
};

use super::super::lanes::{load, load16, nan_lanes, round_bf16_upper};
use crate::Float;
use crate::encode::Floats;

/// The dense float types, as constants of functions.
pub(super) const F32: u8 = Float::F32 as u8;
/// See [`F32`].
pub(super) const F16: u8 = Float::F16 as u8;
/// See [`F32`].
pub(super) const BF16: u8 = Float::Bf16 as u8;

/// Bytes of an element.
pub(super) const fn size_of<const KIND: u8>() -> usize {
    if KIND == F32 { 4 } else { 2 }
}

/// The type and the bytes.
pub(super) fn bytes_of(source: Floats<'_>) -> (Float, &[u8]) {
    match source {
        Floats::F32(values) => {
            // SAFETY: initialized memory of as many bytes, borrowed as long; bytes have no alignment.
            let bytes = unsafe {
                std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values))
            };
            (Float::F32, bytes)
        }
        Floats::Bytes(float, bytes) => (float, bytes),
    }
}

/// The first eight values of `bytes`. A signalling NaN stays one.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn load8<const KIND: u8>(bytes: &[u8]) -> __m256 {
    if KIND == F32 {
        return _mm256_castsi256_ps(load(bytes.first_chunk().expect("eight values")));
    }
    let halves = load16(bytes.first_chunk().expect("eight values"));
    if KIND == F16 {
        _mm256_cvtph_ps(halves)
    } else {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

/// [`Float::nearest`] of lanes; of a NaN some NaN of its sign.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn nearest<const KIND: u8>(v: __m256) -> __m256 {
    if KIND == F32 {
        v
    } else if KIND == F16 {
        _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
    } else {
        let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let rounded = _mm256_and_si256(round_bf16_upper(v), upper);
        // The addition may carry a NaN's payload into its sign.
        _mm256_castsi256_ps(_mm256_blendv_epi8(rounded, bits(v), nan_lanes(v)))
    }
}

/// 32 codes in 32-bit lanes, in order, to bytes; what is negative becomes 0.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pack32([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let halves = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
    _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// 16 codes in 32-bit lanes, in order, to bytes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pack16([a, b]: [__m256i; 2]) -> __m128i {
    _mm256_castsi256_si128(pack32([a, b, a, b]))
}

/// Eight codes in 32-bit lanes to bytes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store8(out: &mut [u8; 8], codes: __m256i) {
    let bytes = _mm256_castsi256_si128(pack32([codes; 4]));
    // SAFETY: 8 writable bytes; the store needs no alignment.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), bytes) }
}

/// The bits of lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bits(v: __m256) -> __m256i {
    _mm256_castps_si256(v)
}
