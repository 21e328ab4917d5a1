//! Eight values of a dense float type in, eight codes out; and rounding in between.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_storel_epi64, _mm256_and_si256,
    _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_or_si256, _mm256_packs_epi16,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_packus_epi32, _mm256_permute4x64_epi64,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi16, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi16,
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
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn pack32([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let halves = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
    _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// 16 codes in 32-bit lanes, in order, to bytes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn pack16([a, b]: [__m256i; 2]) -> __m128i {
    _mm256_castsi256_si128(pack32([a, b, a, b]))
}

/// Eight codes in 32-bit lanes to bytes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn store8(out: &mut [u8; 8], codes: __m256i) {
    let bytes = _mm256_castsi256_si128(pack32([codes; 4]));
    // SAFETY: 8 writable bytes; the store needs no alignment.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), bytes) }
}

/// The bits of lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn bits(v: __m256) -> __m256i {
    _mm256_castps_si256(v)
}

/// The first 32 values of `bytes`, in the order that [`in_order`] undoes. A signalling NaN stays one.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn load32<const KIND: u8>(bytes: &[u8]) -> [__m256; 4] {
    let eight = 8 * size_of::<KIND>();
    if KIND != BF16 {
        return four([0, 1, 2, 3], |i| load8::<KIND>(&bytes[i * eight..]));
    }
    // Behind a zero, the bits are those of an F32.
    let zero = _mm256_setzero_si256();
    let vectors = bytes.first_chunk::<64>().expect("32 values").as_chunks().0;
    let (a, b) = (load(&vectors[0]), load(&vectors[1]));
    let halves = [
        _mm256_unpacklo_epi16(zero, a),
        _mm256_unpackhi_epi16(zero, a),
        _mm256_unpacklo_epi16(zero, b),
        _mm256_unpackhi_epi16(zero, b),
    ];
    four(halves, |v| _mm256_castsi256_ps(v))
}

/// Codes of [`load32`]'s values, in 32-bit lanes, to bytes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn together([a, b, c, d]: [__m256i; 4]) -> __m256i {
    _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d))
}

/// What [`together`] gave, with the signs of the values at bit `AT` of each byte.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn signs<const AT: u8>(codes: __m256i, values: [__m256; 4]) -> __m256i {
    let [a, b, c, d] = four(values, |v| bits(v));
    // Saturation keeps signs.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let signs = _mm256_and_si256(bytes, _mm256_set1_epi8(i8::MIN));
    if AT == 7 {
        _mm256_or_si256(codes, signs)
    } else {
        _mm256_or_si256(codes, _mm256_srli_epi16::<4>(signs))
    }
}

/// What [`together`] gave, in the order of the values.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn in_order<const KIND: u8>(codes: __m256i) -> __m256i {
    if KIND == BF16 {
        _mm256_permute4x64_epi64::<0b11_01_10_00>(codes)
    } else {
        _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// [`nearest`] of what was calculated from values of `KIND` and numbers without a payload: a NaN of BF16 has none that a
/// rounding could carry into its sign.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn nearest_no_payload<const KIND: u8, const ARITH: u8>(v: __m256) -> __m256 {
    if KIND == BF16 && ARITH == BF16 {
        let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        _mm256_castsi256_ps(_mm256_and_si256(round_bf16_upper(v), upper))
    } else {
        nearest::<ARITH>(v)
    }
}

/// `array::map`, which is compiled without these instructions: no function that uses them can be inlined there, and vectors
/// would pass through memory.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn four<A: Copy, B>([a, b, c, d]: [A; 4], of: impl Fn(A) -> B) -> [B; 4] {
    [of(a), of(b), of(c), of(d)]
}
