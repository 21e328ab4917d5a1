//! Stored codes to rows of floats in one go: see [`crate::rows`].
//!
//! As in the AVX2 backend, a row is cut into *segments* of at most [`SEGMENT`] codes that hold whole groups or lie within
//! one, so that codes that had to be unpacked, and results on their way past the caches, stay in L1.
//!
//! | codes | formula | way |
//! |---|---|---|
//! | at most 4 bits | any | [`super::sixteen`], two to a byte from the stored bytes in registers, others unpacked in L1 |
//! | FP8 to BF16, large groups or blocks | product | [`super::fp8::Scaled`], tables of the last line of the grid are kept |
//! | FP8 | any | widened as F16, formula in F32, rounded |
//! | integers | any | formula in F32, rounded |
//! | other tables | any | looked up one by one, formula in F32, rounded |
//!
//! Layouts that store the transpose, and groups cut in mid-byte, are left to the AVX2 backend.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_sub_epi32, _mm512_xor_si512,
};
use std::ops::Range;

use super::super::avx2;
use super::formula::{BF16, F16, F32, apply, is_plain, size_of_result, words32};
use super::fp8::{E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ, Scaled, from_table, special, values};
use super::lanes::{load, load_some, load16, put, store};
use super::sixteen::{AWQ, BYTES, HIGH_FIRST, LOW_FIRST, build, look_up, nibbles, table_len};
use super::{stream, unpack};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Entry, FloatsMut, Stores, Zeros};
use crate::{Float, Minifloat, Packing};

/// Codes that are decoded at once: 4 or 8 KiB of results.
const SEGMENT: usize = 2048;

/// The smallest group that has a table of sixteen results.
const SMALLEST_GROUP: usize = 16;

/// Lines of cache: results that are streamed from them go in whole lines.
#[repr(align(64))]
struct Aligned<const N: usize>([u8; N]);

/// See [`crate::portable::rows::decode`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) fn decode_rows(rows: &CodedRows<'_>, out: FloatsMut<'_>, stores: Stores) {
    rows.check(&out);
    let Some(plan) = Plan::new(rows) else {
        return (avx2::BACKEND.decode_rows)(rows, out, stores);
    };
    match out {
        FloatsMut::F32(values) => {
            // "Before any rounding".
            let rows = CodedRows {
                first_rounded_to: Float::F32,
                ..*rows
            };
            decode::<F32>(&rows, plan, bytes_of(values), stores);
        }
        FloatsMut::Bytes(Float::F32, bytes) => decode::<F32>(rows, plan, bytes, stores),
        FloatsMut::Bytes(Float::F16, bytes) => decode::<F16>(rows, plan, bytes, stores),
        FloatsMut::Bytes(Float::Bf16, bytes) => decode::<BF16>(rows, plan, bytes, stores),
    }
}

/// Floats as the bytes that they are.
fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: the same memory, borrowed for as long; bytes need no alignment, and any bytes are floats.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// How a row is cut.
#[derive(Clone, Copy)]
struct Plan {
    packing: Packing,
    /// Columns of a group; no more than a row has.
    group: usize,
    /// Columns of a segment.
    segment: usize,
    /// Whether each group has a table of sixteen results.
    is_sixteen: bool,
}

impl Plan {
    /// `None` for what is left to the AVX2 backend.
    fn new(rows: &CodedRows<'_>) -> Option<Self> {
        let CodeLayout::Rows(packing) = rows.codes.layout else {
            return None;
        };
        if rows.n_columns == 0 || rows.n_rows == 0 || !zeros_are_small(rows) {
            return None;
        }
        let group = rows.grid.columns.min(rows.n_columns);
        let is_whole = group == rows.n_columns;
        let (unit, _) = packing.codes_per_unit();
        if !is_whole && !group.is_multiple_of(unit) || !SEGMENT.is_multiple_of(unit) {
            return None;
        }
        let is_table = matches!(rows.value, CodeMeaning::Table16(_)) || packing.bits() <= 4;
        Some(Self {
            packing,
            group,
            // Whole groups, or a part of one: never one and a part of the next.
            segment: match SEGMENT / group {
                0 => SEGMENT,
                groups => groups * group,
            },
            is_sixteen: is_table
                && (is_whole || group == SMALLEST_GROUP || group.is_multiple_of(32)),
        })
    }

    /// The segment that starts at column `start`, and the entry of its first group in a line of the grid.
    fn segment(&self, start: usize, n_columns: usize) -> (Range<usize>, usize) {
        let entry = start / self.group;
        let end = if self.segment > self.group {
            start + self.segment
        } else {
            (start + self.segment).min((entry + 1) * self.group)
        };
        (start..end.min(n_columns), entry)
    }
}

/// Whether `code - zero` is exact in F32, however it is calculated. No real zero point is larger.
fn zeros_are_small(rows: &CodedRows<'_>) -> bool {
    let is_small = |&zero: &i32| zero.unsigned_abs() < 1 << 23;
    match rows.value {
        CodeMeaning::Integer { flip: _, zero } => match zero {
            Zeros::Fixed(zero) => is_small(&zero),
            Zeros::Each(zeros) => zeros.iter().all(is_small),
        },
        CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => true,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn decode<const FLOAT: usize>(rows: &CodedRows<'_>, plan: Plan, out: &mut [u8], stores: Stores) {
    let mut scratch = Scratch::new();
    let size = size_of_result::<FLOAT>();
    for (row, line) in out.chunks_exact_mut(rows.n_columns * size).enumerate() {
        let grid_line = rows.grid.line(row);
        scratch.work.shared.turn_to::<FLOAT>(rows, plan, grid_line);
        let mut start = 0;
        while start < rows.n_columns {
            let (columns, entry) = plan.segment(start, rows.n_columns);
            start = columns.end;
            let (unit_codes, unit_bytes) = plan.packing.codes_per_unit();
            let first = row * rows.codes.stride + columns.start / unit_codes * unit_bytes;
            let segment = Segment {
                rows,
                plan,
                codes: &rows.codes.bytes[first..],
                entry: grid_line * rows.grid.width(rows.n_columns) + entry,
            };
            let out = &mut line[columns.start * size..columns.end * size];
            segment.write::<FLOAT>(&mut scratch, stores, out);
        }
    }
    if stores == Stores::Streaming {
        stream::fence();
    }
}

/// Memory for one segment at a time.
struct Scratch {
    out: Aligned<{ SEGMENT * 4 }>,
    work: Work,
}

/// What stands between stored codes and results.
struct Work {
    codes: Aligned<SEGMENT>,
    tables: Aligned<{ SEGMENT / SMALLEST_GROUP * 64 }>,
    shared: Shared,
}

impl Scratch {
    fn new() -> Self {
        Self {
            out: Aligned([0; SEGMENT * 4]),
            work: Work {
                codes: Aligned([0; SEGMENT]),
                tables: Aligned([0; SEGMENT / SMALLEST_GROUP * 64]),
                shared: Shared::default(),
            },
        }
    }
}

/// FP8 to BF16: tables for the entries of a line of the grid, kept for the rows and segments that share them.
#[derive(Default)]
struct Shared {
    /// The line, if any.
    line: Option<usize>,
    /// The first entry of the line.
    first: usize,
    /// One for each entry of the line; `None` where a product may be a NaN.
    scaled: Vec<Option<Scaled>>,
}

impl Shared {
    /// Of an entry of the grid.
    #[inline]
    fn of(&self, entry: usize) -> Option<&Scaled> {
        self.scaled.get(entry.wrapping_sub(self.first))?.as_ref()
    }

    /// Calculates the line's, unless they are there, or would cost more than they save: a table is about as many
    /// instructions as 128 codes without one.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    fn turn_to<const FLOAT: usize>(&mut self, rows: &CodedRows<'_>, plan: Plan, line: usize) {
        let CodeMeaning::Minifloat(format) = rows.value else {
            return;
        };
        let smallest = if rows.grid.rows == 1 { 512 } else { 64 };
        let is_too_small = plan.group < smallest;
        if FLOAT != BF16 || !is_fp8(format) || is_too_small || !is_plain(rows) {
            return;
        }
        if self.line == Some(line) {
            return;
        }
        let width = rows.grid.width(rows.n_columns);
        self.first = line * width;
        self.line = Some(line);
        self.scaled.clear();
        for at in self.first..self.first + width {
            let scale = rows.entry(at).scale;
            let scaled = Scaled::new(format.table(), scale);
            self.scaled.push(scale.is_finite().then_some(scaled));
        }
    }
}

const fn is_fp8(format: Minifloat) -> bool {
    match format {
        Minifloat::E4M3 | Minifloat::E5M2 | Minifloat::E4M3Fnuz | Minifloat::E5M2Fnuz => true,
        Minifloat::E8M0 | Minifloat::E2M3 | Minifloat::E3M2 | Minifloat::E2M1 => false,
    }
}

/// Codes of one row: whole groups, or a part of one.
struct Segment<'a> {
    rows: &'a CodedRows<'a>,
    plan: Plan,
    /// From the first code of the segment on.
    codes: &'a [u8],
    /// Of the first group.
    entry: usize,
}

impl Segment<'_> {
    /// Decodes to memory, past the caches or not.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn write<const FLOAT: usize>(&self, scratch: &mut Scratch, stores: Stores, out: &mut [u8]) {
        // Vectors stay aligned from one group, or pair of groups, to the next.
        let group_len = self.plan.group * size_of_result::<FLOAT>();
        let is_pair = self.plan.is_sixteen && group_len == 32;
        let is_aligned = (is_pair || group_len.is_multiple_of(64) || out.len() <= group_len)
            && out.as_ptr().addr().is_multiple_of(64);
        match stores {
            Stores::Ordinary => self.decode::<FLOAT, false>(&mut scratch.work, out),
            Stores::Streaming if is_aligned => self.decode::<FLOAT, true>(&mut scratch.work, out),
            Stores::Streaming => {
                let buffer = &mut scratch.out.0[..out.len()];
                self.decode::<FLOAT, false>(&mut scratch.work, buffer);
                // SAFETY: `decode`, the only caller, ends with the fence.
                unsafe { stream::copy(buffer, out) }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn decode<const FLOAT: usize, const STREAM: bool>(&self, work: &mut Work, out: &mut [u8]) {
        let Work {
            codes,
            tables,
            shared,
        } = work;
        let group = self.plan.group;
        let n = out.len() / size_of_result::<FLOAT>();
        if self.plan.is_sixteen {
            let tables = &mut tables.0[..n.div_ceil(group) * table_len::<FLOAT>()];
            build::<FLOAT>(self.rows, self.entry, tables);
            return match nibbles(self.plan.packing) {
                Some(LOW_FIRST) => self.sixteen::<LOW_FIRST, FLOAT, STREAM>(tables, out),
                Some(HIGH_FIRST) => self.sixteen::<HIGH_FIRST, FLOAT, STREAM>(tables, out),
                Some(_) => self.sixteen::<AWQ, FLOAT, STREAM>(tables, out),
                None => {
                    let codes = self.unpacked(n, codes);
                    look_up::<BYTES, FLOAT, STREAM>(codes, group, tables, out);
                }
            };
        }
        let codes = self.unpacked(n, codes);
        let outs = out.chunks_mut(group * size_of_result::<FLOAT>());
        for (at, (codes, out)) in codes.chunks(group).zip(outs).enumerate() {
            self.group::<FLOAT, STREAM>(shared, self.entry + at, codes, out);
        }
    }

    /// Codes that stand two to a byte.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn sixteen<const SOURCE: usize, const FLOAT: usize, const STREAM: bool>(
        &self,
        tables: &[u8],
        out: &mut [u8],
    ) {
        look_up::<SOURCE, FLOAT, STREAM>(self.codes, self.plan.group, tables, out);
    }

    /// One code per byte.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn unpacked<'s>(&'s self, n: usize, scratch: &'s mut Aligned<SEGMENT>) -> &'s [u8] {
        if matches!(
            self.plan.packing,
            Packing::Bytes | Packing::LsbFirst { bits: 8 }
        ) {
            return &self.codes[..n];
        }
        let codes = &mut scratch.0[..n];
        unpack::unpack(self.plan.packing, self.codes, codes);
        codes
    }

    /// One group of wider codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn group<const FLOAT: usize, const STREAM: bool>(
        &self,
        shared: &Shared,
        at: usize,
        codes: &[u8],
        out: &mut [u8],
    ) {
        let entry = self.rows.entry(at);
        match self.rows.value {
            CodeMeaning::Minifloat(format) => match format {
                Minifloat::E4M3 => self.fp8::<E4M3, FLOAT, STREAM>(shared, at, codes, out),
                Minifloat::E5M2 => self.fp8::<E5M2, FLOAT, STREAM>(shared, at, codes, out),
                Minifloat::E4M3Fnuz => self.fp8::<E4M3_FNUZ, FLOAT, STREAM>(shared, at, codes, out),
                Minifloat::E5M2Fnuz => self.fp8::<E5M2_FNUZ, FLOAT, STREAM>(shared, at, codes, out),
                Minifloat::E8M0 | Minifloat::E2M3 | Minifloat::E3M2 | Minifloat::E2M1 => {
                    self.looked_up::<FLOAT, STREAM>(format.table(), entry, codes, out);
                }
            },
            CodeMeaning::Integer { flip, zero: _ } => {
                self.blocks::<FLOAT, STREAM>(entry, codes, out, |codes| {
                    integers(codes, flip, entry.zero)
                });
            }
            CodeMeaning::Table16(table) => {
                let table = std::array::from_fn(|code| table[code % 16]);
                self.looked_up::<FLOAT, STREAM>(&table, entry, codes, out);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    fn fp8<const FORMAT: usize, const FLOAT: usize, const STREAM: bool>(
        &self,
        shared: &Shared,
        at: usize,
        codes: &[u8],
        out: &mut [u8],
    ) {
        let entry = self.rows.entry(at);
        // Looking while decoding, and decoding again if need be, costs less than a pass over the codes before.
        let mut met = 0;
        if let Some(scaled) = shared.of(at) {
            each_block::<64, 2, STREAM>(codes, out, |codes| {
                let codes = load(codes);
                met |= special::<FORMAT>(codes);
                scaled.block(codes)
            });
        } else {
            self.blocks::<FLOAT, STREAM>(entry, codes, out, |codes| {
                met |= special::<FORMAT>(load_some(codes));
                values::<FORMAT>(codes)
            });
        }
        if met != 0 {
            self.looked_up::<FLOAT, STREAM>(Minifloat::ALL[FORMAT].table(), entry, codes, out);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    fn looked_up<const FLOAT: usize, const STREAM: bool>(
        &self,
        table: &[f32; 256],
        entry: Entry,
        codes: &[u8],
        out: &mut [u8],
    ) {
        self.blocks::<FLOAT, STREAM>(entry, codes, out, |codes| from_table(table, codes));
    }

    /// Values, formula, output.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn blocks<const FLOAT: usize, const STREAM: bool>(
        &self,
        entry: Entry,
        codes: &[u8],
        out: &mut [u8],
        mut values: impl FnMut(&[u8; 32]) -> [__m512; 2],
    ) {
        let (formula, first) = (self.rows.formula, self.rows.first_rounded_to);
        // What nearly all integers and small floats have stays free of the other formulas' branches.
        if is_plain(self.rows) {
            let scale = _mm512_set1_ps(entry.scale);
            write_values::<FLOAT, STREAM>(codes, out, |codes| {
                let [a, b] = values(codes);
                [_mm512_mul_ps(a, scale), _mm512_mul_ps(b, scale)]
            });
        } else {
            // Arrays are written out: `array::map` on vectors of 512 bits stayed a call in release builds.
            write_values::<FLOAT, STREAM>(codes, out, |codes| {
                let [a, b] = values(codes);
                [
                    apply(formula, first, entry, a),
                    apply(formula, first, entry, b),
                ]
            });
        }
    }
}

/// Writes the results of each 32 codes in the dtype of the output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn write_values<const FLOAT: usize, const STREAM: bool>(
    codes: &[u8],
    out: &mut [u8],
    mut results: impl FnMut(&[u8; 32]) -> [__m512; 2],
) {
    if FLOAT == F32 {
        each_block::<32, 2, STREAM>(codes, out, |codes| {
            let [a, b] = results(codes);
            [_mm512_castps_si512(a), _mm512_castps_si512(b)]
        });
    } else {
        each_block::<32, 1, STREAM>(codes, out, |codes| [words32::<FLOAT>(results(codes))]);
    }
}

/// The values of 32 integer codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn integers(codes: &[u8; 32], flip: u8, zero: i32) -> [__m512; 2] {
    let (flip, zero) = (_mm512_set1_epi32(flip.into()), _mm512_set1_epi32(zero));
    let (halves, _) = codes.as_chunks::<16>();
    let low = _mm512_xor_si512(_mm512_cvtepu8_epi32(load16(&halves[0])), flip);
    let high = _mm512_xor_si512(_mm512_cvtepu8_epi32(load16(&halves[1])), flip);
    [
        _mm512_cvtepi32_ps(_mm512_sub_epi32(low, zero)),
        _mm512_cvtepi32_ps(_mm512_sub_epi32(high, zero)),
    ]
}

/// Writes what `block` makes of each `CODES` codes, `N` vectors; the last codes padded.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn each_block<const CODES: usize, const N: usize, const STREAM: bool>(
    codes: &[u8],
    out: &mut [u8],
    mut block: impl FnMut(&[u8; CODES]) -> [__m512i; N],
) {
    let mut padded = [0; CODES];
    for (at, out) in out.chunks_mut(N * 64).enumerate() {
        let codes = &codes[at * CODES..];
        let whole = codes.first_chunk();
        if whole.is_none() {
            padded[..codes.len()].copy_from_slice(codes);
        }
        // One call for whole blocks and for the last codes: with two it is not inlined.
        let results = block(whole.unwrap_or(&padded));
        let vectors = out.as_chunks_mut::<64>().0;
        if whole.is_some() && vectors.len() == N {
            for at in 0..N {
                put::<STREAM>(&mut vectors[at], results[at]);
            }
        } else {
            let mut bytes = [[0; 64]; N];
            for at in 0..N {
                store(&mut bytes[at], results[at]);
            }
            out.copy_from_slice(&bytes.as_flattened()[..out.len()]);
        }
    }
}
