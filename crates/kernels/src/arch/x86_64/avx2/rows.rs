//! Stored codes to rows of floats in one go: see [`crate::rows`]. Layouts that store the transpose become packed rows first,
//! a tile at a time, and then take the same ways: [`super::transposed`].
//!
//! What does not stay in registers is cut into *segments* of at most [`SEGMENT`] codes, so that it stays in L1: codes that
//! had to be unpacked first, and results on their way past the caches to where no vector lies on its boundary. A segment
//! holds whole groups or lies within one; where nothing goes by way of memory, it is a row.
//!
//! Stored bytes are asked for ahead of time ([`super::lanes::prefetch_ahead`]). Without that, all of this reached 0.5 to 0.7
//! of the rate: the processor's window is full of arithmetic and sees the next miss too late.
//!
//! | codes | formula | way |
//! |---|---|---|
//! | two to a byte | any | [`super::sixteen`], from the stored bytes to the output in registers |
//! | 3 bits, 2 bits to BF16 or F16 | any | the same |
//! | at most 4 bits | any | unpacked in L1, then the same |
//! | FP8 to BF16 | product, scale in the normal range | [`super::minifloat::ScaledFp8`] |
//! | FP8 | any | widened by F16C, formula in F32, rounded |
//! | integers to BF16 or F16 | product, offset added | [`super::wide`], 5 and 6 bits from the stored bytes |
//! | integers | any | the same without F16C |
//! | other tables | any | looked up one by one, formula in F32, rounded |
//!
//! What has no row here (groups cut in mid-byte) is decoded by portable.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_sub_epi32, _mm256_xor_si256,
};
use std::ops::Range;

use super::batch::{Batches, TWO_BF16, TWO_F16};
use super::formula::{BF16, F16, F32, apply, size_of_result, words16, words32};
use super::lanes::{prefetch_ahead, put, store};
use super::minifloat::{E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ, Met, ScaledFp8, from_table, values};
use super::plan::{Plan, SEGMENT, Sharing, Way};
use super::sixteen::{AWQ, BYTES, HIGH_FIRST, LOW_FIRST, MANY, THREE_BITS, look_up, source_of};
use super::tables::is_plain;
use super::wide::Wide;
use super::{stream, transposed, unpack};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Entry, FloatsMut, StoredCodes, Stores};
use crate::{Float, Minifloat, Packing, portable};

/// Results on their way past the caches, in whole lines.
#[repr(align(64))]
struct Aligned([u8; SEGMENT * 4]);

/// See [`portable::rows::decode`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode_rows(rows: &CodedRows<'_>, out: FloatsMut<'_>, stores: Stores) {
    rows.check(&out);
    let way = way_of(rows, &out, stores);
    let Some(plan) = Plan::new(rows, way, float_of(&out)) else {
        return portable::rows::decode(rows, out, stores);
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

/// What the results are.
fn float_of(out: &FloatsMut<'_>) -> Float {
    match out {
        FloatsMut::F32(_) => Float::F32,
        FloatsMut::Bytes(float, _) => *float,
    }
}

/// Vectors are streamed directly where all rows and groups begin on a boundary, of half a vector at least.
fn way_of(rows: &CodedRows<'_>, out: &FloatsMut<'_>, stores: Stores) -> Way {
    let (start, size) = match out {
        FloatsMut::F32(values) => (values.as_ptr().addr(), 4),
        FloatsMut::Bytes(float, bytes) => (bytes.as_ptr().addr(), float.size_bytes()),
    };
    let is_whole = |n: usize| (n * size).is_multiple_of(32);
    let group = rows.grid.columns.min(rows.n_columns);
    match stores {
        Stores::Ordinary => Way::Direct,
        Stores::Streaming
            if start.is_multiple_of(16) && is_whole(rows.n_columns) && is_whole(group) =>
        {
            Way::Direct
        }
        Stores::Streaming => Way::Buffered,
    }
}

/// Floats as the bytes that they are.
pub(super) fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: the same memory, borrowed for as long; bytes need no alignment, and any bytes are floats.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

#[target_feature(enable = "avx2,f16c")]
fn decode<const FLOAT: usize>(rows: &CodedRows<'_>, plan: Plan, out: &mut [u8], stores: Stores) {
    match rows.codes.layout {
        CodeLayout::Rows(_) => decode_lines::<FLOAT>(rows, plan, out, stores),
        CodeLayout::WordsOfRows(_) | CodeLayout::Columns(_) => {
            transposed::decode::<FLOAT>(rows, plan, out, stores);
        }
    }
    if stores == Stores::Streaming {
        stream::fence();
    }
}

/// Lines that are rows.
#[target_feature(enable = "avx2,f16c")]
fn decode_lines<const FLOAT: usize>(
    rows: &CodedRows<'_>,
    plan: Plan,
    out: &mut [u8],
    stores: Stores,
) {
    let mut scratch = Scratch::new(rows, &plan);
    let line_len = rows.n_columns * size_of_result::<FLOAT>();
    let StoredCodes { bytes, stride, .. } = rows.codes;
    for (row, out) in out.chunks_exact_mut(line_len).enumerate() {
        let line = rows.grid.line(row);
        scratch.work.shared.turn_to::<FLOAT>(rows, line);
        let codes = &bytes[row * stride..];
        let columns = 0..rows.n_columns;
        let part = PartOfRow {
            row,
            columns,
            codes,
        };
        part.decode::<FLOAT>((rows, &plan), &mut scratch, stores, out);
    }
}

/// Columns of a row that begin where a segment does.
pub(super) struct PartOfRow<'a> {
    pub(super) row: usize,
    pub(super) columns: Range<usize>,
    /// From the first of the columns on, packed as the plan says.
    pub(super) codes: &'a [u8],
}

impl PartOfRow<'_> {
    /// Decodes it to `out`, one segment after the other.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn decode<const FLOAT: usize>(
        &self,
        (rows, plan): (&CodedRows<'_>, &Plan),
        scratch: &mut Scratch<'_>,
        stores: Stores,
        out: &mut [u8],
    ) {
        let size = size_of_result::<FLOAT>();
        let first = rows.grid.line(self.row) * rows.grid.width(rows.n_columns);
        let mut start = self.columns.start;
        while start < self.columns.end {
            let (columns, entry) = plan.segment(start, self.columns.end);
            start = columns.end;
            let [from, to] = [columns.start, columns.end].map(|at| at - self.columns.start);
            let segment = Segment {
                rows,
                plan,
                codes: &self.codes[byte_of(plan.packing, from)..],
                entry: first + entry,
            };
            segment.write::<FLOAT>(scratch, stores, &mut out[from * size..to * size]);
        }
    }
}

/// Where a code begins that stands first in a unit.
pub(super) fn byte_of(packing: Packing, code: usize) -> usize {
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    code / unit_codes * unit_bytes
}

/// Codes of one row: whole groups, or a part of one.
struct Segment<'a> {
    rows: &'a CodedRows<'a>,
    plan: &'a Plan,
    /// From the first code of the segment on.
    codes: &'a [u8],
    /// Of the first group.
    entry: usize,
}

/// Memory for one segment at a time; of what the plan does not use, there is none.
pub(super) struct Scratch<'a> {
    out: Option<Box<Aligned>>,
    work: Work<'a>,
}

/// What stands between stored codes and results.
struct Work<'a> {
    codes: Vec<u8>,
    batches: Batches<'a>,
    shared: Shared,
}

impl<'a> Scratch<'a> {
    #[target_feature(enable = "avx2")]
    pub(super) fn new(rows: &'a CodedRows<'a>, plan: &Plan) -> Self {
        Self {
            out: None,
            work: Work {
                codes: vec![
                    0;
                    if plan.segment == usize::MAX {
                        0
                    } else {
                        SEGMENT
                    }
                ],
                batches: Batches::new(rows),
                shared: Shared::default(),
            },
        }
    }
}

/// FP8 to BF16 with blocks: what all rows of a block share, calculated once for the line of the grid.
#[derive(Default)]
struct Shared {
    /// The line, if any.
    line: Option<usize>,
    /// The first entry of the line.
    first: usize,
    /// One for each entry of the line.
    scaled: Vec<Option<ScaledFp8>>,
}

impl Shared {
    /// Of an entry of the grid.
    #[inline]
    fn of(&self, entry: usize) -> Option<&ScaledFp8> {
        self.scaled.get(entry.wrapping_sub(self.first))?.as_ref()
    }

    /// Calculates the line's, unless it is there, or no other row uses it.
    #[target_feature(enable = "avx2,f16c")]
    fn turn_to<const FLOAT: usize>(&mut self, rows: &CodedRows<'_>, line: usize) {
        let CodeMeaning::Minifloat(format) = rows.value else {
            return;
        };
        if FLOAT != BF16 || rows.grid.rows == 1 || self.line == Some(line) || !is_plain(rows) {
            return;
        }
        let width = rows.grid.width(rows.n_columns);
        self.first = line * width;
        self.line = Some(line);
        self.scaled.clear();
        let scales = (self.first..self.first + width).map(|at| rows.entry(at).scale);
        match format {
            Minifloat::E4M3 => self
                .scaled
                .extend(scales.map(|s| ScaledFp8::new::<E4M3>(s))),
            Minifloat::E5M2 => self
                .scaled
                .extend(scales.map(|s| ScaledFp8::new::<E5M2>(s))),
            Minifloat::E4M3Fnuz => {
                self.scaled
                    .extend(scales.map(|s| ScaledFp8::new::<E4M3_FNUZ>(s)));
            }
            Minifloat::E5M2Fnuz => {
                self.scaled
                    .extend(scales.map(|s| ScaledFp8::new::<E5M2_FNUZ>(s)));
            }
            Minifloat::E8M0 | Minifloat::E2M3 | Minifloat::E3M2 | Minifloat::E2M1 => {}
        }
    }
}

impl Segment<'_> {
    /// Decodes to memory, past the caches or not.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn write<const FLOAT: usize>(&self, scratch: &mut Scratch<'_>, stores: Stores, out: &mut [u8]) {
        let Scratch { out: buffer, work } = scratch;
        match (stores, self.plan.way) {
            (Stores::Ordinary, _) => self.decode::<FLOAT, false>(work, out),
            (Stores::Streaming, Way::Direct) => self.decode::<FLOAT, true>(work, out),
            (Stores::Streaming, Way::Buffered) => {
                let buffer = buffer.get_or_insert_with(|| Box::new(Aligned([0; SEGMENT * 4])));
                let buffer = &mut buffer.0[..out.len()];
                self.decode::<FLOAT, false>(work, buffer);
                // SAFETY: `decode`, the only caller, ends with the fence.
                unsafe { stream::copy(buffer, out) }
            }
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn decode<const FLOAT: usize, const STREAM: bool>(&self, work: &mut Work<'_>, out: &mut [u8]) {
        let n = out.len() / size_of_result::<FLOAT>();
        if self.plan.is_sixteen && self.plan.sharing != Sharing::Other {
            self.by_source::<FLOAT, STREAM>(n, work, out);
            return;
        }
        let Work {
            codes,
            batches: _,
            shared,
        } = work;
        let codes = match self.plan.wide {
            Some(wide) if wide.bits < 8 => self.codes,
            Some(_) | None => self.unpacked(n, codes),
        };
        match self.rows.value {
            CodeMeaning::Minifloat(format) => match format {
                Minifloat::E4M3 => self.fp8::<E4M3, FLOAT, STREAM>(shared, codes, out),
                Minifloat::E5M2 => self.fp8::<E5M2, FLOAT, STREAM>(shared, codes, out),
                Minifloat::E4M3Fnuz => self.fp8::<E4M3_FNUZ, FLOAT, STREAM>(shared, codes, out),
                Minifloat::E5M2Fnuz => self.fp8::<E5M2_FNUZ, FLOAT, STREAM>(shared, codes, out),
                Minifloat::E8M0 | Minifloat::E2M3 | Minifloat::E3M2 | Minifloat::E2M1 => {
                    self.looked_up::<FLOAT, STREAM>(format.table(), codes, out);
                }
            },
            CodeMeaning::Integer { flip, zero: _ } => {
                self.integers::<FLOAT, STREAM>(flip, codes, out);
            }
            CodeMeaning::Table16(table) => {
                let table = std::array::from_fn(|code| table[code % 16]);
                self.looked_up::<FLOAT, STREAM>(&table, codes, out);
            }
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn by_source<const FLOAT: usize, const STREAM: bool>(
        &self,
        n: usize,
        work: &mut Work<'_>,
        out: &mut [u8],
    ) {
        let Work {
            codes,
            batches,
            shared: _,
        } = work;
        let batches = &*batches;
        if self.plan.is_paired {
            if FLOAT == F16 {
                self.sixteen::<LOW_FIRST, TWO_F16, STREAM>(self.codes, batches, out);
            } else {
                self.sixteen::<LOW_FIRST, TWO_BF16, STREAM>(self.codes, batches, out);
            }
            return;
        }
        match source_of(self.plan.packing) {
            LOW_FIRST => self.sixteen::<LOW_FIRST, FLOAT, STREAM>(self.codes, batches, out),
            HIGH_FIRST => self.sixteen::<HIGH_FIRST, FLOAT, STREAM>(self.codes, batches, out),
            AWQ => self.sixteen::<AWQ, FLOAT, STREAM>(self.codes, batches, out),
            THREE_BITS => self.sixteen::<THREE_BITS, FLOAT, STREAM>(self.codes, batches, out),
            _ => {
                let codes = self.unpacked(n, codes);
                self.sixteen::<BYTES, FLOAT, STREAM>(codes, batches, out);
            }
        }
    }

    /// One code per byte.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn unpacked<'s>(&'s self, n: usize, scratch: &'s mut [u8]) -> &'s [u8] {
        if matches!(
            self.plan.packing,
            Packing::Bytes | Packing::LsbFirst { bits: 8 }
        ) {
            return &self.codes[..n];
        }
        let codes = &mut scratch[..n];
        prefetch_ahead(self.codes.as_ptr());
        unpack::unpack(self.plan.packing, self.codes, codes);
        codes
    }

    /// Groups of 16, 32, or whole blocks of 64 codes, or pairs.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn sixteen<const SOURCE: usize, const RESULT: usize, const STREAM: bool>(
        &self,
        codes: &[u8],
        batches: &Batches<'_>,
        out: &mut [u8],
    ) {
        let first = self.entry;
        match self.plan.sharing {
            Sharing::Sixteen => {
                look_up::<SOURCE, 16, RESULT, STREAM>((codes, 16), batches, first, out);
            }
            Sharing::ThirtyTwo => {
                look_up::<SOURCE, 32, RESULT, STREAM>((codes, 32), batches, first, out);
            }
            Sharing::Blocks(n) => {
                look_up::<SOURCE, MANY, RESULT, STREAM>((codes, n), batches, first, out);
            }
            Sharing::Other => {}
        }
    }

    /// Each group's entry of the grid, codes and output.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn each_group<const FLOAT: usize>(
        &self,
        codes: &[u8],
        out: &mut [u8],
        mut group: impl FnMut(usize, &[u8], &mut [u8]),
    ) {
        let outs = out.chunks_mut(self.plan.group * size_of_result::<FLOAT>());
        for (at, (codes, out)) in codes.chunks(self.plan.group).zip(outs).enumerate() {
            group(self.entry + at, codes, out);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn fp8<const FORMAT: usize, const FLOAT: usize, const STREAM: bool>(
        &self,
        shared: &Shared,
        codes: &[u8],
        out: &mut [u8],
    ) {
        let mut met = Met::none();
        let is_plain = is_plain(self.rows);
        self.each_group::<FLOAT>(codes, out, |at, codes, out| {
            let own;
            let scaled = match shared.of(at) {
                Some(scaled) => Some(scaled),
                None if FLOAT == BF16 && is_plain => {
                    own = ScaledFp8::new::<FORMAT>(self.rows.entry(at).scale);
                    own.as_ref()
                }
                None => None,
            };
            if let Some(&scaled) = scaled {
                each_block::<2, STREAM>(codes, out, |codes| {
                    scaled.block::<FORMAT>(codes, &mut met)
                });
                return;
            }
            let entry = self.rows.entry(at);
            self.blocks::<FLOAT, STREAM, false>(entry, codes, out, |codes| {
                met.look::<FORMAT>(codes);
                values::<FORMAT>(codes)
            });
        });
        if met.any::<FORMAT>() {
            self.looked_up::<FLOAT, STREAM>(Minifloat::ALL[FORMAT].table(), codes, out);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn looked_up<const FLOAT: usize, const STREAM: bool>(
        &self,
        table: &[f32; 256],
        codes: &[u8],
        out: &mut [u8],
    ) {
        self.each_group::<FLOAT>(codes, out, |at, codes, out| {
            let entry = self.rows.entry(at);
            self.blocks::<FLOAT, STREAM, true>(entry, codes, out, |codes| from_table(table, codes));
        });
    }

    #[target_feature(enable = "avx2,f16c")]
    fn integers<const FLOAT: usize, const STREAM: bool>(
        &self,
        flip: u8,
        codes: &[u8],
        out: &mut [u8],
    ) {
        match self.plan.wide {
            Some(wide) if FLOAT != F32 => {
                let groups = (self.entry, self.plan.group);
                wide.decode::<FLOAT, STREAM>(self.rows, groups, (codes, out), |at, codes, out| {
                    self.wide_of_any::<FLOAT>((wide, flip), at, codes, out);
                });
            }
            Some(_) | None => self.each_group::<FLOAT>(codes, out, |at, codes, out| {
                let entry = self.rows.entry(at);
                self.blocks::<FLOAT, STREAM, false>(entry, codes, out, |codes| {
                    integers(codes, flip, entry.zero)
                });
            }),
        }
    }

    /// A group whose scale is no ordinary one.
    #[target_feature(enable = "avx2,f16c")]
    #[inline(never)]
    fn wide_of_any<const FLOAT: usize>(
        &self,
        (wide, flip): (Wide, u8),
        at: usize,
        codes: &[u8],
        out: &mut [u8],
    ) {
        let entry = self.rows.entry(at);
        let packing = Packing::LsbFirst { bits: wide.bits };
        let mut unpacked = [0; SEGMENT];
        let codes = codes.chunks(SEGMENT * wide.bits as usize / 8);
        let outs = out.chunks_mut(SEGMENT * size_of_result::<FLOAT>());
        for (codes, out) in codes.zip(outs) {
            let unpacked = &mut unpacked[..out.len() / size_of_result::<FLOAT>()];
            unpack::unpack(packing, codes, unpacked);
            self.blocks::<FLOAT, false, false>(entry, unpacked, out, |codes| {
                integers(codes, flip, entry.zero)
            });
        }
    }

    /// Values (which may be NaN, or not), formula, output.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn blocks<const FLOAT: usize, const STREAM: bool, const MAY_BE_NAN: bool>(
        &self,
        entry: Entry,
        codes: &[u8],
        out: &mut [u8],
        mut values: impl FnMut(&[u8; 32]) -> [__m256; 4],
    ) {
        let rows = self.rows;
        if is_plain(rows) {
            let scale = _mm256_set1_ps(entry.scale);
            let mut products = |codes: &[u8; 32]| values(codes).map(|v| _mm256_mul_ps(v, scale));
            if FLOAT == F32 {
                each_block::<4, STREAM>(codes, out, |codes| words32(products(codes)));
            } else if !MAY_BE_NAN && entry.scale.is_finite() {
                each_block::<2, STREAM>(codes, out, |codes| {
                    words16::<FLOAT, false>(products(codes))
                });
            } else {
                each_block::<2, STREAM>(codes, out, |codes| {
                    words16::<FLOAT, true>(products(codes))
                });
            }
            return;
        }
        let (formula, first) = (rows.formula, rows.first_rounded_to);
        let mut results = |codes: &[u8; 32]| apply(formula, first, entry, values(codes));
        if FLOAT == F32 {
            each_block::<4, STREAM>(codes, out, |codes| words32(results(codes)));
        } else {
            each_block::<2, STREAM>(codes, out, |codes| words16::<FLOAT, true>(results(codes)));
        }
    }
}

/// The values of 32 integer codes.
#[target_feature(enable = "avx2")]
#[inline]
fn integers(codes: &[u8; 32], flip: u8, zero: i32) -> [__m256; 4] {
    let (flip, zero) = (_mm256_set1_epi32(flip.into()), _mm256_set1_epi32(zero));
    let (eights, _) = codes.as_chunks::<8>();
    [0, 1, 2, 3].map(|i| {
        // SAFETY: 8 readable bytes; the load needs no alignment.
        let eight = unsafe { _mm_loadl_epi64(eights[i].as_ptr().cast()) };
        let codes = _mm256_xor_si256(_mm256_cvtepu8_epi32(eight), flip);
        _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero))
    })
}

/// Writes what `block` makes of each 32 codes, `N` vectors; the last codes padded.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn each_block<const N: usize, const STREAM: bool>(
    codes: &[u8],
    out: &mut [u8],
    mut block: impl FnMut(&[u8; 32]) -> [__m256i; N],
) {
    let (blocks, rest) = codes.as_chunks::<32>();
    let (vectors, last) = out.split_at_mut(blocks.len() * N * 32);
    let (vectors, _) = vectors.as_chunks_mut::<32>();
    for (codes, out) in blocks.iter().zip(vectors.as_chunks_mut::<N>().0) {
        prefetch_ahead(codes.as_ptr());
        for (out, results) in out.iter_mut().zip(block(codes)) {
            put::<STREAM>(out, results);
        }
    }
    if !rest.is_empty() {
        let mut padded = [0; 32];
        padded[..rest.len()].copy_from_slice(rest);
        let mut bytes = [[0; 32]; N];
        for (bytes, results) in bytes.iter_mut().zip(block(&padded)) {
            store(bytes, results);
        }
        last.copy_from_slice(&bytes.as_flattened()[..last.len()]);
    }
}
