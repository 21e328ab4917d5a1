//! Loads and stores of whole vectors by array reference, so that no other module handles pointers; and the few
//! combinations of instructions that several modules share.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_UNORD_Q, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch,
    _mm_storeu_si128, _mm_stream_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256,
    _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_extracti128_si256, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_or_si256, _mm256_packus_epi32, _mm256_permute4x64_epi64,
    _mm256_set1_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm256_stream_si256,
};

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// How far ahead of what is decoded the stored bytes are asked for. The processor looks ahead by itself, but not beyond a
/// page, and computing fills its window with other work.
const AHEAD: usize = 2048;

/// Asks for bytes that lie [`AHEAD`] of these. Beyond the end of the slice it asks in vain.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn prefetch_ahead(bytes: *const u8) {
    prefetch_at(bytes, AHEAD);
}

/// Asks for bytes that lie so far behind these, inside the slice or not.
#[allow(
    unused_unsafe,
    reason = "the intrinsic became safe after our oldest compiler"
)]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn prefetch_at(bytes: *const u8, ahead: usize) {
    // SAFETY: a prefetch reads nothing and takes any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(ahead).cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store(out: &mut [u8; 32], vector: __m256i) {
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), vector) }
}

/// Stores past the caches where `STREAM` says so and the address allows it, at multiples of 16 in two halves (allocators
/// give no more); then the caller orders the store with [`super::stream::fence`] before anyone else sees the memory.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn put<const STREAM: bool>(out: &mut [u8; 32], vector: __m256i) {
    let to: *mut __m256i = out.as_mut_ptr().cast();
    let [first, second]: [*mut __m128i; 2] = [to.cast(), to.cast::<__m128i>().wrapping_add(1)];
    if STREAM && to.is_aligned() {
        // SAFETY: 32 writable bytes at a multiple of 32. Callers are below `rows::decode`, `blocks::decode` and
        // `encode::packed::encode`, which end with the fence.
        unsafe { _mm256_stream_si256(to, vector) }
    } else if STREAM && first.is_aligned() {
        let upper = _mm256_extracti128_si256::<1>(vector);
        // SAFETY: twice 16 writable bytes at multiples of 16. Callers are below `rows::decode` and `blocks::decode`,
        // which end with the fence.
        unsafe {
            _mm_stream_si128(first, _mm256_castsi256_si128(vector));
            _mm_stream_si128(second, upper);
        }
    } else {
        store(out, vector);
    }
}

/// [`put`] of half a vector.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn put16<const STREAM: bool>(out: &mut [u8; 16], vector: __m128i) {
    let to: *mut __m128i = out.as_mut_ptr().cast();
    if STREAM && to.is_aligned() {
        // SAFETY: 16 writable bytes at a multiple of 16. Callers are below `encode::packed::encode`, which ends with the
        // fence.
        unsafe { _mm_stream_si128(to, vector) }
    } else {
        store16(out, vector);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store16(out: &mut [u8; 16], vector: __m128i) {
    // SAFETY: 16 writable bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), vector) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_ps(values: &[f32; 8]) -> __m256 {
    // SAFETY: 8 readable floats; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_i32(numbers: &[i32; 8]) -> __m256i {
    // SAFETY: 8 readable integers; the load needs no alignment.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_ps(out: &mut [f32; 8], vector: __m256) {
    // SAFETY: 8 writable floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), vector) }
}

/// All ones in the lanes that are NaN.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nan_lanes(v: __m256) -> __m256i {
    _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v))
}

/// `portable::convert::nearest_bf16` of lanes that are no NaN, as bits in the upper half of each lane; the lower half is
/// rubbish.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn round_bf16_upper(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let bias = _mm256_set1_epi32(0x7fff);
    _mm256_add_epi32(_mm256_add_epi32(bits, bias), odd)
}

/// Two vectors of 32-bit lanes below 2^16 to one of 16-bit lanes, in order.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn narrow(a: __m256i, b: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b))
}

/// Sixteen values that are no NaN to BF16 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bf16_no_nan(a: __m256, b: __m256) -> __m256i {
    let round = |v| _mm256_srli_epi32::<16>(round_bf16_upper(v));
    narrow(round(a), round(b))
}

/// Sixteen values to BF16 bits; every NaN becomes `FFFF`.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bf16_one_nan(a: __m256, b: __m256) -> __m256i {
    let round = |v| {
        let rounded = _mm256_srli_epi32::<16>(round_bf16_upper(v));
        let nan = _mm256_srli_epi32::<16>(nan_lanes(v));
        _mm256_or_si256(rounded, nan)
    };
    narrow(round(a), round(b))
}
