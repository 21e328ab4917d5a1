//! Sixteen results of a group as planes in registers: what [`super::transposed`] looks codes up in. See [`super::batch`] for
//! several groups of a row.
//!
//! They are calculated with the portable operations in the portable order. Results stand in *planes*, one for each of
//! their bytes, because `vpshufb` looks up bytes; each plane lies in both halves of a register.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_ps, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castps_si256, _mm256_mul_ps, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi16, _mm256_set1_ps, _mm256_setr_epi8,
    _mm256_setr_epi32, _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_sub_ps,
    _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
};

use super::formula::{F16, F32, apply, f16};
use super::lanes::{bf16_one_nan, load_ps, load16, round_bf16_upper, store};
use crate::Float;
use crate::rows::{CodeMeaning, CodedRows, Formula, Zeros};

/// Bytes of the planes of a group, each of them once: 16 for each byte of a result.
pub(super) const fn table_len<const FLOAT: usize>() -> usize {
    if FLOAT == F32 { 64 } else { 32 }
}

/// The planes of a group, each in both halves of its register, or of two groups, one in each half. Results of two bytes
/// have two planes; the others are the same again.
pub(super) type Planes = [__m256i; 4];

/// What makes the tables of all groups of a matrix.
pub(super) struct Tables<'a> {
    rows: &'a CodedRows<'a>,
    /// Before any zero point.
    values: Sixteen,
    /// Less a zero point that is the same everywhere.
    less_fixed: Sixteen,
    /// Zero points that are not.
    zeros: &'a [i32],
    /// What is added to products, where that is all.
    offsets: &'a [f32],
    are_values_finite: bool,
    /// Whether results of the row at hand are products, or products and offsets, and none of them is a NaN.
    is_quick: bool,
}

impl<'a> Tables<'a> {
    #[target_feature(enable = "avx2")]
    pub(super) fn new(rows: &'a CodedRows<'a>) -> Self {
        let values = values(rows.value);
        let are_values_finite = values.iter().all(|v| v.is_finite());
        let (fixed, zeros) = match rows.value {
            CodeMeaning::Integer { zero, flip: _ } => match zero {
                Zeros::Fixed(zero) => (zero, [].as_slice()),
                Zeros::Each(zeros) => (0, zeros),
            },
            CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => (0, [].as_slice()),
        };
        let values = sixteen(&values);
        Self {
            rows,
            values,
            less_fixed: less(values, fixed),
            zeros,
            offsets: plain_offsets(rows),
            are_values_finite,
            is_quick: false,
        }
    }

    /// Makes ready for `n_entries` of the grid from `first` on. The check is a fraction of an instruction for an entry; in each
    /// table it would be four.
    #[target_feature(enable = "avx2")]
    pub(super) fn turn_to(&mut self, first: usize, n_entries: usize) {
        let scales = self.rows.grid.scales.get(first..first + n_entries);
        let offsets = self.offsets.get(first..first + n_entries);
        self.is_quick = self.are_values_finite
            && (is_plain(self.rows) || offsets.is_some_and(|offsets| are_finite(offsets)))
            && scales.is_some_and(|scales| are_finite(scales));
    }

    /// The planes of an entry in memory, each of them once.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn put<const FLOAT: usize>(&self, entry: usize, table: &mut [u8]) {
        let planes = match self.quick::<FLOAT>(entry) {
            Some(planes) => planes,
            None => self.of_any::<FLOAT>(entry),
        };
        for (table, planes) in table.as_chunks_mut().0.iter_mut().zip(planes) {
            store(table, planes);
        }
    }

    /// The planes of products, two to a register; of two-byte results both registers hold both.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn quick<const FLOAT: usize>(&self, entry: usize) -> Option<[__m256i; 2]> {
        let scale = *self.rows.grid.scales.get(entry)?;
        if !self.is_quick {
            return None;
        }
        let values = match self.zeros.get(entry) {
            Some(&zero) => less(self.values, zero),
            None => self.less_fixed,
        };
        let products = times(values, scale);
        let results = match self.offsets.get(entry) {
            Some(&offset) => plus(products, offset),
            None => products,
        };
        Some(planes::<FLOAT, false>(results))
    }

    /// The same of any results.
    #[target_feature(enable = "avx2,f16c")]
    #[inline(never)]
    fn of_any<const FLOAT: usize>(&self, entry: usize) -> [__m256i; 2] {
        let entry = self.rows.entry(entry);
        let values = less(self.values, entry.zero);
        let values = [values.0, values.1];
        let rows = self.rows;
        let [low, high] = apply(rows.formula, rows.first_rounded_to, entry, values);
        planes::<FLOAT, true>(Sixteen(low, high))
    }
}

/// The offsets of `value * scale + offset`, with no rounding in between: MLX.
fn plain_offsets<'a>(rows: &CodedRows<'a>) -> &'a [f32] {
    match rows.formula {
        Formula::PlusOffset {
            offsets,
            step: Float::F32,
        } if rows.first_rounded_to == Float::F32 => offsets,
        Formula::Product
        | Formula::Quotient
        | Formula::ProductTimes(_)
        | Formula::PlusOffset { .. }
        | Formula::MinusOffset { .. }
        | Formula::OffsetFirst { .. } => &[],
    }
}

/// Without a way out halfway, so that it is vectorized.
#[target_feature(enable = "avx2")]
fn are_finite(scales: &[f32]) -> bool {
    let largest = scales
        .iter()
        .fold(0, |largest, s| largest.max(s.to_bits() & 0x7fff_ffff));
    largest < f32::INFINITY.to_bits()
}

/// The planes that [`Tables::put`] wrote, each in both halves.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn planes_at<const FLOAT: usize>(table: &[u8]) -> Planes {
    let (planes, _) = table[..table_len::<FLOAT>()].as_chunks::<16>();
    let plane = |at: usize| _mm256_broadcastsi128_si256(load16(&planes[at]));
    if FLOAT == F32 {
        [plane(0), plane(1), plane(2), plane(3)]
    } else {
        let (low, high) = (plane(0), plane(1));
        [low, high, low, high]
    }
}

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

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sixteen(values: &[f32; 16]) -> Sixteen {
    let (vectors, _) = values.as_chunks();
    Sixteen(load_ps(&vectors[0]), load_ps(&vectors[1]))
}

#[target_feature(enable = "avx2")]
#[inline]
fn less(values: Sixteen, zero: i32) -> Sixteen {
    let zero = _mm256_set1_ps(zero as f32);
    Sixteen(_mm256_sub_ps(values.0, zero), _mm256_sub_ps(values.1, zero))
}

#[target_feature(enable = "avx2")]
#[inline]
fn plus(values: Sixteen, offset: f32) -> Sixteen {
    let offset = _mm256_set1_ps(offset);
    Sixteen(
        _mm256_add_ps(values.0, offset),
        _mm256_add_ps(values.1, offset),
    )
}

#[target_feature(enable = "avx2")]
#[inline]
fn times(values: Sixteen, scale: f32) -> Sixteen {
    let scale = _mm256_set1_ps(scale);
    Sixteen(
        _mm256_mul_ps(values.0, scale),
        _mm256_mul_ps(values.1, scale),
    )
}

/// Rounds sixteen results to the output, as planes: two to a register.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn planes<const FLOAT: usize, const MAY_BE_NAN: bool>(results: Sixteen) -> [__m256i; 2] {
    match FLOAT {
        F32 => planes_of_four([results.0, results.1].map(|v| _mm256_castps_si256(v))),
        F16 => [planes_of_words(f16(results.0, results.1)); 2],
        _ if MAY_BE_NAN => [planes_of_words(bf16_one_nan(results.0, results.1)); 2],
        // The upper two bytes of rounded F32 bits are the last two planes.
        _ => [upper_planes([results.0, results.1].map(|v| round_bf16_upper(v))); 2],
    }
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

/// Two planes whose pieces of four bytes are in the order 0, 2, 0, 2 | 1, 3, 1, 3.
#[target_feature(enable = "avx2")]
#[inline]
fn sort_pieces(planes: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(planes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// The four planes of sixteen lanes of four bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn planes_of_four(lanes: [__m256i; 2]) -> [__m256i; 2] {
    let [low, high] = lanes.map(|lanes| by_byte(lanes));
    [
        sort_pieces(_mm256_unpacklo_epi32(low, high)),
        sort_pieces(_mm256_unpackhi_epi32(low, high)),
    ]
}

/// The last two of them.
#[target_feature(enable = "avx2")]
#[inline]
fn upper_planes(lanes: [__m256i; 2]) -> __m256i {
    let [low, high] = lanes.map(|lanes| by_byte(lanes));
    sort_pieces(_mm256_unpackhi_epi32(low, high))
}
