//! What tables of sixteen results are made of: values, and the planes that their bytes stand in ([`super::batch`] calculates
//! them, [`super::sixteen`] looks codes up). A *plane* holds one byte of each result, because `vpshufb` looks up bytes.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_and_si256, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi16, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_srli_epi16,
};

use crate::Float;
use crate::rows::{CodeMeaning, CodedRows, Formula};

/// The planes of a group, each in both halves of its register, or of two groups, one in each half. Results of two bytes
/// have two planes; the others are the same again.
pub(super) type Planes = [__m256i; 4];

/// Sixteen values, or results.
#[derive(Clone, Copy)]
pub(super) struct Sixteen(pub(super) __m256, pub(super) __m256);

/// The values of sixteen codes before zero point and formula.
pub(super) fn values(meaning: CodeMeaning<'_>) -> [f32; 16] {
    std::array::from_fn(|code| match meaning {
        CodeMeaning::Integer { flip, zero: _ } => f32::from(code as u8 ^ flip),
        CodeMeaning::Minifloat(format) => format.table()[code],
        CodeMeaning::Table16(table) => table[code],
    })
}

/// Whether results are products and nothing else.
pub(super) fn is_plain(rows: &CodedRows<'_>) -> bool {
    matches!(rows.formula, Formula::Product) && rows.first_rounded_to == Float::F32
}

/// Low bytes of sixteen words in the lower half, their high bytes in the upper.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn planes_of_words(words: __m256i) -> __m256i {
    let low = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
    let high = _mm256_srli_epi16::<8>(words);
    // Quarters: low 0..7, high 0..7 | low 8..15, high 8..15.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(low, high))
}

/// The bytes of eight lanes of 32 bits, by their place in a lane: 0 and 1 in the lower half of each half, 2 and 3 in the
/// upper.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn by_byte(lanes: __m256i) -> __m256i {
    let order = _mm256_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    );
    _mm256_shuffle_epi8(lanes, order)
}
