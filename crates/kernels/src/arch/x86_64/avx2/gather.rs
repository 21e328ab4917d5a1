//! Layouts that store the transpose: pieces of lines become pieces of rows, a tile at a time.
//!
//! A tile has [`TILE`] rows: a whole cache line, or two, of every stored line. What is gathered for it stays in L2.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_permute2x128_si256,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use super::lanes::{load, load16, store, store16};
use super::unpack;
use crate::Packing;

/// Rows of a tile.
pub(super) const TILE: usize = 32;

/// 32-bit words of rows: `out[row][word]` is word `row` of line `word`. `lines`: from the first row's word in the first
/// line on; `out`: `n_rows` rows of `row_len` bytes, the first `4 * n_words` of which are written.
#[target_feature(enable = "avx2")]
pub(super) fn words(
    lines: &[u8],
    stride: usize,
    (n_rows, n_words): (usize, usize),
    out: &mut [u8],
    row_len: usize,
) {
    let (whole_rows, whole_words) = (n_rows / 8 * 8, n_words / 8 * 8);
    for word in (0..whole_words).step_by(8) {
        for row in (0..whole_rows).step_by(8) {
            let line = |i: usize| vector_at(lines, (word + i) * stride + 4 * row);
            let block = transpose8(std::array::from_fn(line));
            for (i, words) in block.into_iter().enumerate() {
                let at = (row + i) * row_len + 4 * word;
                if let Some(out) = out[at..].first_chunk_mut() {
                    store(out, words);
                }
            }
        }
    }
    let mut one = |row: usize, word: usize| {
        let from = word * stride + 4 * row;
        let to = row * row_len + 4 * word;
        out[to..to + 4].copy_from_slice(&lines[from..from + 4]);
    };
    for word in 0..n_words {
        let first = if word < whole_words { whole_rows } else { 0 };
        for row in first..n_rows {
            one(row, word);
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn vector_at(bytes: &[u8], at: usize) -> __m256i {
    match bytes[at..].first_chunk() {
        Some(vector) => load(vector),
        None => unreachable!("eight words of a line are there"),
    }
}

/// Eight rows of eight 32-bit lanes to eight columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose8(r: [__m256i; 8]) -> [__m256i; 8] {
    let pairs: [[__m256i; 2]; 4] = [0, 2, 4, 6].map(|i| {
        [
            _mm256_unpacklo_epi32(r[i], r[i + 1]),
            _mm256_unpackhi_epi32(r[i], r[i + 1]),
        ]
    });
    // Columns 0, 1, 2, 3 of rows 0..4 and of rows 4..8; the upper halves hold columns 4, 5, 6, 7.
    let fours: [[__m256i; 4]; 2] = [0, 2].map(|i| {
        let (a, b) = (pairs[i], pairs[i + 1]);
        [
            _mm256_unpacklo_epi64(a[0], b[0]),
            _mm256_unpackhi_epi64(a[0], b[0]),
            _mm256_unpacklo_epi64(a[1], b[1]),
            _mm256_unpackhi_epi64(a[1], b[1]),
        ]
    });
    std::array::from_fn(|i| {
        let (a, b) = (fours[0][i % 4], fours[1][i % 4]);
        if i < 4 {
            _mm256_permute2x128_si256::<0x20>(a, b)
        } else {
            _mm256_permute2x128_si256::<0x31>(a, b)
        }
    })
}

/// Codes of rows: `out[row][column]` is code `row` of line `column`. `lines`: from the unit with the first row's code in
/// the first line on; `out`: `n_rows` (at most [`TILE`]) rows of `row_len` bytes, the first `n_columns` of which are written.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn codes(
    packing: Packing,
    lines: &[u8],
    stride: usize,
    (n_rows, n_columns): (usize, usize),
    out: &mut [u8],
    row_len: usize,
) {
    for first in (0..n_columns).step_by(16) {
        let n = (n_columns - first).min(16);
        let mut unpacked = [[0; TILE]; 16];
        for (column, codes) in unpacked[..n].iter_mut().enumerate() {
            let line = &lines[(first + column) * stride..];
            unpack::unpack(packing, line, &mut codes[..n_rows]);
        }
        for row in (0..n_rows).step_by(16) {
            let vectors = std::array::from_fn(|column| {
                let (halves, _) = unpacked[column].as_chunks();
                load16(&halves[row / 16])
            });
            let rows = transpose16(vectors);
            for (i, codes) in rows.into_iter().enumerate().take(n_rows - row) {
                let mut bytes = [0; 16];
                store16(&mut bytes, codes);
                let at = (row + i) * row_len + first;
                out[at..at + n].copy_from_slice(&bytes[..n]);
            }
        }
    }
}

/// Sixteen rows of sixteen bytes to sixteen columns: four times, row `i` and row `i + 8` are interleaved.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose16(mut rows: [__m128i; 16]) -> [__m128i; 16] {
    for _ in 0..4 {
        rows = std::array::from_fn(|i| {
            let (a, b) = (rows[i / 2], rows[i / 2 + 8]);
            if i % 2 == 0 {
                _mm_unpacklo_epi8(a, b)
            } else {
                _mm_unpackhi_epi8(a, b)
            }
        });
    }
    rows
}
