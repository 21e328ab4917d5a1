//! Layouts that store the transpose: pieces of lines become pieces of rows, a tile at a time.
//!
//! A tile takes a whole cache line, or two, of every stored line. What is gathered for it stays in L2.

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_setzero_si128, _mm_unpackhi_epi8,
    _mm_unpacklo_epi8, _mm256_permute2x128_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use super::lanes::{load, load16, store, store16};
use super::unpack;
use crate::Packing;

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
        prefetch::<8>(lines, stride.saturating_mul(word + 16), stride, 4 * n_rows);
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
pub(super) fn vector_at(bytes: &[u8], at: usize) -> __m256i {
    match bytes[at..].first_chunk() {
        Some(vector) => load(vector),
        None => unreachable!("eight words of a line are there"),
    }
}

/// Eight rows of eight 32-bit lanes to eight columns. Written out: `map` over vectors stayed a call where nothing inlines
/// across crates.
#[target_feature(enable = "avx2")]
#[inline]
#[expect(clippy::many_single_char_names, reason = "eight columns, in order")]
pub(super) fn transpose8([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
    // Rows 0 and 4, 1 and 5, 2 and 6, 3 and 7 of four columns.
    let [p, q, r, s] = transpose_halves([a, b, c, d]);
    let [t, u, v, w] = transpose_halves([e, f, g, h]);
    [
        _mm256_permute2x128_si256::<0x20>(p, t),
        _mm256_permute2x128_si256::<0x20>(q, u),
        _mm256_permute2x128_si256::<0x20>(r, v),
        _mm256_permute2x128_si256::<0x20>(s, w),
        _mm256_permute2x128_si256::<0x31>(p, t),
        _mm256_permute2x128_si256::<0x31>(q, u),
        _mm256_permute2x128_si256::<0x31>(r, v),
        _mm256_permute2x128_si256::<0x31>(s, w),
    ]
}

/// Four registers, each half turned by itself.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn transpose_halves([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let low = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
    let high = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Asks for `len` bytes of `N` lines. The stride is beyond what the processor looks ahead for by itself.
#[allow(
    unused_unsafe,
    reason = "the intrinsic became safe after our oldest compiler"
)]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn prefetch<const N: usize>(lines: &[u8], first: usize, stride: usize, len: usize) {
    for line in 0..N {
        let start = first.saturating_add(stride.saturating_mul(line));
        for at in (0..len).step_by(64) {
            if let Some(byte) = lines.get(start.saturating_add(at)) {
                // SAFETY: a prefetch reads nothing; the address is that of a byte of the slice.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) }
            }
        }
    }
}

/// Rows that [`codes`] unpacks at once.
pub(super) const ROWS: usize = 32;

/// Codes of rows: `out[row][column]` is code `row` of line `column`. `lines`: from the unit with the first row's code in
/// the first line on; `out`: `n_rows` rows of `row_len` bytes, the first `n_columns` of which are written.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn codes(
    packing: Packing,
    lines: &[u8],
    stride: usize,
    (n_rows, n_columns): (usize, usize),
    out: &mut [u8],
    row_len: usize,
) {
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    for column in (0..n_columns).step_by(16) {
        prefetch::<8>(lines, stride.saturating_mul(column + 32), stride, 64);
        prefetch::<8>(lines, stride.saturating_mul(column + 40), stride, 64);
        for row in (0..n_rows).step_by(ROWS) {
            let first = column * stride + row / unit_codes * unit_bytes;
            let size = ((n_rows - row).min(ROWS), (n_columns - column).min(16));
            let lines = &lines[first..];
            let out = &mut out[row * row_len + column..];
            let halves = unpack_lines(packing, lines, stride, size);
            for (half, codes) in halves.iter().enumerate().take(size.0.div_ceil(16)) {
                let size = (size.0 - 16 * half, size.1);
                put_columns(codes, size, &mut out[16 * half * row_len..], row_len);
            }
        }
    }
}

/// The first and the second sixteen codes of up to 16 lines.
#[target_feature(enable = "avx2,f16c")]
fn unpack_lines(
    packing: Packing,
    lines: &[u8],
    stride: usize,
    (n_rows, n_columns): (usize, usize),
) -> [[__m128i; 16]; 2] {
    let mut halves = [[_mm_setzero_si128(); 16]; 2];
    for column in 0..n_columns {
        let mut codes = [0; ROWS];
        unpack::unpack(packing, &lines[column * stride..], &mut codes[..n_rows]);
        let (sixteens, _) = codes.as_chunks();
        for (half, codes) in halves.iter_mut().zip(sixteens) {
            half[column] = load16(codes);
        }
    }
    halves
}

/// The transpose of sixteen lines of sixteen codes, as far as it is wanted.
#[target_feature(enable = "avx2")]
#[inline]
fn put_columns(
    lines: &[__m128i; 16],
    (n_rows, n_columns): (usize, usize),
    out: &mut [u8],
    row_len: usize,
) {
    for (i, codes) in transpose16(lines).into_iter().enumerate().take(n_rows) {
        let out = &mut out[i * row_len..];
        match out.first_chunk_mut() {
            Some(out) if n_columns == 16 => store16(out, codes),
            Some(_) | None => {
                let mut bytes = [0; 16];
                store16(&mut bytes, codes);
                out[..n_columns].copy_from_slice(&bytes[..n_columns]);
            }
        }
    }
}

/// Sixteen rows of sixteen bytes to sixteen columns: four times, row `i` and row `i + 8` are interleaved.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose16(rows: &[__m128i; 16]) -> [__m128i; 16] {
    interleave(&interleave(&interleave(&interleave(rows))))
}

/// Written out: `array::from_fn` of sixteen stayed a loop over memory.
#[target_feature(enable = "avx2")]
#[inline]
#[expect(clippy::many_single_char_names, reason = "sixteen rows, in order")]
fn interleave(rows: &[__m128i; 16]) -> [__m128i; 16] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *rows;
    [
        _mm_unpacklo_epi8(a, i),
        _mm_unpackhi_epi8(a, i),
        _mm_unpacklo_epi8(b, j),
        _mm_unpackhi_epi8(b, j),
        _mm_unpacklo_epi8(c, k),
        _mm_unpackhi_epi8(c, k),
        _mm_unpacklo_epi8(d, l),
        _mm_unpackhi_epi8(d, l),
        _mm_unpacklo_epi8(e, m),
        _mm_unpackhi_epi8(e, m),
        _mm_unpacklo_epi8(f, n),
        _mm_unpackhi_epi8(f, n),
        _mm_unpacklo_epi8(g, o),
        _mm_unpackhi_epi8(g, o),
        _mm_unpacklo_epi8(h, p),
        _mm_unpackhi_epi8(h, p),
    ]
}
