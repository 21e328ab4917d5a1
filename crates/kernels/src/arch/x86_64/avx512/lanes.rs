//! Loads and stores of whole vectors by array reference, so that no other module handles pointers.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_loadu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi8, _mm512_storeu_si512,
    _mm512_stream_si512,
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Up to 64 bytes; zero behind them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn load_some(bytes: &[u8]) -> __m512i {
    let missing = 64 - bytes.len().min(64);
    let mask = u64::MAX.checked_shr(missing as u32).unwrap_or(0);
    // SAFETY: the mask has a bit for each of the slice's bytes, at most; what it leaves out is not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn load_ps(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 readable floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn store(out: &mut [u8; 64], vector: __m512i) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), vector) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn store32(out: &mut [u8; 32], vector: __m256i) {
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), vector) }
}

/// Stores a whole line past the caches where `STREAM` says so and the address allows it; then the caller orders the store
/// with [`super::stream::fence`] before anyone else sees the memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn put<const STREAM: bool>(out: &mut [u8; 64], vector: __m512i) {
    let to: *mut __m512i = out.as_mut_ptr().cast();
    if STREAM && to.is_aligned() {
        // SAFETY: 64 writable bytes at a multiple of 64. All callers are below `rows::decode`, which ends with the fence.
        unsafe { _mm512_stream_si512(to, vector) }
    } else {
        store(out, vector);
    }
}
