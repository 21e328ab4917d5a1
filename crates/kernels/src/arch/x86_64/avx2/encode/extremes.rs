//! Smallest and largest values of groups, on the bits.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi128_si32, _mm_min_epu16, _mm_minpos_epu16, _mm_set1_epi16, _mm_xor_si128,
    _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_max_epi16,
    _mm256_max_epi32, _mm256_min_epi16, _mm256_min_epi32, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_srai_epi16, _mm256_srai_epi32, _mm256_xor_si256,
};

use super::super::lanes::{load, store};
use super::lanes::{BF16, F16, F32, bytes_of};
use crate::Float;
use crate::encode::Floats;
use crate::portable::convert::{bf16_to_f32, f16_to_f32};
use crate::portable::scan;

/// See [`crate::portable::encode::extremes`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn extremes(source: Floats<'_>, group: usize, out: &mut [(f32, f32)]) {
    assert!(group > 0, "groups without values");
    let n_groups = source.len().div_ceil(group);
    assert_eq!(out.len(), n_groups, "one entry per group");
    let (float, bytes) = bytes_of(source);
    match float {
        Float::F32 => groups::<F32>(bytes, group.saturating_mul(4), out),
        Float::F16 => groups::<F16>(bytes, group.saturating_mul(2), out),
        Float::Bf16 => groups::<BF16>(bytes, group.saturating_mul(2), out),
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn groups<const KIND: u8>(bytes: &[u8], group: usize, out: &mut [(f32, f32)]) {
    for (group, out) in bytes.chunks(group).zip(out) {
        *out = one::<KIND>(group);
    }
}

/// The extremes of a group that is not empty.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn one<const KIND: u8>(bytes: &[u8]) -> (f32, f32) {
    let (vectors, rest) = bytes.as_chunks::<32>();
    let Some(first) = vectors.first() else {
        return few::<KIND>(rest);
    };
    let start = ordered::<KIND>(load(first));
    let (mut low, mut high) = ([start; 2], [start; 2]);
    let (pairs, odd) = vectors.as_chunks::<2>();
    for pair in pairs {
        for (lane, vector) in pair.iter().enumerate() {
            let v = ordered::<KIND>(load(vector));
            low[lane] = min::<KIND>(low[lane], v);
            high[lane] = max::<KIND>(high[lane], v);
        }
    }
    for vector in odd {
        let v = ordered::<KIND>(load(vector));
        low[0] = min::<KIND>(low[0], v);
        high[0] = max::<KIND>(high[0], v);
    }
    let low = min::<KIND>(low[0], low[1]);
    let high = max::<KIND>(high[0], high[1]);
    let ends = if KIND == F32 {
        (smallest32(low), largest32(high))
    } else {
        (smallest16(low), largest16(high))
    };
    let whole = (value::<KIND>(ends.0), value::<KIND>(ends.1));
    if rest.is_empty() && !whole.0.is_nan() && !whole.1.is_nan() {
        // Plus zero, whatever the sign.
        return (whole.0 + 0.0, whole.1 + 0.0);
    }
    let tail = if rest.is_empty() {
        whole
    } else {
        few::<KIND>(rest)
    };
    scan::min_max(&[whole.0, whole.1, tail.0, tail.1])
}

/// Less than a vector of values.
fn few<const KIND: u8>(bytes: &[u8]) -> (f32, f32) {
    let mut values = [0.0; 16];
    let size = if KIND == F32 { 4 } else { 2 };
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size)) {
        *value = match *bytes {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if KIND == F16 => f16_to_f32(u16::from_le_bytes([a, b])),
            [a, b] => bf16_to_f32(u16::from_le_bytes([a, b])),
            _ => f32::NAN,
        };
    }
    scan::min_max(&values[..bytes.len() / size])
}

/// Bits of floats to integers of the same order, and back.
#[target_feature(enable = "avx2")]
#[inline]
fn ordered<const KIND: u8>(bits: __m256i) -> __m256i {
    let inverted = if KIND == F32 {
        _mm256_and_si256(
            _mm256_srai_epi32::<31>(bits),
            _mm256_set1_epi32(0x7fff_ffff),
        )
    } else {
        _mm256_and_si256(_mm256_srai_epi16::<15>(bits), _mm256_set1_epi16(0x7fff))
    };
    _mm256_xor_si256(bits, inverted)
}

#[target_feature(enable = "avx2")]
#[inline]
fn min<const KIND: u8>(a: __m256i, b: __m256i) -> __m256i {
    if KIND == F32 {
        _mm256_min_epi32(a, b)
    } else {
        _mm256_min_epi16(a, b)
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn max<const KIND: u8>(a: __m256i, b: __m256i) -> __m256i {
    if KIND == F32 {
        _mm256_max_epi32(a, b)
    } else {
        _mm256_max_epi16(a, b)
    }
}

/// An integer of [`ordered`] as a float.
fn value<const KIND: u8>(ordered: i32) -> f32 {
    if KIND == F32 {
        return f32::from_bits((ordered ^ (ordered >> 31 & 0x7fff_ffff)).cast_unsigned());
    }
    let ordered = ordered as i16;
    let bits = (ordered ^ (ordered >> 15 & 0x7fff)).cast_unsigned();
    if KIND == BF16 {
        bf16_to_f32(bits)
    } else {
        f16_to_f32(bits)
    }
}

/// The smallest signed lane of 16 bits: the instruction for it is unsigned.
#[target_feature(enable = "avx2")]
#[inline]
fn smallest16(v: __m256i) -> i32 {
    let sign = _mm_set1_epi16(i16::MIN);
    let low = _mm_xor_si128(_mm256_castsi256_si128(v), sign);
    let high = _mm_xor_si128(_mm256_extracti128_si256::<1>(v), sign);
    _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_min_epu16(low, high))) ^ 0x8000
}

/// The largest signed lane of 16 bits: the smallest of the complements.
#[target_feature(enable = "avx2")]
#[inline]
fn largest16(v: __m256i) -> i32 {
    let sign = _mm_set1_epi16(i16::MAX);
    let low = _mm_xor_si128(_mm256_castsi256_si128(v), sign);
    let high = _mm_xor_si128(_mm256_extracti128_si256::<1>(v), sign);
    _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_min_epu16(low, high))) ^ 0x7fff
}

#[target_feature(enable = "avx2")]
#[inline]
fn smallest32(v: __m256i) -> i32 {
    lanes32(v).into_iter().fold(i32::MAX, i32::min)
}

#[target_feature(enable = "avx2")]
#[inline]
fn largest32(v: __m256i) -> i32 {
    lanes32(v).into_iter().fold(i32::MIN, i32::max)
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes32(v: __m256i) -> [i32; 8] {
    let mut bytes = [0; 32];
    store(&mut bytes, v);
    std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| bytes[4 * i + j])))
}
