//! Layouts that store the transpose, four bits to a code: from pieces of lines to pieces of rows in registers.
//!
//! A tile takes a long piece of every stored line. In it, chunks of [`CHUNK`] columns are worked on one after the other, in
//! blocks that are transposed and looked up at once; results leave in whole lines of cache. The pieces of a chunk and the
//! tables of all rows of the tile lie in L2; tables are calculated anew where a group begins.
//!
//! | layout | tile | block | how it is transposed |
//! |---|---|---|---|
//! | words of rows (GPTQ) | 1024 rows | 8 rows x 64 columns | 8 x 8 words |
//! | columns (AWQ) | 1024 rows | 16 rows x 32 columns | 8 x 32 bytes, each with the codes of two rows |
//!
//! Everything else goes through [`super::gather`].

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_castsi128_si256, _mm256_inserti128_si256, _mm256_set1_epi8,
    _mm256_setzero_si256, _mm256_srli_epi16, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use super::formula::{F32, size_of_result};
use super::gather::{prefetch, transpose8, vector_at};
use super::lanes::load16;
use super::plan::Plan;
use super::sixteen::{AWQ, HIGH_FIRST, LOW_FIRST, MANY, nibbles, ordered_codes, put_results};
use super::tables::{Planes, Tables, planes_at, table_len};
use crate::rows::{CodeLayout, CodedRows, Stores};

/// Rows of a tile. Every stored line lies on a page of its own, or two share one, and to find a page takes longer than to
/// read a line of cache (most of all in a virtual machine): tiles of 64 rows reached a fifth of the rate.
const TILE: usize = 1024;

/// Columns that are worked on before the next rows: results of a row lie side by side, as memory likes it.
const CHUNK: usize = 128;

/// Bytes that a tile of words takes of a stored line.
const WORDS_LEN: usize = 4 * TILE;

/// Bytes that a tile of columns takes of a stored line.
const COLUMNS_LEN: usize = TILE / 2;

/// Between two pieces in [`Job::pieces`], so that they do not all fall into the same sets of the cache.
const GAP: usize = 64;

/// Decodes the first rows, as many as whole blocks have; returns how many.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode<const FLOAT: usize>(
    rows: &CodedRows<'_>,
    plan: &Plan,
    out: &mut [u8],
    stores: Stores,
) -> usize {
    match stores {
        Stores::Ordinary => by_layout::<FLOAT, false>(rows, plan, out),
        Stores::Streaming => by_layout::<FLOAT, true>(rows, plan, out),
    }
}

#[target_feature(enable = "avx2,f16c")]
fn by_layout<const FLOAT: usize, const STREAM: bool>(
    rows: &CodedRows<'_>,
    plan: &Plan,
    out: &mut [u8],
) -> usize {
    let source = nibbles(rows.codes.layout.packing());
    let (block, n_rows) = match (rows.codes.layout, source) {
        (CodeLayout::WordsOfRows(_), Some(LOW_FIRST)) => (64, rows.n_rows / 8 * 8),
        (CodeLayout::Columns(_), Some(_)) => (32, rows.n_rows / 32 * 32),
        (CodeLayout::Rows(_) | CodeLayout::WordsOfRows(_) | CodeLayout::Columns(_), _) => return 0,
    };
    let group = plan.group;
    let is_group_whole =
        matches!(group, 32 | 64) || group.is_multiple_of(CHUNK) || group == rows.n_columns;
    if !rows.n_columns.is_multiple_of(block) || !is_group_whole {
        return 0;
    }
    let mut job = Job::<FLOAT>::new(rows, group);
    match (rows.codes.layout, source) {
        (CodeLayout::WordsOfRows(_), _) => job.words::<STREAM>(n_rows, out),
        (_, Some(LOW_FIRST)) => job.columns::<LOW_FIRST, STREAM>(n_rows, out),
        (_, Some(HIGH_FIRST)) => job.columns::<HIGH_FIRST, STREAM>(n_rows, out),
        (_, _) => job.columns::<AWQ, STREAM>(n_rows, out),
    }
    n_rows
}

/// A matrix, and the tables of a tile.
struct Job<'a, const FLOAT: usize> {
    rows: &'a CodedRows<'a>,
    tables: Tables<'a>,
    /// Columns of a group.
    group: usize,
    /// Tables that a row of a chunk has.
    n_tables: usize,
    /// Of a tile's rows, row after row.
    planes: Vec<u8>,
    /// The pieces of a chunk's lines, one after the other. Lines are a power of two apart as often as not, fall into few
    /// sets of the cache then, and would push each other out before they are used.
    pieces: Vec<u8>,
}

impl<'a, const FLOAT: usize> Job<'a, FLOAT> {
    #[target_feature(enable = "avx2,f16c")]
    fn new(rows: &'a CodedRows<'a>, group: usize) -> Self {
        let mut tables = Tables::new(rows);
        tables.turn_to(0, rows.grid.scales.len());
        let n_tables = CHUNK.div_ceil(group);
        Self {
            rows,
            tables,
            group,
            n_tables,
            planes: vec![0; TILE.min(rows.n_rows) * n_tables * table_len::<FLOAT>()],
            pieces: vec![0; CHUNK * (COLUMNS_LEN + GAP)],
        }
    }

    /// Copies `len` bytes of each of `n_lines` stored lines, from `first` on, to pieces of `MOST` bytes.
    fn gather<const MOST: usize>(&mut self, first: usize, n_lines: usize, len: usize) {
        let (lines, stride) = (self.rows.codes.bytes, self.rows.codes.stride);
        let pieces = self.pieces.chunks_exact_mut(MOST + GAP).take(n_lines);
        for (line, piece) in pieces.enumerate() {
            let at = first + line * stride;
            piece[..len].copy_from_slice(&lines[at..at + len]);
        }
    }

    /// Asks for a part of the next chunk: part `part` of 512 bytes of its pieces, if they are so long.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn ask<const MOST: usize>(&self, next: usize, part: usize, len: usize) {
        let (line, at) = (part * 512 / MOST, part * 512 % MOST);
        if at < len {
            let (lines, stride) = (self.rows.codes.bytes, self.rows.codes.stride);
            let first = stride.saturating_mul(line).saturating_add(next + at);
            prefetch::<1>(lines, first, stride, (len - at).min(512));
        }
    }

    /// Calculates the tables of `n` rows from `tile` on for a chunk at `column`, if a group begins there.
    #[target_feature(enable = "avx2,f16c")]
    fn begin_chunk(&mut self, (tile, n): (usize, usize), column: usize) {
        if !column.is_multiple_of(self.group) {
            return;
        }
        let width = self.rows.grid.width(self.rows.n_columns);
        let first_group = column / self.group;
        let n_groups = self.n_tables.min(width - first_group);
        let tables = self
            .planes
            .chunks_exact_mut(self.n_tables * table_len::<FLOAT>());
        for (row, tables) in (tile..tile + n).zip(tables) {
            let first = self.rows.grid.line(row) * width + first_group;
            let tables = tables.chunks_exact_mut(table_len::<FLOAT>());
            for (entry, table) in (first..first + n_groups).zip(tables) {
                self.tables.put::<FLOAT>(entry, table);
            }
        }
    }

    /// The planes of row `row` of the tile for column `column` of the chunk.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn planes(&self, row: usize, column: usize) -> Planes {
        let part = match self.n_tables {
            1 => 0,
            _ => column / self.group,
        };
        planes_at::<FLOAT>(&self.planes[(row * self.n_tables + part) * table_len::<FLOAT>()..])
    }

    /// Where `N` results of a row go.
    #[inline]
    fn piece<'o, const N: usize>(
        &self,
        out: &'o mut [u8],
        (row, column): (usize, usize),
    ) -> &'o mut [u8] {
        let size = size_of_result::<FLOAT>();
        let at = (row * self.rows.n_columns + column) * size;
        &mut out[at..at + N * size]
    }

    /// See [`CodeLayout::WordsOfRows`], low codes first.
    #[target_feature(enable = "avx2,f16c")]
    fn words<const STREAM: bool>(&mut self, n_rows: usize, out: &mut [u8]) {
        let stride = self.rows.codes.stride;
        let n_columns = self.rows.n_columns;
        for tile in (0..n_rows).step_by(TILE) {
            let n = TILE.min(n_rows - tile);
            for chunk in (0..n_columns).step_by(CHUNK) {
                self.begin_chunk((tile, n), chunk);
                let width = CHUNK.min(n_columns - chunk);
                let at = chunk / 8 * stride + 4 * tile;
                self.gather::<WORDS_LEN>(at, width / 8, 4 * n);
                let next = at + CHUNK / 8 * stride;
                for row in (0..n).step_by(8) {
                    self.ask::<WORDS_LEN>(next, row / 8, 4 * n);
                    for column in (0..width).step_by(64) {
                        let first = column / 8 * (WORDS_LEN + GAP) + 4 * row;
                        let line = |line| vector_at(&self.pieces, first + line * (WORDS_LEN + GAP));
                        // In the order that lookups need, which saves a permutation of each row.
                        let block = transpose8([0, 2, 4, 6, 1, 3, 5, 7].map(line));
                        for (i, packed) in block.into_iter().enumerate() {
                            let at = (tile + row + i, chunk + column);
                            let out = self.piece::<64>(out, at);
                            let codes = ordered_codes::<LOW_FIRST, FLOAT>(packed);
                            let halves = out.chunks_exact_mut(32 * size_of_result::<FLOAT>());
                            for (half, (codes, out)) in codes.into_iter().zip(halves).enumerate() {
                                let planes = self.planes(row + i, column + 32 * half);
                                put_results::<MANY, FLOAT, STREAM>(&planes, codes, out);
                            }
                        }
                    }
                }
            }
        }
    }

    /// See [`CodeLayout::Columns`], two codes to a byte.
    #[target_feature(enable = "avx2,f16c")]
    fn columns<const SOURCE: usize, const STREAM: bool>(&mut self, n_rows: usize, out: &mut [u8]) {
        let stride = self.rows.codes.stride;
        let n_columns = self.rows.n_columns;
        for tile in (0..n_rows).step_by(TILE) {
            let n = TILE.min(n_rows - tile);
            for chunk in (0..n_columns).step_by(CHUNK) {
                self.begin_chunk((tile, n), chunk);
                let width = CHUNK.min(n_columns - chunk);
                let at = chunk * stride + tile / 2;
                self.gather::<COLUMNS_LEN>(at, width, n / 2);
                let next = at + CHUNK * stride;
                for row in (0..n).step_by(32) {
                    for column in (0..width).step_by(32) {
                        self.ask::<COLUMNS_LEN>(next, row / 8 + column / 32, n / 2);
                        let first = column * (COLUMNS_LEN + GAP) + row / 2;
                        let line = |line: usize| {
                            piece_at(&self.pieces, first + line * (COLUMNS_LEN + GAP))
                        };
                        let low = bytes_of_lines::<FLOAT, false>(line);
                        let at = (tile, row, chunk + column);
                        self.sixteen_rows::<SOURCE, STREAM>(low, at, column, out);
                        let high = bytes_of_lines::<FLOAT, true>(line);
                        let at = (tile, row + 16, chunk + column);
                        self.sixteen_rows::<SOURCE, STREAM>(high, at, column, out);
                    }
                }
            }
        }
    }

    /// Looks up eight bytes' codes of 32 lines.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    #[expect(clippy::many_single_char_names, reason = "eight registers, in order")]
    fn sixteen_rows<const SOURCE: usize, const STREAM: bool>(
        &self,
        [a, b, c, d, e, f, g, h]: [__m256i; 8],
        at: (usize, usize, usize),
        column: usize,
        out: &mut [u8],
    ) {
        self.two_rows::<SOURCE, STREAM, 0>(a, at, column, out);
        self.two_rows::<SOURCE, STREAM, 1>(b, at, column, out);
        self.two_rows::<SOURCE, STREAM, 2>(c, at, column, out);
        self.two_rows::<SOURCE, STREAM, 3>(d, at, column, out);
        self.two_rows::<SOURCE, STREAM, 4>(e, at, column, out);
        self.two_rows::<SOURCE, STREAM, 5>(f, at, column, out);
        self.two_rows::<SOURCE, STREAM, 6>(g, at, column, out);
        self.two_rows::<SOURCE, STREAM, 7>(h, at, column, out);
    }

    /// Those of byte `BYTE`. `tile`, `first`: the first of its sixteen rows; `column`, `in_chunk`: the first column.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn two_rows<const SOURCE: usize, const STREAM: bool, const BYTE: usize>(
        &self,
        packed: __m256i,
        (tile, first, column): (usize, usize, usize),
        in_chunk: usize,
        out: &mut [u8],
    ) {
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(packed, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
        let rows = const { rows_of_byte::<SOURCE>(BYTE) };
        for (row, codes) in rows.into_iter().zip([low, high]) {
            let planes = self.planes(first + row, in_chunk);
            let out = self.piece::<32>(out, (tile + first + row, column));
            put_results::<MANY, FLOAT, STREAM>(&planes, codes, out);
        }
    }
}

/// The bytes of 32 codes.
#[inline]
fn piece_at(lines: &[u8], at: usize) -> &[u8; 16] {
    match lines[at..].first_chunk() {
        Some(piece) => piece,
        None => unreachable!("32 codes of a line are there"),
    }
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

/// Bytes 0 to 7 (or 8 to 15) of 32 lines: one register for each, the lines in the order that lookups need.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes_of_lines<'a, const FLOAT: usize, const UPPER: bool>(
    line: impl Fn(usize) -> &'a [u8; 16],
) -> [__m256i; 8] {
    // So many lines in the lower half, as many in the upper half, and so on.
    let run = if FLOAT == F32 { 4 } else { 8 };
    let mut interleaved = [_mm256_setzero_si256(); 8];
    for (i, pair) in interleaved.iter_mut().enumerate() {
        let [first, second] = [i, i + 8].map(|i| {
            let lower = i / run * 2 * run + i % run;
            _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(load16(line(lower))),
                load16(line(lower + run)),
            )
        });
        *pair = if UPPER {
            _mm256_unpackhi_epi8(first, second)
        } else {
            _mm256_unpacklo_epi8(first, second)
        };
    }
    interleave(interleave(interleave(interleaved)))
}

/// Interleaves the bytes of `i` and `i + 4`.
#[target_feature(enable = "avx2")]
#[inline]
#[expect(clippy::many_single_char_names, reason = "eight registers, in order")]
fn interleave([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
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
