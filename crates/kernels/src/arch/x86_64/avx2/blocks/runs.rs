//! Runs of 32 elements: from codes or integer values in a register to 64 or 128 bytes of results.
//!
//! Values are *lifted*: times 2^24, because a byte at the top of a 32-bit lane is a signed integer without further ado.
//! Scales of F16 numbers, and their products with integers, are *lowered* by as much; that only moves an exponent which is
//! far from either end, so that every product is the one that ggml rounds.
//!
//! Bytes of a run are brought into an order from which everything comes out of the register's halves in its place: quarters
//! 0, 2 | 1, 3 for results of two bytes, eighths 0, 2, 4, 6 | 1, 3, 5, 7 for those of four.
//!
//! Results in 16 bits are made two lanes at a time, even elements and odd ones, so that a shift and a blend put them
//! side by side:
//!
//! ```text
//! even   [ r0 | ...... ] [ r2 | ...... ] ...    32-bit lanes, the result in the upper half
//! odd    [ r1 | ...... ] [ r3 | ...... ] ...
//! words  [ r1 |   r0   ] [ r3 |   r2   ] ...
//! ```

use std::arch::x86_64::{
    __m256, __m256i, _mm_set1_epi16, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castps_si256, _mm256_castsi128_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
    _mm256_mul_ps, _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32, _mm256_set1_epi8,
    _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setr_epi64x, _mm256_shuffle_epi8,
    _mm256_srli_epi16, _mm256_srlv_epi64, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use super::super::formula::{F32, interleaved};
use super::super::lanes::{self, load_ps, load16};

/// Elements of a run.
pub(super) const RUN: usize = 32;

/// Bytes of the results of a run.
pub(super) const fn run_len<const FLOAT: usize>() -> usize {
    if FLOAT == F32 { 4 * RUN } else { 2 * RUN }
}

const LIFT: f32 = 16_777_216.0;

/// An F16 number in all lanes, lowered.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn lowered(half: u16) -> __m256 {
    let value = _mm256_cvtph_ps(_mm_set1_epi16(half.cast_signed()));
    _mm256_mul_ps(value, _mm256_set1_ps(1.0 / LIFT))
}

/// An F16 number in all lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn widened(half: u16) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(half.cast_signed()))
}

/// Takes the lift off.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn let_down(lifted: __m256) -> __m256 {
    _mm256_mul_ps(lifted, _mm256_set1_ps(1.0 / LIFT))
}

/// What sixteen codes stand for.
#[derive(Clone, Copy)]
pub(super) struct Values {
    /// In both halves.
    bytes: __m256i,
    /// Of codes 0, 2, 4 ..., lifted.
    pub(super) even: __m256,
    /// Of codes 1, 3, 5 ..., lifted.
    pub(super) odd: __m256,
}

impl Values {
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn new(values: &[i8; 16]) -> Self {
        let lifted = |first: usize| -> [f32; 8] {
            std::array::from_fn(|i| f32::from(values[2 * i + first]) * LIFT)
        };
        Self {
            bytes: _mm256_broadcastsi128_si256(load16(&values.map(i8::cast_unsigned))),
            even: load_ps(&lifted(0)),
            odd: load_ps(&lifted(1)),
        }
    }

    /// The bytes that codes stand for.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn of(&self, codes: __m256i) -> __m256i {
        _mm256_shuffle_epi8(self.bytes, codes)
    }
}

/// The bytes of a run in the order of the output.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn ordered<const FLOAT: usize>(bytes: __m256i) -> __m256i {
    if FLOAT == F32 {
        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7))
    } else {
        _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes)
    }
}

/// 16 bytes whose low nibbles are the codes of elements 0..16 and whose high ones those of 16..32: the codes, ordered.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nibbles_of_16<const FLOAT: usize>(packed: &[u8; 16]) -> __m256i {
    let packed = _mm256_castsi128_si256(load16(packed));
    let twice = if FLOAT == F32 {
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 2, 0, 2, 1, 3, 1, 3))
    } else {
        _mm256_permute4x64_epi64::<0b01_01_00_00>(packed)
    };
    let shifted = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4));
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// 32 ordered bytes whose low nibbles are the codes of one run and whose high ones those of another.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nibbles(packed: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [
        _mm256_and_si256(packed, mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask),
    ]
}

/// Sixteen results of 16 bits: their low bytes and their high bytes, each in both halves of a register.
#[derive(Clone, Copy)]
pub(super) struct Table([__m256i; 2]);

impl Table {
    /// From the results of codes 0, 2, 4 ... and 1, 3, 5 ..., none of them a NaN.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn new<const FLOAT: usize>(even: __m256, odd: __m256) -> Self {
        let split = _mm256_setr_epi8(
            0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, //
            0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
        );
        let planes = _mm256_shuffle_epi8(interleaved::<FLOAT>(even, odd), split);
        Self([
            _mm256_permute4x64_epi64::<0b10_00_10_00>(planes),
            _mm256_permute4x64_epi64::<0b11_01_11_01>(planes),
        ])
    }

    /// The results of 32 ordered codes.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn look_up<const STREAM: bool>(self, codes: __m256i, out: &mut [u8]) {
        let low = _mm256_shuffle_epi8(self.0[0], codes);
        let high = _mm256_shuffle_epi8(self.0[1], codes);
        let lower = _mm256_unpacklo_epi8(low, high);
        let upper = _mm256_unpackhi_epi8(low, high);
        put::<STREAM, 2>(out, [lower, upper]);
    }
}

/// The results of a run of ordered integers. `result` makes them of eight lifted values of one half of the run, which it is
/// told; none may be a NaN.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn calculate<const FLOAT: usize, const STREAM: bool>(
    integers: __m256i,
    result: impl Fn(usize, __m256) -> __m256,
    out: &mut [u8],
) {
    // Written out: `array::map` and closures called twice stayed calls in release builds, at a tenth of the rate.
    if FLOAT == F32 {
        let results = [
            result(0, lift::<0, 1>(integers)),
            result(0, lift::<4, 1>(integers)),
            result(1, lift::<8, 1>(integers)),
            result(1, lift::<12, 1>(integers)),
        ];
        let [a, b, c, d] = results;
        put::<STREAM, 4>(
            out,
            [
                _mm256_castps_si256(a),
                _mm256_castps_si256(b),
                _mm256_castps_si256(c),
                _mm256_castps_si256(d),
            ],
        );
    } else {
        let (even, odd) = (lift::<0, 2>(integers), lift::<1, 2>(integers));
        let first = interleaved::<FLOAT>(result(0, even), result(0, odd));
        let (even, odd) = (lift::<8, 2>(integers), lift::<9, 2>(integers));
        let second = interleaved::<FLOAT>(result(1, even), result(1, odd));
        put::<STREAM, 2>(out, [first, second]);
    }
}

/// Writes all results of a run: past the caches where `STREAM` says so and the address allows it.
#[target_feature(enable = "avx2")]
#[inline]
fn put<const STREAM: bool, const N: usize>(out: &mut [u8], results: [__m256i; N]) {
    let out: &mut [[u8; 32]; N] = out.as_chunks_mut().0.first_chunk_mut().expect("a run");
    for (out, result) in out.iter_mut().zip(results) {
        lanes::put::<STREAM>(out, result);
    }
}

/// Four integers of each half of a register, every `STEP`th from place `FIRST` on, as lifted floats.
#[target_feature(enable = "avx2")]
#[inline]
fn lift<const FIRST: i8, const STEP: i8>(integers: __m256i) -> __m256 {
    // Only the top byte of a lane is taken; -1 gives zeros.
    let [a, b, c, d] = const { [FIRST, FIRST + STEP, FIRST + 2 * STEP, FIRST + 3 * STEP] };
    let to_top = _mm256_setr_epi8(
        -1, -1, -1, a, -1, -1, -1, b, -1, -1, -1, c, -1, -1, -1, d, //
        -1, -1, -1, a, -1, -1, -1, b, -1, -1, -1, c, -1, -1, -1, d,
    );
    _mm256_cvtepi32_ps(_mm256_shuffle_epi8(integers, to_top))
}

/// A run of 4-bit codes with one formula for all of them: sixteen results looked up, or in F32, where a result is wider than
/// what a byte look-up saves, each calculated.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn sixteen<const FLOAT: usize, const STREAM: bool>(
    values: &Values,
    codes: __m256i,
    result: impl Fn(__m256) -> __m256,
    out: &mut [u8],
) {
    if FLOAT == F32 {
        let integers = values.of(codes);
        calculate::<FLOAT, STREAM>(integers, |_, lifted| result(lifted), out);
    } else {
        let table = Table::new::<FLOAT>(result(values.even), result(values.odd));
        table.look_up::<STREAM>(codes, out);
    }
}
