//! Tiles of 4-bit codes, and planes: [`Tile::unpack`] in registers.
//!
//! In the tiles for tensor cores a thread's codes lie together. Its four words hold the codes of four rows (or of two rows
//! and two halves of a row); four neighboring threads have the columns that follow. So a tile is blocks of 4 x 4 words, each
//! to be transposed, and within a word a fixed order of nibbles:
//!
//! ```text
//!            words of a thread            after the transposition: one register for each word of a thread
//! thread 0   a0  b0  c0  d0               a0 a1 a2 a3
//! thread 1   a1  b1  c1  d1               b0 b1 b2 b3
//! thread 2   a2  b2  c2  d2               c0 c1 c2 c3
//! thread 3   a3  b3  c3  d3               d0 d1 d2 d3
//! ```
//!
//! Block scales of four bytes a row are words to be transposed as well. What has no row in [`unpack_tile`] (scales of whole
//! groups, low-rank factors: a hundredth of the codes) is moved entry by entry.

use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_set1_epi8, _mm_setr_epi8, _mm_shuffle_epi8, _mm_srli_epi16,
    _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
};

use super::lanes::{load16, store16};
use super::sixteen::{LOW_FIRST, split16};
use super::unpack;
use crate::{Packing, Tile};

/// See [`Tile::unpack`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn unpack_tile(tile: Tile, packed: &[u8], out: &mut [u8]) {
    tile.check(packed.len(), out.len());
    let (sixteens, _) = packed.as_chunks();
    let (lines, _) = out.as_chunks_mut();
    match tile {
        Tile::AwqGemvFast => awq(sixteens, lines),
        Tile::Marlin => fragments(sixteens, lines, |block, word| 16 * word + block, 8),
        Tile::SparseMarlin => fragments(sixteens, lines, |block, word| 8 * block + word, 4),
        Tile::SparseMarlinBytes => fragments_of_bytes(sixteens, lines),
        Tile::NunchakuCodes => nunchaku(sixteens, lines),
        Tile::KitchenSvdq => unpack::unpack(Packing::LsbFirst { bits: 4 }, packed, out),
        Tile::Swizzled => words(sixteens, lines, 1, |four, quarter| 8 * quarter + four),
        Tile::NunchakuMicroScales => words(sixteens, lines, 4, |four, quarter| {
            8 * quarter + 2 * (four % 4) + four / 4
        }),
        Tile::MarlinScales
        | Tile::MarlinScalesSingle
        | Tile::SparseMarlinScales
        | Tile::SparseMarlinMeta
        | Tile::NunchakuScales
        | Tile::NunchakuLowRank
        | Tile::NunchakuLowRankDown
        | Tile::KitchenSvdqColumns => tile.unpack(packed, out),
    }
}

/// Four threads' words to the words of four rows: see the module.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
    let low = [_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d)];
    let high = [_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d)];
    [
        _mm_unpacklo_epi64(low[0], low[1]),
        _mm_unpackhi_epi64(low[0], low[1]),
        _mm_unpacklo_epi64(high[0], high[1]),
        _mm_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Bytes at even places, then those at odd ones.
#[target_feature(enable = "avx2")]
#[inline]
fn evens_first(bytes: __m128i) -> __m128i {
    let order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    _mm_shuffle_epi8(bytes, order)
}

/// Low and high nibbles.
#[target_feature(enable = "avx2")]
#[inline]
fn nibbles(bytes: __m128i) -> [__m128i; 2] {
    let mask = _mm_set1_epi8(15);
    [
        _mm_and_si128(bytes, mask),
        _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask),
    ]
}

/// Eight halfwords hold columns 0 to 31, each with columns `k`, `k + 8`, `k + 16` and `k + 24`.
#[target_feature(enable = "avx2")]
#[inline]
fn awq(packed: &[[u8; 16]], out: &mut [[u8; 16]]) {
    for (out, packed) in out.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
        let [low, high] = nibbles(evens_first(load16(packed)));
        store16(&mut out[0], _mm_unpacklo_epi64(low, high));
        store16(&mut out[1], _mm_unpackhi_epi64(low, high));
    }
}

/// Marlin's blocks. A byte of a word has columns `k` and `k + 8` of one row; even bytes are row `row(block, word)`, odd ones
/// the row `apart` below.
#[target_feature(enable = "avx2")]
#[inline]
fn fragments(
    packed: &[[u8; 16]],
    out: &mut [[u8; 16]],
    row: impl Fn(usize, usize) -> usize,
    apart: usize,
) {
    for (block, [a, b, c, d]) in packed.as_chunks().0.iter().enumerate() {
        let words = transpose([load16(a), load16(b), load16(c), load16(d)]);
        for (word, bytes) in words.into_iter().enumerate() {
            let [low, high] = nibbles(evens_first(bytes));
            let row = row(block, word);
            store16(&mut out[row], _mm_unpacklo_epi64(low, high));
            store16(&mut out[row + apart], _mm_unpackhi_epi64(low, high));
        }
    }
}

/// The same with a byte for each code: a thread has eight words, a word has columns `k`, `k + 8`, `k + 1`, `k + 9` of a row.
#[target_feature(enable = "avx2")]
#[inline]
fn fragments_of_bytes(packed: &[[u8; 16]], out: &mut [[u8; 16]]) {
    for (packed, rows) in packed
        .as_chunks::<8>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<8>().0)
    {
        for half in 0..2 {
            let thread = |at: usize| load16(&packed[2 * at + half]);
            let words = transpose([thread(0), thread(1), thread(2), thread(3)]);
            for (word, bytes) in words.into_iter().enumerate() {
                let row = word % 2 * 4 + 2 * half + word / 2;
                store16(&mut rows[row], evens_first(bytes));
            }
        }
    }
}

/// Words have eight columns; a thread has two rows and two halves of them.
#[target_feature(enable = "avx2")]
#[inline]
fn nunchaku(packed: &[[u8; 16]], out: &mut [[u8; 16]]) {
    for (block, [a, b, c, d]) in packed.as_chunks().0.iter().enumerate() {
        let words = transpose([load16(a), load16(b), load16(c), load16(d)]);
        for (word, bytes) in words.into_iter().enumerate() {
            let row = block / 8 * 16 + word / 2 * 8 + block % 8;
            let [first, second] = split16::<LOW_FIRST>(bytes);
            let line = 4 * row + 2 * (word % 2);
            store16(&mut out[line], first);
            store16(&mut out[line + 1], second);
        }
    }
}

/// Rows of four bytes. The sixteen bytes at `4 * stride * (four / stride) + four % stride` and three times `stride` further
/// hold four rows of each quarter; `line` says which sixteen bytes those four are.
#[target_feature(enable = "avx2")]
#[inline]
fn words(
    packed: &[[u8; 16]],
    out: &mut [[u8; 16]],
    stride: usize,
    line: impl Fn(usize, usize) -> usize,
) {
    for four in 0..8 {
        let first = 4 * stride * (four / stride) + four % stride;
        let thread = |at: usize| load16(&packed[first + at * stride]);
        let rows = transpose([thread(0), thread(1), thread(2), thread(3)]);
        for (quarter, rows) in rows.into_iter().enumerate() {
            store16(&mut out[line(four, quarter)], rows);
        }
    }
}
