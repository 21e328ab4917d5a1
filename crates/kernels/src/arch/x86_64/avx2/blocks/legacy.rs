//! Types with blocks of 32 elements: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `IQ4_NL`, `MXFP4`.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_ps, _mm256_and_si256, _mm256_andnot_si256, _mm256_cmpeq_epi8,
    _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setr_epi8, _mm256_shuffle_epi8,
};

use super::super::formula::F32;
use super::super::lanes::load;
use super::runs::{Values, calculate, let_down, lowered, nibbles_of_16, ordered, sixteen, widened};
use super::{SIGNED, UNSIGNED, each, half, piece};
use crate::BlockFormat;
use crate::blocks::{E2M1_DOUBLED, IQ4_NL, half_e8m0};

#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_0<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    four_bits::<FLOAT, STREAM>(BlockFormat::Q4_0, &SIGNED, blocks, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn iq4_nl<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    four_bits::<FLOAT, STREAM>(BlockFormat::Iq4Nl, &IQ4_NL, blocks, out);
}

/// `value * d`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn four_bits<const FLOAT: usize, const STREAM: bool>(
    format: BlockFormat,
    values: &[i8; 16],
    blocks: &[u8],
    out: &mut [u8],
) {
    let values = Values::new(values);
    each::<18, FLOAT>(format, &[0], blocks, out, |block, out| {
        let scale = lowered(half(block, 0));
        let codes = nibbles_of_16::<FLOAT>(&piece(block, 2));
        let result = |value| _mm256_mul_ps(value, scale);
        sixteen::<FLOAT, STREAM>(&values, codes, result, out);
    });
}

/// `code * d + m`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_1<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&UNSIGNED);
    each::<20, FLOAT>(BlockFormat::Q4_1, &[0, 2], blocks, out, |block, out| {
        let (scale, min) = (lowered(half(block, 0)), widened(half(block, 2)));
        let codes = nibbles_of_16::<FLOAT>(&piece(block, 4));
        let result = |value| _mm256_add_ps(_mm256_mul_ps(value, scale), min);
        sixteen::<FLOAT, STREAM>(&values, codes, result, out);
    });
}

/// `(code - 16) * d`: where the fifth bit is clear, the bits of -16 stand above the nibble.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q5_0<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    each::<22, FLOAT>(BlockFormat::Q5_0, &[0], blocks, out, |block, out| {
        let scale = lowered(half(block, 0));
        let high = fifth_bits::<FLOAT>(piece(block, 2));
        let minus = _mm256_andnot_si256(high, _mm256_set1_epi8(-16));
        let integers = _mm256_or_si256(nibbles_of_16::<FLOAT>(&piece(block, 6)), minus);
        calculate::<FLOAT, STREAM>(integers, |_, value| _mm256_mul_ps(value, scale), out);
    });
}

/// `code * d + m`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q5_1<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    each::<24, FLOAT>(BlockFormat::Q5_1, &[0, 2], blocks, out, |block, out| {
        let (scale, min) = (lowered(half(block, 0)), widened(half(block, 2)));
        let high = fifth_bits::<FLOAT>(piece(block, 4));
        let plus = _mm256_and_si256(high, _mm256_set1_epi8(16));
        let integers = _mm256_or_si256(nibbles_of_16::<FLOAT>(&piece(block, 8)), plus);
        let result = |value| _mm256_add_ps(_mm256_mul_ps(value, scale), min);
        calculate::<FLOAT, STREAM>(integers, |_, value| result(value), out);
    });
}

/// `value * d`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q8_0<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    each::<34, FLOAT>(BlockFormat::Q8_0, &[0], blocks, out, |block, out| {
        let scale = lowered(half(block, 0));
        let integers = ordered::<FLOAT>(load(&piece(block, 2)));
        calculate::<FLOAT, STREAM>(integers, |_, value| _mm256_mul_ps(value, scale), out);
    });
}

/// `value * 2^(e - 128)`. The scale may be subnormal, so that it cannot be lowered; no scale gives a NaN.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn mxfp4<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&E2M1_DOUBLED);
    each::<17, FLOAT>(BlockFormat::Mxfp4, &[], blocks, out, |block, out| {
        let scale = _mm256_set1_ps(half_e8m0(block[0]));
        let codes = nibbles_of_16::<FLOAT>(&piece(block, 1));
        let result = |value: __m256| _mm256_mul_ps(let_down(value), scale);
        sixteen::<FLOAT, STREAM>(&values, codes, result, out);
    });
}

/// All ones in the bytes of the elements whose bit in a 32-bit word is set, ordered.
#[target_feature(enable = "avx2")]
#[inline]
fn fifth_bits<const FLOAT: usize>(word: [u8; 4]) -> __m256i {
    let word = _mm256_set1_epi32(i32::from_le_bytes(word));
    let (bytes, bits) = if FLOAT == F32 {
        (
            _mm256_setr_epi8(
                0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, //
                0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
            ),
            _mm256_setr_epi8(
                1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, //
                16, 32, 64, -128, 16, 32, 64, -128, 16, 32, 64, -128, 16, 32, 64, -128,
            ),
        )
    } else {
        (
            _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, //
                1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3,
            ),
            _mm256_setr_epi8(
                1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128, //
                1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128,
            ),
        )
    };
    let spread = _mm256_and_si256(_mm256_shuffle_epi8(word, bytes), bits);
    _mm256_cmpeq_epi8(spread, bits)
}
