//! Pieces of stored lines to pieces of rows: the turning itself, from L1 to L2, for [`super::transposed`].

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_cvtsi64_si128, _mm_prefetch, _mm_setzero_si128,
    _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_and_si256, _mm256_andnot_si256, _mm256_or_si256,
    _mm256_permute2x128_si256, _mm256_set_m128i, _mm256_set1_epi8, _mm256_slli_epi16,
    _mm256_srli_epi16, _mm256_unpackhi_epi8, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use super::lanes::{load, load16, store, store16};
use super::sixteen::{HIGH_FIRST, LOW_FIRST};
use super::unpack;
use crate::Packing;

/// Bytes of a line of a band: a piece of a stored line, and room, so that lines do not all fall into the same sets of the
/// cache. A length that the compiler knows saves checks: they took as long as the work.
pub(super) const BAND_LINE: usize = 512 + 64;

/// Most lines of a band.
pub(super) const BAND_LINES: usize = 64;

/// Lines that are turned at once.
pub(super) type Band = [[u8; BAND_LINE]; BAND_LINES];

/// 32-bit words of rows: `out[row][word]` is word `row` of line `word`. `band`: eight lines, of which the first `4 * n_rows`
/// bytes are read, rounded up to whole vectors; `out`: rows of `row_len` bytes, the first 32 of which are written.
#[target_feature(enable = "avx2")]
pub(super) fn words(band: &Band, n_rows: usize, out: &mut [u8], row_len: usize) {
    for row in (0..n_rows).step_by(8) {
        let line = |i: usize| load(piece(&band[i], 4 * row));
        let block = transpose8([0, 1, 2, 3, 4, 5, 6, 7].map(line));
        for (i, words) in block.into_iter().enumerate() {
            store(piece_mut(out, (row + i) * row_len), words);
        }
    }
}

#[inline]
fn piece<const N: usize>(line: &[u8; BAND_LINE], at: usize) -> &[u8; N] {
    match line[at..].first_chunk() {
        Some(piece) => piece,
        None => unreachable!("lines are padded to whole blocks"),
    }
}

#[inline]
fn piece_mut(bytes: &mut [u8], at: usize) -> &mut [u8; 32] {
    match bytes[at..].first_chunk_mut() {
        Some(piece) => piece,
        None => unreachable!("rows are padded to whole blocks"),
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

/// Columns of two codes to a byte become rows of the same, low codes first. `band`: 64 lines, of which those of `n_rows`
/// codes are read, rounded up to 32; `out`: rows of `row_len` bytes, the first 32 of which are written.
#[target_feature(enable = "avx2")]
pub(super) fn nibbles<const SOURCE: usize>(
    band: &Band,
    n_rows: usize,
    out: &mut [u8],
    row_len: usize,
) {
    let sixteens = out.chunks_mut(16 * row_len).take(n_rows.div_ceil(16));
    for (at, out) in sixteens.enumerate() {
        // Eight bytes of each line.
        let even = bytes_of_lines(|i| piece(&band[2 * i], 8 * at));
        let odd = bytes_of_lines(|i| piece(&band[2 * i + 1], 8 * at));
        for (byte, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            let rows = rows_of_byte::<SOURCE>(byte);
            for (row, codes) in rows.into_iter().zip(two_rows(even, odd)) {
                store(piece_mut(out, row * row_len), codes);
            }
        }
    }
}

/// The low codes of both, then the high ones.
#[target_feature(enable = "avx2")]
#[inline]
fn two_rows(even: __m256i, odd: __m256i) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    [
        _mm256_or_si256(
            _mm256_and_si256(even, low),
            _mm256_andnot_si256(low, _mm256_slli_epi16::<4>(odd)),
        ),
        _mm256_or_si256(
            _mm256_and_si256(_mm256_srli_epi16::<4>(even), low),
            _mm256_andnot_si256(low, odd),
        ),
    ]
}

/// The rows, among sixteen, of the low and the high code of byte `byte` of a line.
const fn rows_of_byte<const SOURCE: usize>(byte: usize) -> [usize; 2] {
    match SOURCE {
        LOW_FIRST => [2 * byte, 2 * byte + 1],
        HIGH_FIRST => [2 * byte + 1, 2 * byte],
        // The codes of a word stand in the order 0, 2, 4, 6, 1, 3, 5, 7.
        _ => {
            let first = byte / 4 * 8 + [0, 4, 1, 5][byte % 4];
            [first, first + 2]
        }
    }
}

/// The bytes of 32 lines of eight: one register for each place, the lines in order.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes_of_lines<'a>(line: impl Fn(usize) -> &'a [u8; 8]) -> [__m256i; 8] {
    let eight = |i: usize| _mm_cvtsi64_si128(i64::from_le_bytes(*line(i)));
    let four = |i: usize| {
        _mm256_set_m128i(
            _mm_unpacklo_epi8(eight(i + 16), eight(i + 24)),
            _mm_unpacklo_epi8(eight(i), eight(i + 8)),
        )
    };
    let interleaved = [
        four(0),
        four(1),
        four(2),
        four(3),
        four(4),
        four(5),
        four(6),
        four(7),
    ];
    interleave8(interleave8(interleave8(interleaved)))
}

/// Interleaves the bytes of `i` and `i + 4`.
#[target_feature(enable = "avx2")]
#[inline]
#[expect(clippy::many_single_char_names, reason = "eight registers, in order")]
fn interleave8([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
    [
        _mm256_unpacklo_epi8(a, e),
        _mm256_unpackhi_epi8(a, e),
        _mm256_unpacklo_epi8(b, f),
        _mm256_unpackhi_epi8(b, f),
        _mm256_unpacklo_epi8(c, g),
        _mm256_unpackhi_epi8(c, g),
        _mm256_unpacklo_epi8(d, h),
        _mm256_unpackhi_epi8(d, h),
    ]
}

/// Asks for a line of the cache: the stride of stored lines is beyond what the processor looks ahead for.
#[allow(
    unused_unsafe,
    reason = "the intrinsic became safe after our oldest compiler"
)]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch reads nothing and takes any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// Rows that [`codes`] unpacks at once.
pub(super) const ROWS: usize = 32;

/// Codes of rows: `out[row][column]` is code `row` of line `column`. `out`: `n_rows` rows of `row_len` bytes, the first
/// `n_columns` of which are written.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn codes(
    packing: Packing,
    band: &Band,
    (n_rows, n_columns): (usize, usize),
    out: &mut [u8],
    row_len: usize,
) {
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    for column in (0..n_columns).step_by(16) {
        for row in (0..n_rows).step_by(ROWS) {
            let first = row / unit_codes * unit_bytes;
            let size = ((n_rows - row).min(ROWS), (n_columns - column).min(16));
            let out = &mut out[row * row_len + column..];
            let halves = unpack_lines(packing, &band[column..], first, size);
            for (half, codes) in halves.iter().enumerate().take(size.0.div_ceil(16)) {
                let size = (size.0 - 16 * half, size.1);
                put_columns(codes, size, &mut out[16 * half * row_len..], row_len);
            }
        }
    }
}

/// The first and the second sixteen codes of up to 16 lines, from byte `first` on.
#[target_feature(enable = "avx2,f16c")]
fn unpack_lines(
    packing: Packing,
    lines: &[[u8; BAND_LINE]],
    first: usize,
    (n_rows, n_columns): (usize, usize),
) -> [[__m128i; 16]; 2] {
    let mut halves = [[_mm_setzero_si128(); 16]; 2];
    for (column, line) in lines.iter().enumerate().take(n_columns) {
        let mut codes = [0; ROWS];
        unpack::unpack(packing, &line[first..], &mut codes[..n_rows]);
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
