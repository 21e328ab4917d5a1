//! Largest magnitudes of groups, on the bits: a chain of maxima within a group, then a tree of maxima across eight of them
//! that leaves one in each lane.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_max_epi16, _mm_max_epi32, _mm_unpackhi_epi16, _mm_unpackhi_epi32,
    _mm_unpackhi_epi64, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    _mm256_and_si256, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extracti128_si256, _mm256_max_epi16,
    _mm256_max_epi32, _mm256_set_m128i, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_slli_epi32,
};

use super::super::lanes::{load, nan_lanes, prefetch_at, store_ps};
use super::lanes::{BF16, F16, F32, bytes_of, size_of};
use crate::Float;
use crate::encode::Floats;
use crate::portable::encode::assert_groups;

/// See [`crate::portable::encode::magnitudes`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn magnitudes(
    source: Floats<'_>,
    group: usize,
    ahead: usize,
    out: &mut [f32],
) {
    assert_groups(source, group, out.len());
    let (float, bytes) = bytes_of(source);
    match float {
        Float::F32 => groups::<F32>(bytes, group.saturating_mul(4), ahead, out),
        Float::F16 => groups::<F16>(bytes, group.saturating_mul(2), ahead, out),
        Float::Bf16 => groups::<BF16>(bytes, group.saturating_mul(2), ahead, out),
    }
}

/// `group` is in bytes.
#[target_feature(enable = "avx2,f16c")]
fn groups<const KIND: u8>(bytes: &[u8], group: usize, ahead: usize, out: &mut [f32]) {
    // The last group may be shorter, and the last groups fewer.
    let eights = bytes.chunks(group.saturating_mul(8));
    for (out, eight) in out.chunks_mut(8).zip(eights) {
        let (mut found, chunks) = ([0.0; 8], eight.chunks(group));
        let mut lanes = [zero(); 8];
        for (lanes, group) in lanes.iter_mut().zip(chunks) {
            *lanes = one::<KIND>(group, ahead);
        }
        values::<KIND>(&mut found, &lanes);
        out.copy_from_slice(&found[..out.len()]);
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn zero() -> __m128i {
    _mm256_castsi256_si128(_mm256_setzero_si256())
}

/// The largest magnitudes of a group's values, in as many lanes as half a vector has.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn one<const KIND: u8>(bytes: &[u8], ahead: usize) -> __m128i {
    let mut largest = [_mm256_setzero_si256(); 2];
    let (lines, rest) = bytes.as_chunks::<64>();
    for line in lines {
        prefetch_at(line.as_ptr(), ahead);
        for (largest, vector) in largest.iter_mut().zip(line.as_chunks().0) {
            *largest = max::<KIND>(*largest, magnitude::<KIND>(load(vector)));
        }
    }
    let mut largest = max::<KIND>(largest[0], largest[1]);
    let (vectors, rest) = rest.as_chunks::<32>();
    for vector in vectors {
        largest = max::<KIND>(largest, magnitude::<KIND>(load(vector)));
    }
    if !rest.is_empty() {
        let mut last = [0; 32];
        last[..rest.len()].copy_from_slice(rest);
        largest = max::<KIND>(largest, magnitude::<KIND>(load(&last)));
    }
    let (low, high) = (
        _mm256_castsi256_si128(largest),
        _mm256_extracti128_si256::<1>(largest),
    );
    if size_of::<KIND>() == 4 {
        _mm_max_epi32(low, high)
    } else {
        _mm_max_epi16(low, high)
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn magnitude<const KIND: u8>(bits: __m256i) -> __m256i {
    if size_of::<KIND>() == 4 {
        _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff))
    } else {
        _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff))
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn max<const KIND: u8>(a: __m256i, b: __m256i) -> __m256i {
    if size_of::<KIND>() == 4 {
        _mm256_max_epi32(a, b)
    } else {
        _mm256_max_epi16(a, b)
    }
}

/// Of each of eight half vectors the largest lane, as F32; a NaN is the one of [`crate::portable::scan`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn values<const KIND: u8>(out: &mut [f32; 8], lanes: &[__m128i; 8]) {
    let values = if KIND == F32 {
        let (first, last) = lanes.split_at(4);
        _mm256_castsi256_ps(_mm256_set_m128i(four_of_32(last), four_of_32(first)))
    } else {
        let pair = |i: usize| pairs16(lanes[2 * i], lanes[2 * i + 1]);
        let pairs = [pair(0), pair(1), pair(2), pair(3)];
        let fours = [pairs32(pairs[0], pairs[1]), pairs32(pairs[2], pairs[3])];
        let all = _mm_max_epi16(
            _mm_unpacklo_epi64(fours[0], fours[1]),
            _mm_unpackhi_epi64(fours[0], fours[1]),
        );
        if KIND == F16 {
            _mm256_cvtph_ps(all)
        } else {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(all)))
        }
    };
    let nan = _mm256_set1_ps(f32::from_bits(0x7fc0_0000));
    let is_nan = _mm256_castsi256_ps(nan_lanes(values));
    store_ps(out, _mm256_blendv_ps(values, nan, is_nan));
}

/// `a` and `b` in turn: maxima of the lanes that are half of them apart.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn pairs16(a: __m128i, b: __m128i) -> __m128i {
    _mm_max_epi16(_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn pairs32(a: __m128i, b: __m128i) -> __m128i {
    _mm_max_epi16(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn four_of_32(lanes: &[__m128i]) -> __m128i {
    let &[a, b, c, d] = lanes.first_chunk().expect("four half vectors");
    let ab = _mm_max_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let cd = _mm_max_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    _mm_max_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd))
}
