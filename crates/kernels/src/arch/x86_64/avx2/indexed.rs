//! Integer codes whose columns name their group (activation order): see [`portable::indexed::decode`].
//!
//! Within a row every code may have another scale, which would have to be fetched one by one. Across rows a column has one
//! group: so eight *rows* are decoded at a time. The scales and zero points of a tile of rows are turned once, so that those
//! of eight rows lie together; a word of each row holds the codes of several columns; and the results of eight columns are
//! turned back in registers on their way to a strip of rows in L1, from which they go to the output in runs.
//!
//! ```text
//! word w of rows 0..8   [ c7 .. c1 c0 | c7 .. c1 c0 | ... ]     32-bit lanes
//! column 8 w + j        (lane >> 4 j & 15) - zeros[group of the column], times scales[group of the column]
//! columns 2 i, 2 i + 1  [ r0 of odd, r0 of even | r1 of odd, r1 of even | ... ]   two 16-bit results in a lane
//! four such registers, turned: rows 0 and 4, 1 and 5, 2 and 6, 3 and 7, eight results each
//! ```

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi32_si128, _mm256_and_si256, _mm256_castps_si256,
    _mm256_castsi256_si128, _mm256_cvtepi32_ps, _mm256_extracti128_si256, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_srl_epi32, _mm256_sub_ps, _mm256_xor_si256,
};

use super::formula::{BF16, F16, F32, interleaved};
use super::gather::{prefetch, transpose_halves, transpose8};
use super::lanes::{load, load_ps, store, store16};
use super::rows::bytes_of;
use super::stream;
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, FloatsMut, Formula, Stores, Zeros};
use crate::{Float, Packing, portable};

/// Rows of a tile: two lines of cache of a stored line of words.
const ROWS: usize = 32;

/// Rows whose strips follow each other: what is read of a stored line of words lies in one page then, and few pages are
/// in use.
const BAND: usize = 128;

/// Bytes of a row of a strip.
const STRIP: usize = 1024;

/// From one row of a strip to the next: not a power of two, or rows would fall into the same sets of the cache.
const STRIDE: usize = STRIP + 64;

/// See [`portable::indexed::decode`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode_indexed(
    rows: &CodedRows<'_>,
    index: &[u32],
    out: FloatsMut<'_>,
    stores: Stores,
) {
    rows.check_index(index, &out);
    let (float, is_rounded) = match out {
        FloatsMut::F32(_) => (Float::F32, false),
        FloatsMut::Bytes(float, _) => (float, rows.first_rounded_to != Float::F32),
    };
    let bits = bits_of(rows).filter(|_| !is_rounded && !out.is_empty());
    let numbers = bits.and_then(|bits| Some((bits, zeros_of(rows, bits)?)));
    let Some((bits, zero)) = numbers else {
        return portable::indexed::decode(rows, index, out, stores);
    };
    let out = match out {
        FloatsMut::F32(values) => bytes_of(values),
        FloatsMut::Bytes(_, bytes) => bytes,
    };
    let job = Job {
        rows,
        index,
        zero,
        stores,
    };
    match (float, bits) {
        (Float::F32, 2) => job.run::<F32, 2>(out),
        (Float::F32, 4) => job.run::<F32, 4>(out),
        (Float::F32, _) => job.run::<F32, 8>(out),
        (Float::F16, 2) => job.run::<F16, 2>(out),
        (Float::F16, 4) => job.run::<F16, 4>(out),
        (Float::F16, _) => job.run::<F16, 8>(out),
        (Float::Bf16, 2) => job.run::<BF16, 2>(out),
        (Float::Bf16, 4) => job.run::<BF16, 4>(out),
        (Float::Bf16, _) => job.run::<BF16, 8>(out),
    }
    if stores == Stores::Streaming {
        stream::fence();
    }
}

/// Bits of a code, where words hold whole codes and results are products that are no NaN.
fn bits_of(rows: &CodedRows<'_>) -> Option<u32> {
    let packing = match rows.codes.layout {
        CodeLayout::Rows(packing) | CodeLayout::WordsOfRows(packing) => packing,
        CodeLayout::Columns(_) => return None,
    };
    let bits = match packing {
        Packing::LsbFirst { bits }
        | Packing::LsbFirstNoStraddle { bits }
        | Packing::Planar { bits } => bits,
        Packing::Bytes => 8,
        Packing::NibblesHighFirst | Packing::AwqInterleaved => return None,
    };
    let is_finite = rows.grid.scales.iter().all(|scale| scale.is_finite());
    let is_plain = matches!(rows.formula, Formula::Product) && rows.grid.rows == 1 && is_finite;
    (is_plain && matches!(bits, 2 | 4 | 8) && !rows.grid.scales.is_empty()).then_some(bits)
}

/// The zero points, if they are small enough for differences to be exact in F32, and what flips codes of so many bits.
fn zeros_of<'a>(rows: &CodedRows<'a>, bits: u32) -> Option<(Zeros<'a>, u8)> {
    let CodeMeaning::Integer { flip, zero } = rows.value else {
        return None;
    };
    let is_small = |zero: &i32| zero.unsigned_abs() < 1 << 23;
    let are_small = match zero {
        Zeros::Fixed(zero) => is_small(&zero),
        Zeros::Each(zeros) => zeros.iter().all(is_small),
    };
    (are_small && u32::from(flip) >> bits == 0).then_some((zero, flip))
}

struct Job<'a> {
    rows: &'a CodedRows<'a>,
    index: &'a [u32],
    zero: (Zeros<'a>, u8),
    stores: Stores,
}

/// What a column needs for a tile of rows.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Group {
    scales: [[f32; 8]; ROWS / 8],
    zeros: [[f32; 8]; ROWS / 8],
}

/// Words of a tile, where they do not lie in order: those of 32 rows, one word after the other.
#[repr(align(64))]
struct Words([[u8; 4 * ROWS]; MOST_WORDS]);

/// Codes of 8 bits.
const MOST_WORDS: usize = STRIP / 2 / 4;

impl Job<'_> {
    #[target_feature(enable = "avx2,f16c")]
    fn run<const FLOAT: usize, const BITS: usize>(&self, out: &mut [u8]) {
        let size = if FLOAT == F32 { 4 } else { 2 };
        let columns = self.rows.n_columns;
        let line_len = columns * size;
        let zero = Group {
            scales: [[0.0; 8]; ROWS / 8],
            zeros: [[0.0; 8]; ROWS / 8],
        };
        let width = self.rows.grid.width(columns);
        let mut groups = vec![zero; BAND / ROWS * width];
        let mut strip = vec![0; ROWS * STRIDE];
        let mut words = Box::new(Words([[0; 4 * ROWS]; MOST_WORDS]));
        for (band, lines) in out.chunks_mut(BAND * line_len).enumerate() {
            let tiles = |lines: usize| (band * BAND..).step_by(ROWS).take(lines.div_ceil(ROWS));
            let n_rows = lines.len() / line_len;
            for (first_row, groups) in tiles(n_rows).zip(groups.chunks_exact_mut(width)) {
                self.turn(
                    first_row,
                    ROWS.min(band * BAND + n_rows - first_row),
                    groups,
                );
            }
            for start in (0..columns).step_by(STRIP / size) {
                let index = &self.index[start..columns.min(start + STRIP / size)];
                let tiles = tiles(n_rows).zip(groups.chunks_exact(width));
                for ((first_row, groups), lines) in tiles.zip(lines.chunks_mut(ROWS * line_len)) {
                    let n_rows = lines.len() / line_len;
                    let words =
                        self.words::<BITS>(first_row, n_rows, start, index.len(), &mut words);
                    strip_of::<FLOAT, BITS>(&words, self.zero.1, index, groups, &mut strip);
                    let strip = strip.chunks_exact(STRIDE);
                    for (line, results) in lines.chunks_exact_mut(line_len).zip(strip) {
                        let out = &mut line[start * size..(start + index.len()) * size];
                        self.write(&results[..out.len()], out);
                    }
                }
            }
        }
    }

    /// The scales and zero points of rows, those of a group side by side.
    fn turn(&self, first_row: usize, n_rows: usize, groups: &mut [Group]) {
        let width = groups.len();
        for row in 0..n_rows {
            let line = self.rows.grid.line(first_row + row) * width;
            let scales = &self.rows.grid.scales[line..line + width];
            for (group, &scale) in groups.iter_mut().zip(scales) {
                group.scales[row / 8][row % 8] = scale;
            }
            match self.zero.0 {
                Zeros::Fixed(zero) => {
                    for group in &mut *groups {
                        group.zeros[row / 8][row % 8] = zero as f32;
                    }
                }
                Zeros::Each(zeros) => {
                    for (group, &zero) in groups.iter_mut().zip(&zeros[line..line + width]) {
                        group.zeros[row / 8][row % 8] = zero as f32;
                    }
                }
            }
        }
    }

    /// The words of a strip: where they are stored, or brought together.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn words<'s, const BITS: usize>(
        &'s self,
        first_row: usize,
        n_rows: usize,
        start: usize,
        n_columns: usize,
        scratch: &'s mut Words,
    ) -> Lines<'s> {
        let codes = self.rows.codes;
        let n_words = (n_columns * BITS).div_ceil(32);
        let first_word = start * BITS / 32;
        match codes.layout {
            CodeLayout::WordsOfRows(_) if n_rows == ROWS => {
                return Lines {
                    bytes: &codes.bytes[first_word * codes.stride + 4 * first_row..],
                    stride: codes.stride,
                };
            }
            CodeLayout::WordsOfRows(_) => {
                for (word, to) in scratch.0[..n_words].iter_mut().enumerate() {
                    let at = (first_word + word) * codes.stride + 4 * first_row;
                    to[..4 * n_rows].copy_from_slice(&codes.bytes[at..at + 4 * n_rows]);
                }
            }
            CodeLayout::Rows(_) | CodeLayout::Columns(_) => {
                for row in 0..n_rows {
                    let line = &codes.bytes[(first_row + row) * codes.stride + 4 * first_word..];
                    let line = &line[..line.len().min((n_columns * BITS).div_ceil(8))];
                    for at in (0..line.len()).step_by(64) {
                        prefetch(line.as_ptr().wrapping_add(line.len() + at));
                    }
                    put_row(line, row, &mut scratch.0[..n_words]);
                }
            }
        }
        Lines {
            bytes: scratch.0.as_flattened(),
            stride: 4 * ROWS,
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn write(&self, from: &[u8], to: &mut [u8]) {
        match self.stores {
            Stores::Ordinary => to.copy_from_slice(from),
            // SAFETY: `decode_indexed`, the only way here, ends with the fence.
            Stores::Streaming => unsafe { stream::copy(from, to) },
        }
    }
}

/// The words of a row of codes, one for each line of words; the last one may be cut short.
#[inline(always)]
fn put_row(codes: &[u8], row: usize, words: &mut [[u8; 4 * ROWS]]) {
    let (whole, rest) = codes.as_chunks::<4>();
    let at = 4 * row;
    for (to, word) in words.iter_mut().zip(whole) {
        to[at..at + 4].copy_from_slice(word);
    }
    if let Some(to) = words.get_mut(whole.len()) {
        to[at..at + rest.len()].copy_from_slice(rest);
    }
}

/// Words of 32 rows, word after word.
struct Lines<'a> {
    bytes: &'a [u8],
    /// Bytes from one word of a row to the next.
    stride: usize,
}

impl Lines<'_> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of(&self, word: usize) -> &[u8; 4 * ROWS] {
        let bytes = self.bytes[word * self.stride..].first_chunk();
        bytes.expect("the words of a tile")
    }

    /// Asks for words that come later: the stride is beyond what the processor looks ahead for.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn look_ahead(&self, word: usize) {
        const AHEAD: usize = 24;
        let start = (word + AHEAD).wrapping_mul(self.stride);
        for at in [0, 64] {
            prefetch(self.bytes.as_ptr().wrapping_add(start).wrapping_add(at));
        }
    }
}

/// The results of 32 rows, for each column of the index.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn strip_of<const FLOAT: usize, const BITS: usize>(
    words: &Lines<'_>,
    flip: u8,
    index: &[u32],
    groups: &[Group],
    strip: &mut [u8],
) {
    let size = if FLOAT == F32 { 4 } else { 2 };
    let flip = _mm256_set1_epi32((u64::from(flip) * EACH[BITS / 4]) as u32 as i32);
    for (block, index) in index.chunks(8).enumerate() {
        let group = |j: usize| &groups[index.get(j).copied().unwrap_or_default() as usize];
        // Written out, here and below: `array::map` stayed a call, whose vectors go through memory.
        let groups = [
            group(0),
            group(1),
            group(2),
            group(3),
            group(4),
            group(5),
            group(6),
            group(7),
        ];
        let (first, shift) = (8 * block * BITS / 32, 8 * block * BITS % 32);
        words.look_ahead(first);
        let lines = [
            words.of(first),
            words.of(if BITS == 8 && index.len() > 4 {
                first + 1
            } else {
                first
            }),
        ];
        for eight in 0..ROWS / 8 {
            let lanes = |line: &[u8; 4 * ROWS]| {
                let lanes = _mm256_xor_si256(load(&line.as_chunks().0[eight]), flip);
                _mm256_srl_epi32(lanes, _mm_cvtsi32_si128(shift as i32))
            };
            let lanes = [lanes(lines[0]), lanes(lines[1])];
            let result = |j: usize| {
                let code = code::<BITS>(lanes[j * BITS / 32], j * BITS % 32);
                let difference = _mm256_sub_ps(code, load_ps(&groups[j].zeros[eight]));
                _mm256_mul_ps(difference, load_ps(&groups[j].scales[eight]))
            };
            let out = &mut strip[8 * eight * STRIDE + 8 * block * size..];
            put::<FLOAT>(result, out);
        }
    }
}

/// A one in the lowest bit of each code of a word: 2, 4 and 8 bits.
const EACH: [u64; 3] = [0x5555_5555, 0x1111_1111, 0x0101_0101];

#[target_feature(enable = "avx2")]
#[inline]
fn code<const BITS: usize>(lanes: __m256i, shift: usize) -> __m256 {
    let shifted = _mm256_srl_epi32(lanes, _mm_cvtsi32_si128(shift as i32));
    let mask = _mm256_set1_epi32((1 << BITS) - 1);
    _mm256_cvtepi32_ps(_mm256_and_si256(shifted, mask))
}

/// Eight columns of eight rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn put<const FLOAT: usize>(column: impl Fn(usize) -> __m256, out: &mut [u8]) {
    if FLOAT == F32 {
        let lanes = |j: usize| _mm256_castps_si256(column(j));
        let rows = transpose8([
            lanes(0),
            lanes(1),
            lanes(2),
            lanes(3),
            lanes(4),
            lanes(5),
            lanes(6),
            lanes(7),
        ]);
        for (row, results) in rows.into_iter().enumerate() {
            let out = out[row * STRIDE..].first_chunk_mut();
            store(out.expect("a row of the strip"), results);
        }
        return;
    }
    let pair = |j: usize| interleaved::<FLOAT>(column(j), column(j + 1));
    let rows = transpose_halves([pair(0), pair(2), pair(4), pair(6)]);
    for (row, results) in rows.into_iter().enumerate() {
        let halves = [
            _mm256_castsi256_si128(results),
            _mm256_extracti128_si256::<1>(results),
        ];
        for (half, results) in halves.into_iter().enumerate() {
            let out = out[(row + 4 * half) * STRIDE..].first_chunk_mut();
            store16(out.expect("a row of the strip"), results);
        }
    }
}
