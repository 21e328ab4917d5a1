//! Tables of E2M1 for [`super::tables`] from two numbers.
//!
//! The magnitudes of E2M1 are 0, 0.5, 1, 1.5, 2, 3, 4 and 6: up to powers of two, 1 and 1.5. Multiplying by a power of two
//! changes the exponent of a product and none of its other bits, as long as everything stays in the normal range: rounding
//! commutes with it. So the rounded `1 * scale` and `1.5 * scale`, here a *pair* in 32 bits, give all sixteen results by an
//! addition to exponents: six instructions for a group, or for two of them. Pairs are calculated for eight groups at once.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_GE_OQ, _CMP_LE_OQ, _MM_FROUND_TO_NEAREST_INT, _mm256_add_epi16,
    _mm256_and_ps, _mm256_and_si256, _mm256_blend_epi16, _mm256_blend_epi32, _mm256_castps_si256,
    _mm256_cmp_ps, _mm256_cvtepu16_epi32, _mm256_cvtps_ph, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi16, _mm256_setr_epi64x,
    _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32,
};

use super::formula::F16;
use super::lanes::{load_ps, round_bf16_upper, store};
use super::tables::Planes;

/// The pairs of a line of the grid: `1 * scale` in the lower half, `1.5 * scale` in the upper, or 0 where a result may leave
/// the normal range, or the scale is not positive.
#[derive(Default)]
pub(super) struct Pairs {
    first: usize,
    pairs: Vec<u32>,
}

impl Pairs {
    /// Calculates those of entries from `first` on.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn turn_to<const FLOAT: usize>(&mut self, first: usize, scales: &[f32]) {
        self.first = first;
        self.pairs.clear();
        let (eights, rest) = scales.as_chunks();
        for eight in eights {
            self.pairs.extend(pairs::<FLOAT>(eight));
        }
        let mut last = [0.0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.pairs.extend(pairs::<FLOAT>(&last));
    }

    #[inline]
    fn pair(&self, entry: usize) -> Option<u32> {
        let pair = *self.pairs.get(entry.wrapping_sub(self.first))?;
        (pair != 0).then_some(pair)
    }

    /// The planes of an entry that has a pair.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn one<const FLOAT: usize>(&self, entry: usize) -> Option<Planes> {
        let pair = splat(self.pair(entry)?);
        Some(planes::<FLOAT>(pair))
    }

    /// The planes of two entries that have pairs, one in each half.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn two<const FLOAT: usize>(&self, entry: usize, second: usize) -> Option<Planes> {
        let (first, second) = (self.pair(entry)?, self.pair(second)?);
        let halves = _mm256_blend_epi32::<0xf0>(splat(first), splat(second));
        Some(planes::<FLOAT>(halves))
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(pair: u32) -> __m256i {
    _mm256_set1_epi32(pair.cast_signed())
}

/// The smallest and the largest scale for which everything from 0.5 to 6 times it is normal.
const fn range<const FLOAT: usize>() -> (f32, f32) {
    const LARGE: f32 = (1u128 << 100) as f32;
    if FLOAT == F16 {
        (1.0 / 8192.0, 8192.0)
    } else {
        (1.0 / LARGE, LARGE)
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn pairs<const FLOAT: usize>(scales: &[f32; 8]) -> [u32; 8] {
    let scale = load_ps(scales);
    let three_halves = _mm256_mul_ps(scale, _mm256_set1_ps(1.5));
    let pairs = if FLOAT == F16 {
        let half =
            |v: __m256| _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        _mm256_or_si256(half(scale), _mm256_slli_epi32::<16>(half(three_halves)))
    } else {
        let one = _mm256_srli_epi32::<16>(round_bf16_upper(scale));
        _mm256_blend_epi16::<0b1010_1010>(one, round_bf16_upper(three_halves))
    };
    let (smallest, largest) = range::<FLOAT>();
    let is_large = _mm256_cmp_ps::<_CMP_GE_OQ>(scale, _mm256_set1_ps(smallest));
    let is_small = _mm256_cmp_ps::<_CMP_LE_OQ>(scale, _mm256_set1_ps(largest));
    let is_normal = _mm256_castps_si256(_mm256_and_ps(is_large, is_small));
    let mut bytes = [0; 32];
    store(&mut bytes, _mm256_and_si256(pairs, is_normal));
    let (lanes, _) = bytes.as_chunks();
    std::array::from_fn(|i| u32::from_le_bytes(lanes[i]))
}

/// The planes of all sixteen codes, from the same pair in all lanes of a half.
#[target_feature(enable = "avx2")]
#[inline]
fn planes<const FLOAT: usize>(pair: __m256i) -> Planes {
    // Words of the magnitudes: 0 (which is in no pair), one, one, three halves, one ...
    let choice = _mm256_setr_epi8(
        -1, -1, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, //
        -1, -1, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,
    );
    // Twice as much in an exponent.
    let t: i16 = if FLOAT == F16 { 1 << 10 } else { 1 << 7 };
    let exponents = _mm256_setr_epi16(
        0,
        -t,
        0,
        0,
        t,
        t,
        2 * t,
        2 * t,
        0,
        -t,
        0,
        0,
        t,
        t,
        2 * t,
        2 * t,
    );
    let words = _mm256_add_epi16(_mm256_shuffle_epi8(pair, choice), exponents);
    let low = _mm256_setr_epi8(
        0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14, //
        0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14,
    );
    let high = _mm256_setr_epi8(
        1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15, //
        1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15,
    );
    // Codes 8 to 15 are the negative ones.
    let signs = _mm256_setr_epi64x(
        0,
        i64::from_ne_bytes([0x80; 8]),
        0,
        i64::from_ne_bytes([0x80; 8]),
    );
    let low = _mm256_shuffle_epi8(words, low);
    let high = _mm256_or_si256(_mm256_shuffle_epi8(words, high), signs);
    [low, high, low, high]
}
