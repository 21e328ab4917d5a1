//! Tables of some groups at a time, for [`super::sixteen`].
//!
//! Two groups share a register, one in each half: nothing then crosses the halves, which costs two to four times as much as
//! a shuffle within them. The planes of 8 to 32 groups go to L1 and come back by loads that
//! bring them into both halves. They are few enough that the processor calculates the next tables while the stores
//! of the results before wait for memory; the tables of a whole row first was tried and left the memory idle.
//!
//! **By odd numbers.** `m * 2^k * scale` differs from `m * scale` in the exponent alone, as long as everything stays in the
//! normal range: rounding commutes with it. The values of symmetric codes up to four bits and of E2M1 (times two) are
//! zero, or 1, 3, 5, 7 times a power of two, with a sign. So four rounded products, calculated for eight groups at once, and
//! the same four times two, give all sixteen results: bytes are chosen by a shuffle, and powers of four and signs are added to
//! the upper ones. Seven instructions for a group, where sixteen products take nineteen.
//!
//! **By sixteen products** everything else: zero points, offsets, codebooks, F32.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_EQ_OQ, _CMP_GE_OQ, _CMP_LE_OQ, _MM_FROUND_TO_NEAREST_INT,
    _mm256_add_epi8, _mm256_add_epi16, _mm256_add_ps, _mm256_and_ps, _mm256_blend_ps,
    _mm256_broadcastsi128_si256, _mm256_castps_si256, _mm256_cmp_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtps_ph, _mm256_movemask_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_permutevar8x32_ps,
    _mm256_set1_epi16, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_ps,
    _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_sub_ps, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use super::formula::{BF16, F16, F32, apply_lanes, interleaved, interleaved_one_nan};
use super::lanes::{load, load_ps, load16, nan_lanes, prefetch_ahead, round_bf16_upper, store};
use super::tables::{Planes, by_byte, values};
use crate::Float;
use crate::rows::{CodeMeaning, CodedRows, Formula, Zeros};

/// The most groups of a batch.
const MOST: usize = 32;

/// The planes of some groups, plane by plane, and in a plane sixteen bytes for each group.
#[repr(align(32))]
pub(super) struct Batch([[u8; 16 * MOST]; 4]);

impl Batch {
    pub(super) fn new() -> Self {
        Self([[0; 16 * MOST]; 4])
    }

    /// The planes of a group, each in both halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn one<const FLOAT: usize>(&self, group: usize) -> Planes {
        self.planes::<FLOAT>(|planes| {
            let (groups, _) = planes.as_chunks();
            _mm256_broadcastsi128_si256(load16(&groups[group % MOST]))
        })
    }

    /// The planes of an even group and of the one behind it, one in each half.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn two<const FLOAT: usize>(&self, first: usize) -> Planes {
        self.planes::<FLOAT>(|planes| {
            let (pairs, _) = planes.as_chunks();
            load(&pairs[first % MOST / 2])
        })
    }

    #[inline]
    fn planes<const FLOAT: usize>(&self, plane: impl Fn(&[u8; 16 * MOST]) -> __m256i) -> Planes {
        let [first, second, third, fourth] = &self.0;
        let (first, second) = (plane(first), plane(second));
        if FLOAT == F32 {
            [first, second, plane(third), plane(fourth)]
        } else {
            [first, second, first, second]
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn put<const N: usize>(&mut self, pair: usize, planes: [__m256i; N]) {
        for (to, plane) in self.0.iter_mut().zip(planes) {
            store(&mut to.as_chunks_mut().0[pair], plane);
        }
    }
}

/// What a table has for each of its sixteen entries, as constants of functions: a result ([`F32`], [`F16`], [`BF16`]), or
/// the two results of two codes of two bits.
pub(super) const TWO_F16: usize = 3;
/// See [`TWO_F16`].
pub(super) const TWO_BF16: usize = 4;

/// What makes the tables of all groups of a matrix.
pub(super) struct Batches<'a> {
    rows: &'a CodedRows<'a>,
    /// The values of codes, before zero points that differ; those of even codes before those of odd ones, four by four.
    even_odd: [f32; 16],
    /// The same, in order.
    in_order: [f32; 16],
    /// Zero points that differ.
    zeros: &'a [i32],
    /// What is added to products, where that is all.
    offsets: &'a [f32],
    /// Whether results are products, or products and offsets, of finite values.
    is_quick: bool,
    odd: Option<Odd>,
}

impl<'a> Batches<'a> {
    pub(super) fn new(rows: &'a CodedRows<'a>) -> Self {
        let (fixed, zeros) = match rows.value {
            CodeMeaning::Integer { zero, flip: _ } => match zero {
                Zeros::Fixed(zero) => (zero, [].as_slice()),
                Zeros::Each(zeros) => (0, zeros),
            },
            CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => (0, [].as_slice()),
        };
        let in_order = values(rows.value).map(|value| value - fixed as f32);
        let (offsets, is_quick) = match rows.formula {
            Formula::Product => ([].as_slice(), true),
            Formula::PlusOffset {
                offsets,
                step: Float::F32,
            } => (offsets, true),
            Formula::Quotient
            | Formula::ProductTimes(_)
            | Formula::PlusOffset { .. }
            | Formula::MinusOffset { .. }
            | Formula::OffsetFirst { .. } => ([].as_slice(), false),
        };
        let is_quick = is_quick
            && rows.first_rounded_to == Float::F32
            && in_order.iter().all(|v| v.is_finite());
        let n_codes = 1 << rows.codes.layout.packing().bits().min(4);
        let odd = (is_quick && offsets.is_empty() && zeros.is_empty())
            .then(|| Odd::new(rows.value, &in_order[..n_codes]))
            .flatten();
        Self {
            rows,
            even_odd: std::array::from_fn(|i| in_order[i / 8 * 8 + i % 4 * 2 + i / 4 % 2]),
            in_order,
            zeros,
            offsets,
            is_quick,
            odd,
        }
    }

    /// Calculates the tables of `n` entries of the grid from `first` on, a multiple of eight; of those that there are not, some.
    #[target_feature(enable = "avx2,f16c")]
    #[inline(never)]
    pub(super) fn fill<const RESULT: usize>(&self, first: usize, n: usize, batch: &mut Batch) {
        for eight in 0..n / 8 {
            let to = Place {
                batch,
                first: 4 * eight,
            };
            self.fill_eight::<RESULT>(first + 8 * eight, to);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn fill_eight<const RESULT: usize>(&self, first: usize, mut to: Place<'_>) {
        let mut spare = [1.0; 8];
        let scales = eight(self.rows.grid.scales, first, &mut spare);
        match &self.odd {
            Some(odd) if RESULT == F16 && odd.fill::<F16>(scales, &mut to) => return,
            Some(odd) if RESULT == BF16 && odd.fill::<BF16>(scales, &mut to) => return,
            Some(_) | None => {}
        }
        let mut spare = [0; 8];
        let zeros = (!self.zeros.is_empty()).then(|| *eight(self.zeros, first, &mut spare));
        let products = Products {
            values: if RESULT == F16 || RESULT == BF16 {
                &self.even_odd
            } else {
                &self.in_order
            },
            scales,
            zeros: zeros.map(|zeros| zeros.map(|zero| zero as f32)),
        };
        let is_quick = self.is_quick && are_finite(scales);
        if is_quick && self.offsets.is_empty() {
            products.fill::<RESULT, false>(to, |_, scale, values| {
                values.map(|v| _mm256_mul_ps(v, scale))
            });
            return;
        }
        let mut spare = [0.0; 8];
        let offsets = eight(
            self.rows.formula.offsets().unwrap_or_default(),
            first,
            &mut spare,
        );
        if is_quick && are_finite(offsets) {
            products.fill::<RESULT, false>(to, |pair, scale, values| {
                let offset = two(offsets, pair);
                values.map(|v| _mm256_add_ps(_mm256_mul_ps(v, scale), offset))
            });
            return;
        }
        let (formula, rounded) = (self.rows.formula, self.rows.first_rounded_to);
        products.fill::<RESULT, true>(to, |pair, scale, values| {
            apply_lanes(formula, rounded, (scale, two(offsets, pair)), values)
        });
    }
}

/// Where eight groups go in a batch.
struct Place<'a> {
    batch: &'a mut Batch,
    /// The first pair of groups.
    first: usize,
}

impl Place<'_> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn put<const N: usize>(&mut self, pair: usize, planes: [__m256i; N]) {
        self.batch.put((self.first + pair) % (MOST / 2), planes);
    }
}

/// Eight numbers from `first` on, in place if there are so many, or else with those of `spare` behind them; and asks for later ones.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn eight<'a, T: Copy>(
    numbers: &'a [T],
    first: usize,
    spare: &'a mut [T; 8],
) -> &'a [T; 8] {
    let rest = numbers.get(first..).unwrap_or_default();
    prefetch_ahead(rest.as_ptr().cast());
    if let Some(eight) = rest.first_chunk() {
        return eight;
    }
    spare[..rest.len()].copy_from_slice(rest);
    spare
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn are_finite(numbers: &[f32; 8]) -> bool {
    let numbers = load_ps(numbers);
    let zeros = _mm256_sub_ps(numbers, numbers);
    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(zeros, _mm256_setzero_ps())) == 0xff
}

/// Two of eight numbers, one in each half.
#[target_feature(enable = "avx2")]
#[inline]
fn two(numbers: &[f32; 8], pair: usize) -> __m256 {
    let (first, second) = (numbers[2 * pair], numbers[2 * pair + 1]);
    _mm256_blend_ps::<0xf0>(_mm256_set1_ps(first), _mm256_set1_ps(second))
}

/// Sixteen products for each of eight groups.
struct Products<'a> {
    values: &'a [f32; 16],
    scales: &'a [f32; 8],
    zeros: Option<[f32; 8]>,
}

impl Products<'_> {
    /// `results`: of the values of pair `pair` of groups and their scales.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn fill<const RESULT: usize, const MAY_BE_NAN: bool>(
        &self,
        mut to: Place<'_>,
        results: impl Fn(usize, __m256, [__m256; 4]) -> [__m256; 4],
    ) {
        let (quarters, _) = self.values.as_chunks::<4>();
        let values = [0, 1, 2, 3].map(|i| {
            let [a, b, c, d] = quarters[i];
            let both = [a, b, c, d, a, b, c, d];
            load_ps(&both)
        });
        for pair in 0..4 {
            let values = match &self.zeros {
                Some(zeros) => {
                    let zero = two(zeros, pair);
                    values.map(|v| _mm256_sub_ps(v, zero))
                }
                None => values,
            };
            let results = results(pair, two(self.scales, pair), values);
            put_planes::<RESULT, MAY_BE_NAN>(results, pair, &mut to);
        }
    }
}

/// Rounds the results of two groups and writes their planes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn put_planes<const RESULT: usize, const MAY_BE_NAN: bool>(
    results: [__m256; 4],
    pair: usize,
    to: &mut Place<'_>,
) {
    let [a, b, c, d] = results;
    let bytes = |v: __m256| by_byte(_mm256_castps_si256(v));
    match RESULT {
        F32 => {
            let [a, b, c, d] = [bytes(a), bytes(b), bytes(c), bytes(d)];
            let low = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
            let high = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
            let planes = [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ];
            to.put(pair, planes);
        }
        F16 | BF16 => {
            let words = |even, odd| {
                let words = match RESULT {
                    F16 => interleaved::<F16>(even, odd),
                    _ if MAY_BE_NAN => interleaved_one_nan(even, odd),
                    _ => interleaved::<BF16>(even, odd),
                };
                let order = _mm256_setr_epi8(
                    0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, //
                    0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
                );
                _mm256_shuffle_epi8(words, order)
            };
            let (first, second) = (words(a, b), words(c, d));
            let low = _mm256_unpacklo_epi64(first, second);
            to.put(pair, [low, _mm256_unpackhi_epi64(first, second)]);
        }
        _ => to.put(pair, planes_of_two::<RESULT, MAY_BE_NAN>(a)),
    }
}

/// The planes for two codes of two bits, from the results of four codes: the bytes of the first one's, then the second's.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn planes_of_two<const RESULT: usize, const MAY_BE_NAN: bool>(results: __m256) -> [__m256i; 4] {
    // In the upper half of each lane.
    let words = match RESULT {
        TWO_F16 => {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(results);
            _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))
        }
        _ if MAY_BE_NAN => _mm256_or_si256(round_bf16_upper(results), nan_lanes(results)),
        _ => round_bf16_upper(results),
    };
    let choose = |order| _mm256_shuffle_epi8(words, order);
    let one = |a: i8| {
        let (b, c, d) = (a + 4, a + 8, a + 12);
        _mm256_setr_epi8(
            a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d, //
            a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d,
        )
    };
    let other = |a: i8| {
        let (b, c, d) = (a + 4, a + 8, a + 12);
        _mm256_setr_epi8(
            a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d, //
            a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d,
        )
    };
    [
        choose(one(2)),
        choose(one(3)),
        choose(other(2)),
        choose(other(3)),
    ]
}

/// Sixteen values that are zero, or 1, 3, 5, 7 times a power of two, times a unit.
struct Odd {
    /// The values are integers times this.
    unit: f32,
    /// Which byte of the eight words (1, 3, 5, 7, then the same times two) is the lower one of each result; none for zero.
    low: [u8; 16],
    /// The upper one.
    high: [u8; 16],
    /// What the sign and what is left of the power of two, a power of four, add to the upper one: in F16, and in BF16.
    added: [[u8; 16]; 2],
}

/// The largest of those integers.
const LARGEST: f32 = 16.0;

impl Odd {
    /// `values`: of as many codes as there are.
    fn new(meaning: CodeMeaning<'_>, values: &[f32]) -> Option<Self> {
        // E2M1 has halves.
        let unit = match meaning {
            CodeMeaning::Integer { .. } => 1.0,
            CodeMeaning::Minifloat(_) => 0.5,
            CodeMeaning::Table16(_) => return None,
        };
        let mut odd = Self {
            unit,
            low: [0x80; 16],
            high: [0x80; 16],
            added: [[0; 16]; 2],
        };
        for (code, value) in values.iter().enumerate() {
            let magnitude = (value / unit).abs();
            if magnitude > LARGEST || magnitude.fract() != 0.0 {
                return None;
            }
            let sign = if value.is_sign_negative() { 0x80 } else { 0 };
            let magnitude = magnitude as u8;
            if magnitude == 0 {
                odd.added[0][code] = sign;
                odd.added[1][code] = sign;
                continue;
            }
            let twos = magnitude.trailing_zeros() as u8;
            let number = magnitude >> twos;
            if number > 7 {
                return None;
            }
            let word = number / 2 + 4 * (twos % 2);
            odd.low[code] = 2 * word;
            odd.high[code] = 2 * word + 1;
            odd.added[0][code] = sign + twos / 2 * 8;
            odd.added[1][code] = sign + twos / 2;
        }
        Some(odd)
    }

    /// Whether the planes were written: `false` where a result may leave the normal range, or a scale is not positive.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn fill<const FLOAT: usize>(&self, scales: &[f32; 8], to: &mut Place<'_>) -> bool {
        // One scale of each pair, then the others.
        let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        let scales = _mm256_permutevar8x32_ps(load_ps(scales), order);
        let unit = _mm256_mul_ps(scales, _mm256_set1_ps(self.unit));
        if !is_normal::<FLOAT>(unit) {
            return false;
        }
        let times = |n: f32| _mm256_mul_ps(unit, _mm256_set1_ps(n));
        let first = interleaved::<FLOAT>(unit, times(3.0));
        let second = interleaved::<FLOAT>(times(5.0), times(7.0));
        // Twice as much in an exponent.
        let (twice, added) = if FLOAT == F16 {
            (1 << 10, &self.added[0])
        } else {
            (1 << 7, &self.added[1])
        };
        let splat = |bytes: &[u8; 16]| _mm256_broadcastsi128_si256(load16(bytes));
        let (low, high, added) = (splat(&self.low), splat(&self.high), splat(added));
        let singles = [
            _mm256_unpacklo_epi32(first, second),
            _mm256_unpackhi_epi32(first, second),
        ];
        for (i, once) in singles.into_iter().enumerate() {
            let twice = _mm256_add_epi16(once, _mm256_set1_epi16(twice));
            let words = [
                _mm256_unpacklo_epi64(once, twice),
                _mm256_unpackhi_epi64(once, twice),
            ];
            for (j, words) in words.into_iter().enumerate() {
                let upper = _mm256_add_epi8(_mm256_shuffle_epi8(words, high), added);
                to.put(2 * i + j, [_mm256_shuffle_epi8(words, low), upper]);
            }
        }
        true
    }
}

/// Whether the output has everything from once to [`LARGEST`] times each of these as a normal number.
#[target_feature(enable = "avx2")]
#[inline]
fn is_normal<const FLOAT: usize>(units: __m256) -> bool {
    const LARGE: f32 = (1u128 << 100) as f32;
    let (smallest, largest) = if FLOAT == F16 {
        (1.0 / 16384.0, 2048.0)
    } else {
        (1.0 / LARGE, LARGE)
    };
    let is_large = _mm256_cmp_ps::<_CMP_GE_OQ>(units, _mm256_set1_ps(smallest));
    let is_small = _mm256_cmp_ps::<_CMP_LE_OQ>(units, _mm256_set1_ps(largest));
    _mm256_movemask_ps(_mm256_and_ps(is_large, is_small)) == 0xff
}
