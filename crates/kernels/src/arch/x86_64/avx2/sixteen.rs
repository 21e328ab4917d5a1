//! Codes of at most four bits: sixteen results per entry of the grid, looked up with `vpshufb`.
//!
//! The sixteen results are calculated with the portable operations in the portable order; looking one up is then exact,
//! whatever the formula. It takes two passes over a segment, each a short loop: [`build`] calculates the results of all its
//! groups, [`look_up`] takes 64 codes at a time to the output.
//!
//! Results stand in *planes*, one for each of their bytes, because `vpshufb` looks up bytes:
//!
//! ```text
//! codes      c0 c1 c2 ...        one per byte
//! low plane  l[c0] l[c1] ...  )
//! high plane h[c0] h[c1] ...  )  vpunpcklbw, vpunpckhbw:  l[c0] h[c0] l[c1] h[c1] ...
//! ```
//!
//! Both unpack within the two halves of a register. Codes are therefore brought into an order first (quarters 0, 2 | 1, 3
//! for results of two bytes, eighths 0, 2, 4, 6 | 1, 3, 5, 7 for those of four), and everything behind it comes out in order.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_and_si128, _mm_loadl_epi64, _mm_set1_epi8, _mm_setr_epi8,
    _mm_shuffle_epi8, _mm_srli_epi16, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_broadcastsi128_si256, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_cvtepu8_epi32, _mm256_mul_ps, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_permutevar8x32_epi32, _mm256_permutevar8x32_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_shuffle_epi8, _mm256_slli_epi32,
    _mm256_srli_epi16, _mm256_sub_ps, _mm256_unpackhi_epi8, _mm256_unpackhi_epi16,
    _mm256_unpackhi_epi32, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
};

use super::formula::{F16, F32, apply, f16};
use super::lanes::{bf16_one_nan, load, load_ps, load16, put, round_bf16_upper, store, store_ps};
use crate::rows::{CodeMeaning, CodedRows, Entry, Formula, Zeros};
use crate::{Float, Packing, portable};

/// Bytes of the planes of one entry, as they lie in [`build`]'s output: 16 for each byte of a result.
pub(super) const fn table_len<const FLOAT: usize>() -> usize {
    if FLOAT == F32 { 64 } else { 32 }
}

/// Sixteen values, or results.
#[derive(Clone, Copy)]
struct Sixteen(__m256, __m256);

/// The values of sixteen codes before zero point and formula.
fn values(meaning: CodeMeaning<'_>) -> [f32; 16] {
    std::array::from_fn(|code| match meaning {
        CodeMeaning::Integer { flip, zero: _ } => f32::from(code as u8 ^ flip),
        CodeMeaning::Minifloat(format) => format.table()[code],
        CodeMeaning::Table16(table) => table[code],
    })
}

/// Whether results are products and nothing else.
pub(super) fn is_plain(rows: &CodedRows<'_>) -> bool {
    matches!(rows.formula, Formula::Product) && rows.first_rounded_to == Float::F32
}

/// The planes of entries `first..` of the grid, one after the other, as many as `tables` holds. Zero points are small
/// enough for differences to be exact in F32.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn build<const FLOAT: usize>(rows: &CodedRows<'_>, first: usize, tables: &mut [u8]) {
    let values = values(rows.value);
    let tables = tables.chunks_exact_mut(table_len::<FLOAT>());
    let scales = rows.grid.scales.get(first..).unwrap_or_default();
    let scales = &scales[..tables.len().min(scales.len())];
    // Then no product is a NaN. The check is one instruction for many entries; in each table it would be four.
    let is_finite = values.iter().chain(scales).all(|v| v.is_finite());
    if !is_plain(rows) || scales.is_empty() || !is_finite {
        let values = sixteen(&values);
        for (at, table) in (first..).zip(tables) {
            let entry = rows.entry(at);
            put_planes::<FLOAT, true>(table, general(rows, entry, less(values, entry.zero)));
        }
        return;
    }
    let values = sixteen(&values);
    match rows.value {
        CodeMeaning::Integer {
            flip: _,
            zero: Zeros::Each(zeros),
        } => {
            for ((table, &scale), &zero) in tables.zip(scales).zip(&zeros[first..]) {
                put_planes::<FLOAT, false>(table, times(less(values, zero), scale));
            }
        }
        CodeMeaning::Integer {
            flip: _,
            zero: Zeros::Fixed(zero),
        } => {
            let values = less(values, zero);
            for (table, &scale) in tables.zip(scales) {
                put_planes::<FLOAT, false>(table, times(values, scale));
            }
        }
        CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => {
            for (table, &scale) in tables.zip(scales) {
                put_planes::<FLOAT, false>(table, times(values, scale));
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn sixteen(values: &[f32; 16]) -> Sixteen {
    let (vectors, _) = values.as_chunks();
    Sixteen(load_ps(&vectors[0]), load_ps(&vectors[1]))
}

#[target_feature(enable = "avx2")]
#[inline]
fn less(values: Sixteen, zero: i32) -> Sixteen {
    let zero = _mm256_set1_ps(zero as f32);
    Sixteen(_mm256_sub_ps(values.0, zero), _mm256_sub_ps(values.1, zero))
}

#[target_feature(enable = "avx2")]
#[inline]
fn times(values: Sixteen, scale: f32) -> Sixteen {
    let scale = _mm256_set1_ps(scale);
    Sixteen(
        _mm256_mul_ps(values.0, scale),
        _mm256_mul_ps(values.1, scale),
    )
}

#[target_feature(enable = "avx2,f16c")]
fn general(rows: &CodedRows<'_>, entry: Entry, values: Sixteen) -> Sixteen {
    let values = [values.0, values.1];
    let [low, high] = apply(rows.formula, rows.first_rounded_to, entry, values);
    Sixteen(low, high)
}

/// Rounds sixteen results to the output and writes their planes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn put_planes<const FLOAT: usize, const MAY_BE_NAN: bool>(table: &mut [u8], results: Sixteen) {
    let (table, _) = table.as_chunks_mut::<32>();
    match FLOAT {
        F32 => {
            let results = [results.0, results.1].map(|v| _mm256_castps_si256(v));
            let [low, high] = planes_of_four(results);
            store(&mut table[0], low);
            store(&mut table[1], high);
        }
        F16 => store(&mut table[0], planes_of_words(f16(results.0, results.1))),
        _ if MAY_BE_NAN => {
            let words = bf16_one_nan(results.0, results.1);
            store(&mut table[0], planes_of_words(words));
        }
        _ => {
            // The upper two bytes of rounded F32 bits are the last two planes.
            let rounded = [results.0, results.1].map(|v| round_bf16_upper(v));
            store(&mut table[0], upper_planes(rounded));
        }
    }
}

/// Low bytes of sixteen words in the lower half, their high bytes in the upper.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn planes_of_words(words: __m256i) -> __m256i {
    let low = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
    let high = _mm256_srli_epi16::<8>(words);
    // Quarters: low 0..7, high 0..7 | low 8..15, high 8..15.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(low, high))
}

/// The bytes of eight lanes of 32 bits, by their place in a lane: 0 and 1 in the lower half of each half, 2 and 3 in the
/// upper.
#[target_feature(enable = "avx2")]
#[inline]
fn by_byte(lanes: __m256i) -> __m256i {
    let order = _mm256_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    );
    _mm256_shuffle_epi8(lanes, order)
}

/// Two planes whose pieces of four bytes are in the order 0, 2, 0, 2 | 1, 3, 1, 3.
#[target_feature(enable = "avx2")]
#[inline]
fn sort_pieces(planes: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(planes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// The four planes of sixteen lanes of four bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn planes_of_four(lanes: [__m256i; 2]) -> [__m256i; 2] {
    let [low, high] = lanes.map(|lanes| by_byte(lanes));
    [
        sort_pieces(_mm256_unpacklo_epi32(low, high)),
        sort_pieces(_mm256_unpackhi_epi32(low, high)),
    ]
}

/// The last two of them.
#[target_feature(enable = "avx2")]
#[inline]
fn upper_planes(lanes: [__m256i; 2]) -> __m256i {
    let [low, high] = lanes.map(|lanes| by_byte(lanes));
    sort_pieces(_mm256_unpackhi_epi32(low, high))
}

/// Sources of codes, as constants of [`look_up`].
pub(super) const BYTES: usize = 0;
/// See [`BYTES`].
pub(super) const LOW_FIRST: usize = 1;
/// See [`BYTES`].
pub(super) const HIGH_FIRST: usize = 2;
/// See [`BYTES`].
pub(super) const AWQ: usize = 3;

/// Bytes of 64 codes.
const fn block_len<const SOURCE: usize>() -> usize {
    if SOURCE == BYTES { 64 } else { 32 }
}

/// How many codes share a table, as constants of [`look_up`]: a multiple of 64, or this number.
pub(super) const MANY: usize = 64;

/// Results of a segment. `codes`: packed as `SOURCE` says; `tables`: those of [`build`], from the first code's group on,
/// each for `group` codes; `GROUP`: 16, 32 or [`MANY`].
#[target_feature(enable = "avx2")]
pub(super) fn look_up<
    const SOURCE: usize,
    const GROUP: usize,
    const FLOAT: usize,
    const STREAM: bool,
>(
    codes: &[u8],
    group: usize,
    tables: &[u8],
    out: &mut [u8],
) {
    let size = if FLOAT == F32 { 256 } else { 128 };
    let blocks_per_table = (group / 64).max(1);
    let tables_per_block = (64 / GROUP).max(1);
    let tables = tables.chunks(tables_per_block * table_len::<FLOAT>());
    let codes = codes.chunks(blocks_per_table * block_len::<SOURCE>());
    let outs = out.chunks_mut(blocks_per_table * size);
    for ((tables, codes), out) in tables.zip(codes).zip(outs) {
        let planes = Planes::<GROUP, FLOAT>::load(tables);
        let n_whole = out.len() / size;
        let (whole, rest) = out.split_at_mut(n_whole * size);
        let blocks = codes.chunks_exact(block_len::<SOURCE>());
        for (out, codes) in whole.chunks_exact_mut(size).zip(blocks) {
            planes.block::<STREAM>(codes_of::<SOURCE, FLOAT>(codes), out);
        }
        if !rest.is_empty() {
            let codes = &codes[n_whole * block_len::<SOURCE>()..];
            let mut padded = [0; 64];
            let n = codes.len().min(block_len::<SOURCE>());
            padded[..n].copy_from_slice(&codes[..n]);
            let mut results = [0; 256];
            let codes = codes_of::<SOURCE, FLOAT>(&padded);
            planes.block::<false>(codes, &mut results[..size]);
            rest.copy_from_slice(&results[..rest.len()]);
        }
    }
}

/// 64 codes in two registers, in the order that results of this size need.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_of<const SOURCE: usize, const FLOAT: usize>(codes: &[u8]) -> [__m256i; 2] {
    let (bytes, _) = codes.as_chunks::<32>();
    let mask = _mm256_set1_epi8(15);
    let eighths = |codes, order| _mm256_permutevar8x32_epi32(codes, order);
    if SOURCE == BYTES {
        let codes = [load(&bytes[0]), load(&bytes[1])].map(|c| _mm256_and_si256(c, mask));
        return if FLOAT == F32 {
            let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
            codes.map(|codes| eighths(codes, order))
        } else {
            codes.map(|codes| _mm256_permute4x64_epi64::<0b11_01_10_00>(codes))
        };
    }
    let codes = split::<SOURCE>(&bytes[0]);
    if FLOAT == F32 {
        let order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
        codes.map(|codes| eighths(codes, order))
    } else {
        codes
    }
}

/// 64 codes, two to a byte, in two registers, each with its quarters in the order 0, 2 | 1, 3.
#[target_feature(enable = "avx2")]
#[inline]
fn split<const SOURCE: usize>(packed: &[u8; 32]) -> [__m256i; 2] {
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let packed = _mm256_permutevar8x32_epi32(load(packed), order);
    let mask = _mm256_set1_epi8(15);
    let low = _mm256_and_si256(packed, mask);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
    let (even, odd) = if SOURCE == HIGH_FIRST {
        (high, low)
    } else {
        (low, high)
    };
    let codes = [
        _mm256_unpacklo_epi8(even, odd),
        _mm256_unpackhi_epi8(even, odd),
    ];
    if SOURCE != AWQ {
        return codes;
    }
    // Eight codes stand in the order 0, 2, 4, 6, 1, 3, 5, 7.
    let order = _mm256_setr_epi8(
        0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15, //
        0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15,
    );
    codes.map(|codes| _mm256_shuffle_epi8(codes, order))
}

/// The planes of one to four tables: those of codes 0..16, 16..32, 32..48 and 48..64 of a block. Of fewer tables some are
/// the same.
#[derive(Clone, Copy)]
struct Planes<const GROUP: usize, const FLOAT: usize>([[__m256i; 4]; 4]);

impl<const GROUP: usize, const FLOAT: usize> Planes<GROUP, FLOAT> {
    /// What lies beyond the last table belongs to results that are thrown away.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(tables: &[u8]) -> Self {
        let len = table_len::<FLOAT>();
        Self([0, 1, 2, 3].map(|sixteen| {
            let table = tables.get(sixteen * 16 / GROUP * len..).unwrap_or(tables);
            let table = if table.len() < len { tables } else { table };
            let (planes, _) = table.as_chunks::<16>();
            let plane = |at: usize| _mm256_broadcastsi128_si256(load16(&planes[at]));
            [plane(0), plane(1), plane(len / 16 - 2), plane(len / 16 - 1)]
        }))
    }

    /// The results of 64 codes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn block<const STREAM: bool>(&self, codes: [__m256i; 2], out: &mut [u8]) {
        let (halves, _) = self.0.as_chunks::<2>();
        let out = out.chunks_exact_mut(if FLOAT == F32 { 128 } else { 64 });
        for ((out, codes), planes) in out.zip(codes).zip(halves) {
            let (out, _) = out.as_chunks_mut::<32>();
            if FLOAT == F32 {
                for (out, dwords) in out.iter_mut().zip(Self::dwords(planes, codes)) {
                    put::<STREAM>(out, dwords);
                }
            } else {
                for (out, words) in out.iter_mut().zip(Self::words(planes, codes)) {
                    put::<STREAM>(out, words);
                }
            }
        }
    }

    /// 32 results of two bytes. The quarters of codes 0..16 are the lower ones of each half, so that with tables of
    /// sixteen codes each unpack has its own planes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn words([first, second]: &[[__m256i; 4]; 2], codes: __m256i) -> [__m256i; 2] {
        let plane = |planes: &[__m256i; 4], at: usize| _mm256_shuffle_epi8(planes[at], codes);
        let (low, high) = (plane(first, 0), plane(first, 1));
        let lower = _mm256_unpacklo_epi8(low, high);
        if GROUP > 16 {
            return [lower, _mm256_unpackhi_epi8(low, high)];
        }
        [
            lower,
            _mm256_unpackhi_epi8(plane(second, 0), plane(second, 1)),
        ]
    }

    /// 32 results of four bytes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn dwords([first, second]: &[[__m256i; 4]; 2], codes: __m256i) -> [__m256i; 4] {
        let plane = |planes: &[__m256i; 4], at: usize| _mm256_shuffle_epi8(planes[at], codes);
        let p = [0, 1, 2, 3].map(|at| plane(first, at));
        let q = if GROUP > 16 {
            p
        } else {
            [0, 1, 2, 3].map(|at| plane(second, at))
        };
        let low = [
            _mm256_unpacklo_epi8(p[0], p[1]),
            _mm256_unpackhi_epi8(q[0], q[1]),
        ];
        let high = [
            _mm256_unpacklo_epi8(p[2], p[3]),
            _mm256_unpackhi_epi8(q[2], q[3]),
        ];
        [
            _mm256_unpacklo_epi16(low[0], high[0]),
            _mm256_unpackhi_epi16(low[0], high[0]),
            _mm256_unpacklo_epi16(low[1], high[1]),
            _mm256_unpackhi_epi16(low[1], high[1]),
        ]
    }
}

/// The source of a packing of two codes to a byte.
pub(super) const fn nibbles(packing: Packing) -> Option<usize> {
    match packing {
        Packing::LsbFirst { bits: 4 } | Packing::LsbFirstNoStraddle { bits: 4 } => Some(LOW_FIRST),
        Packing::NibblesHighFirst => Some(HIGH_FIRST),
        Packing::AwqInterleaved => Some(AWQ),
        Packing::Bytes
        | Packing::LsbFirst { .. }
        | Packing::LsbFirstNoStraddle { .. }
        | Packing::Planar { .. } => None,
    }
}

/// 64 codes, two to a byte, to one per byte, in order.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn unpack<const SOURCE: usize>(packed: &[u8; 32], out: &mut [u8; 64]) {
    let (out, _) = out.as_chunks_mut::<32>();
    for (out, codes) in out.iter_mut().zip(split::<SOURCE>(packed)) {
        store(out, _mm256_permute4x64_epi64::<0b11_01_10_00>(codes));
    }
}

/// 32 codes, two to a byte, to one per byte, in order.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn split16<const SOURCE: usize>(packed: __m128i) -> [__m128i; 2] {
    let mask = _mm_set1_epi8(15);
    let low = _mm_and_si128(packed, mask);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(packed), mask);
    let (even, odd) = if SOURCE == HIGH_FIRST {
        (high, low)
    } else {
        (low, high)
    };
    let codes = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
    if SOURCE != AWQ {
        return codes;
    }
    let order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    codes.map(|codes| _mm_shuffle_epi8(codes, order))
}

/// See [`portable::affine::dequantize_table`]. Codes that are all below 16 are looked up in registers.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn dequantize_table(codes: &[u8], table: &[f32; 256], scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one value per code");
    let all = codes.iter().fold(0, |all, code| all | code);
    if codes.len() < 32 || all > 15 {
        return portable::affine::dequantize_table(codes, table, scale, out);
    }
    let (blocks, rest) = codes.as_chunks::<8>();
    let (outs, last) = out.as_chunks_mut::<8>();
    let (vectors, _) = table.as_chunks();
    let scaled = |at: usize| _mm256_mul_ps(load_ps(&vectors[at]), _mm256_set1_ps(scale));
    let sixteen = Sixteen(scaled(0), scaled(1));
    for (out, codes) in outs.iter_mut().zip(blocks) {
        store_ps(out, eight(sixteen, codes));
    }
    portable::affine::dequantize_table(rest, table, scale, last);
}

/// The values of 8 codes below 16.
#[target_feature(enable = "avx2")]
#[inline]
fn eight(table: Sixteen, codes: &[u8; 8]) -> __m256 {
    // SAFETY: 8 readable bytes; the load needs no alignment.
    let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
    let codes = _mm256_cvtepu8_epi32(codes);
    // The lowest three bits of a lane choose; bit 3, as the sign of a lane, chooses the half of the table.
    let low = _mm256_permutevar8x32_ps(table.0, codes);
    let high = _mm256_permutevar8x32_ps(table.1, codes);
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
    _mm256_blendv_ps(low, high, upper)
}
