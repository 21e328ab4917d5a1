//! Types with blocks of 256 elements: `Q2_K` to `Q6_K` and `IQ4_XS`. A block is eight runs; the scales of all its groups are
//! calculated first, eight at a time.

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi64_si128, _mm256_and_si256, _mm256_blend_ps, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_permutevar8x32_ps, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setr_epi64x, _mm256_slli_epi16,
    _mm256_srli_epi16, _mm256_sub_epi8, _mm256_sub_epi32, _mm256_sub_ps,
};

use super::super::formula::F32;
use super::super::lanes::{load, load_ps, store_ps};
use super::runs::{
    Table, Values, calculate, lowered, nibbles, nibbles_of_16, ordered, run_len, sixteen, widened,
};
use super::{UNSIGNED, each, half, piece};
use crate::BlockFormat;
use crate::blocks::IQ4_NL;

/// A number for each group of a block, in `N` vectors.
#[repr(align(32))]
struct Groups<const N: usize>([[f32; 8]; N]);

impl<const N: usize> Groups<N> {
    /// `factor * (integer - zero)`; the integers are signed bytes, eight to a word.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(factor: __m256, integers: [u64; N], zero: i32) -> Self {
        let mut groups = Self([[0.0; 8]; N]);
        for (out, eight) in groups.0.iter_mut().zip(integers) {
            let bytes = _mm_cvtsi64_si128(eight.cast_signed());
            let integers = _mm256_sub_epi32(_mm256_cvtepi8_epi32(bytes), _mm256_set1_epi32(zero));
            store_ps(out, _mm256_mul_ps(factor, _mm256_cvtepi32_ps(integers)));
        }
        groups
    }

    /// That of a group, in all lanes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of(&self, group: usize) -> __m256 {
        _mm256_set1_ps(self.0.as_flattened()[group])
    }

    /// Those of two groups, in four lanes each.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of_two(&self, first: usize) -> __m256 {
        _mm256_blend_ps::<0b1111_0000>(self.of(first), self.of(first + 1))
    }

    /// Those of groups `4 * quad ..`, in two lanes each.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of_four(&self, quad: usize) -> __m256 {
        let lanes = match quad % 2 {
            0 => _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
            _ => _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7),
        };
        _mm256_permutevar8x32_ps(load_ps(&self.0[quad / 2]), lanes)
    }
}

/// `code * (d * s) - m * s_m`; four codes of each of four groups share a table.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q2_k<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
    each::<84, FLOAT>(BlockFormat::Q2K, &[80, 82], blocks, out, |block, out| {
        let (first, last) = (word(block, 0), word(block, 8));
        let scales = [first & LOW_NIBBLES, last & LOW_NIBBLES];
        let mins = [first >> 4 & LOW_NIBBLES, last >> 4 & LOW_NIBBLES];
        let scales = Groups::new(lowered(half(block, 80)), scales, 0);
        let mins = Groups::new(widened(half(block, 82)), mins, 0);
        let mut runs = out.chunks_exact_mut(run_len::<FLOAT>());
        for quad in 0..4 {
            let fields = ordered::<FLOAT>(load(&piece(block, 16 + 32 * (quad / 2))));
            let fields = [fields, _mm256_srli_epi16::<4>(fields)][quad % 2];
            let mask = _mm256_set1_epi8(3);
            let first = _mm256_and_si256(fields, mask);
            let second = _mm256_and_si256(_mm256_srli_epi16::<2>(fields), mask);
            let (Some(out), Some(next)) = (runs.next(), runs.next()) else {
                return;
            };
            if FLOAT == F32 {
                let result = |group: usize, value| {
                    let product = _mm256_mul_ps(value, scales.of(group));
                    _mm256_sub_ps(product, mins.of(group))
                };
                let of_first = |half, value| result(4 * quad + half, value);
                calculate::<FLOAT, STREAM>(first, of_first, out);
                let of_second = |half, value| result(4 * quad + 2 + half, value);
                calculate::<FLOAT, STREAM>(second, of_second, next);
            } else {
                let result = |value| {
                    let product = _mm256_mul_ps(value, scales.of_four(quad));
                    _mm256_sub_ps(product, mins.of_four(quad))
                };
                let table = Table::new::<FLOAT>(result(values.even), result(values.odd));
                let first = _mm256_or_si256(first, by_half(0, 4));
                let second = _mm256_or_si256(second, by_half(8, 12));
                table.look_up::<STREAM>(first, out);
                table.look_up::<STREAM>(second, next);
            }
        }
    });
}

/// `(code - 4) * (d * s)`; eight codes of each of two groups share a table.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q3_k<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&[-4, -3, -2, -1, 0, 1, 2, 3, -4, -3, -2, -1, 0, 1, 2, 3]);
    each::<110, FLOAT>(BlockFormat::Q3K, &[108], blocks, out, |block, out| {
        let scales = six_bits(word(block, 96), tops(block, 104));
        let scales = Groups::new(lowered(half(block, 108)), scales, 32);
        let mut fields = ordered::<FLOAT>(load(&piece(block, 32)));
        let mut thirds = ordered::<FLOAT>(load(&piece(block, 0)));
        for (run, out) in out.chunks_exact_mut(run_len::<FLOAT>()).enumerate() {
            if run == 4 {
                fields = ordered::<FLOAT>(load(&piece(block, 64)));
            }
            let field = _mm256_and_si256(fields, _mm256_set1_epi8(3));
            let third = _mm256_and_si256(thirds, _mm256_set1_epi8(1));
            fields = _mm256_srli_epi16::<2>(fields);
            thirds = _mm256_srli_epi16::<1>(thirds);
            let codes = _mm256_or_si256(field, _mm256_slli_epi16::<2>(third));
            if FLOAT == F32 {
                let result = |half, value| _mm256_mul_ps(value, scales.of(2 * run + half));
                calculate::<FLOAT, STREAM>(values.of(codes), result, out);
            } else {
                let scale = scales.of_two(2 * run);
                let even = _mm256_mul_ps(values.even, scale);
                let odd = _mm256_mul_ps(values.odd, scale);
                let codes = _mm256_or_si256(codes, by_half(0, 8));
                Table::new::<FLOAT>(even, odd).look_up::<STREAM>(codes, out);
            }
        }
    });
}

/// `code * (d * s) - m * s_m`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&UNSIGNED);
    each::<144, FLOAT>(BlockFormat::Q4K, &[0, 2], blocks, out, |block, out| {
        let (scales, mins) = six_bit_pairs(block);
        let mut run = 0;
        for out in out.chunks_exact_mut(2 * run_len::<FLOAT>()) {
            let packed = ordered::<FLOAT>(load(&piece(block, 16 + 16 * run)));
            let (out, next) = out.split_at_mut(run_len::<FLOAT>());
            let [low, high] = nibbles(packed);
            let result = |run| {
                let (scale, min) = (scales.of(run), mins.of(run));
                move |value| _mm256_sub_ps(_mm256_mul_ps(value, scale), min)
            };
            sixteen::<FLOAT, STREAM>(&values, low, result(run), out);
            sixteen::<FLOAT, STREAM>(&values, high, result(run + 1), next);
            run += 2;
        }
    });
}

/// `code * (d * s) - m * s_m`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q5_k<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    each::<176, FLOAT>(BlockFormat::Q5K, &[0, 2], blocks, out, |block, out| {
        let (scales, mins) = six_bit_pairs(block);
        let mut fifths = ordered::<FLOAT>(load(&piece(block, 16)));
        let mut run = 0;
        for out in out.chunks_exact_mut(2 * run_len::<FLOAT>()) {
            let packed = ordered::<FLOAT>(load(&piece(block, 48 + 16 * run)));
            let (out, next) = out.split_at_mut(run_len::<FLOAT>());
            let [low, high] = nibbles(packed);
            let one = _mm256_set1_epi8(1);
            let fifth = _mm256_slli_epi16::<4>(_mm256_and_si256(fifths, one));
            let two = _mm256_set1_epi8(2);
            let next_fifth = _mm256_slli_epi16::<3>(_mm256_and_si256(fifths, two));
            fifths = _mm256_srli_epi16::<2>(fifths);
            let result = |run| {
                let (scale, min) = (scales.of(run), mins.of(run));
                move |_, value| _mm256_sub_ps(_mm256_mul_ps(value, scale), min)
            };
            let codes = _mm256_or_si256(low, fifth);
            calculate::<FLOAT, STREAM>(codes, result(run), out);
            let codes = _mm256_or_si256(high, next_fifth);
            calculate::<FLOAT, STREAM>(codes, result(run + 1), next);
            run += 2;
        }
    });
}

/// `(code - 32) * (d * s)`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q6_k<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    each::<210, FLOAT>(BlockFormat::Q6K, &[208], blocks, out, |block, out| {
        let scales = [word(block, 192), word(block, 200)];
        let scales = Groups::new(lowered(half(block, 208)), scales, 0);
        for (n, out) in out.chunks_exact_mut(4 * run_len::<FLOAT>()).enumerate() {
            let [first, third] = nibbles(ordered::<FLOAT>(load(&piece(block, 64 * n))));
            let [second, fourth] = nibbles(ordered::<FLOAT>(load(&piece(block, 64 * n + 32))));
            let high = ordered::<FLOAT>(load(&piece(block, 128 + 32 * n)));
            let runs = [
                (first, _mm256_slli_epi16::<4>(high)),
                (second, _mm256_slli_epi16::<2>(high)),
                (third, high),
                (fourth, _mm256_srli_epi16::<2>(high)),
            ];
            let outs = out.chunks_exact_mut(run_len::<FLOAT>());
            for (run, ((low, high), out)) in runs.into_iter().zip(outs).enumerate() {
                let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
                let integers = _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
                let group = 8 * n + 2 * run;
                let result = |half, value| _mm256_mul_ps(value, scales.of(group + half));
                calculate::<FLOAT, STREAM>(integers, result, out);
            }
        }
    });
}

/// `value * (d * s)`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn iq4_xs<const FLOAT: usize, const STREAM: bool>(blocks: &[u8], out: &mut [u8]) {
    let values = Values::new(&IQ4_NL);
    each::<136, FLOAT>(BlockFormat::Iq4Xs, &[0], blocks, out, |block, out| {
        let low = spread_nibbles(u32::from_le_bytes(piece(block, 4)));
        let scales = low | spread_pairs(half(block, 2)) << 4;
        let scales = Groups::new(lowered(half(block, 0)), [scales], 32);
        for (run, out) in out.chunks_exact_mut(run_len::<FLOAT>()).enumerate() {
            let codes = nibbles_of_16::<FLOAT>(&piece(block, 8 + 16 * run));
            let result = |value| _mm256_mul_ps(value, scales.of(run));
            sixteen::<FLOAT, STREAM>(&values, codes, result, out);
        }
    });
}

const LOW_NIBBLES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
const LOW_PAIRS: u64 = 0x0303_0303_0303_0303;

/// Eight bytes of a block.
#[inline(always)]
fn word<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u64 {
    u64::from_le_bytes(piece(block, at))
}

/// Four bytes, twice.
#[inline(always)]
fn tops<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u64 {
    let word = u64::from(u32::from_le_bytes(piece(block, at)));
    word << 32 | word
}

/// The scales of the groups of a block, lowered, and the minima: see `ScaleStore::SixBitPairs`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn six_bit_pairs<const BYTES: usize>(block: &[u8; BYTES]) -> (Groups<1>, Groups<1>) {
    let (first, last) = (word(block, 4), word(block, 8) >> 32);
    // Scales 0..4 are the low half of `first`, minima 0..4 the high one.
    let low = first & 0x3f3f_3f3f_3f3f_3f3f;
    let top = (first >> 6 & LOW_PAIRS) << 4;
    let scales = low & 0xffff_ffff | (last & LOW_NIBBLES | top & 0xffff_ffff) << 32;
    let mins = low >> 32 | (last >> 4 & LOW_NIBBLES | top >> 32) << 32;
    (
        Groups::new(lowered(half(block, 0)), [scales], 0),
        Groups::new(widened(half(block, 2)), [mins], 0),
    )
}

/// Sixteen scales, plus 32: see `ScaleStore::SixBits`.
#[inline(always)]
fn six_bits(low: u64, tops: u64) -> [u64; 2] {
    // Top bits of scales 0..4 and 4..8 are bits 0 and 1, 2 and 3 of the same bytes; 8..16 above them.
    let pairs = |shift: u32| {
        let (first, second) = (tops >> shift & LOW_PAIRS, tops >> (shift + 2) & LOW_PAIRS);
        (first & 0xffff_ffff | second << 32) << 4
    };
    [
        low & LOW_NIBBLES | pairs(0),
        low >> 4 & LOW_NIBBLES | pairs(4),
    ]
}

/// Nibbles to bytes.
#[inline(always)]
fn spread_nibbles(packed: u32) -> u64 {
    let x = u64::from(packed);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    (x | x << 4) & LOW_NIBBLES
}

/// Pairs of bits to bytes.
#[inline(always)]
fn spread_pairs(packed: u16) -> u64 {
    let x = u64::from(packed);
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    let x = (x | x << 12) & 0x000f_000f_000f_000f;
    (x | x << 6) & LOW_PAIRS
}

/// A byte in the first half of a run, which is the lower half of either half of a register, and one in the second.
#[target_feature(enable = "avx2")]
#[inline]
fn by_half(first: i64, second: i64) -> __m256i {
    let [first, second] = [first, second].map(|byte| byte * 0x0101_0101_0101_0101);
    _mm256_setr_epi64x(first, second, first, second)
}
