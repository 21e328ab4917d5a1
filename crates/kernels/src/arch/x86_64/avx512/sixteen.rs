//! Codes of at most four bits: sixteen results per entry of the grid.
//!
//! [`build`] calculates the results of all groups of a segment, sixteen lanes at a time; [`look_up`] takes 32 codes (F32: 16)
//! at a time to the output. `vpermw` takes the lowest five bits of a lane: a table stands in both halves of its register, so
//! the fifth bit does not matter and fields need no mask; or, with groups of 16, the halves are two groups' tables and the
//! bit is set to choose. `vpermd` takes four bits.
//!
//! ```text
//! packed       n0 n1 n2 n3 n4 n5 n6 n7      32 bits, copied to as many 64-bit lanes as their results fill
//! multishift   n0 n1 n2 n3 | n4 n5 n6 n7    one field per result, in order, whatever order they are stored in
//! vpermw       r0 r1 r2 r3 | r4 r5 r6 r7
//! ```

use std::arch::x86_64::{
    __m512, __m512i, _mm_cvtsi64_si128, _mm512_and_si512, _mm512_broadcast_i32x4,
    _mm512_broadcast_i64x4, _mm512_castps_si512, _mm512_castsi256_si512, _mm512_cvtepu8_epi16,
    _mm512_cvtepu8_epi32, _mm512_inserti64x4, _mm512_multishift_epi64_epi8, _mm512_or_si512,
    _mm512_permutexvar_epi16, _mm512_permutexvar_epi32, _mm512_set1_epi16, _mm512_set1_ps,
    _mm512_sub_ps,
};

use super::formula::{F32, apply, size_of_result, words};
use super::lanes::{load, load_ps, load16, load32, put, store, store32};
use crate::Packing;
use crate::rows::{CodeMeaning, CodedRows};

/// Bytes of the results of one entry.
pub(super) const fn table_len<const FLOAT: usize>() -> usize {
    16 * size_of_result::<FLOAT>()
}

/// The values of sixteen codes before zero point and formula.
fn values(meaning: CodeMeaning<'_>) -> [f32; 16] {
    std::array::from_fn(|code| match meaning {
        CodeMeaning::Integer { flip, zero: _ } => f32::from(code as u8 ^ flip),
        CodeMeaning::Minifloat(format) => format.table()[code],
        CodeMeaning::Table16(table) => table[code],
    })
}

/// The results of entries `first..` of the grid, one after the other, as many as `tables` holds. Zero points are small
/// enough for differences to be exact in F32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) fn build<const FLOAT: usize>(rows: &CodedRows<'_>, first: usize, tables: &mut [u8]) {
    let values = load_ps(&values(rows.value));
    let is_integer = matches!(rows.value, CodeMeaning::Integer { .. });
    for (at, table) in (first..).zip(tables.chunks_exact_mut(table_len::<FLOAT>())) {
        let entry = rows.entry(at);
        let value = if is_integer {
            _mm512_sub_ps(values, _mm512_set1_ps(entry.zero as f32))
        } else {
            values
        };
        let result = apply(rows.formula, rows.first_rounded_to, entry, value);
        put_table::<FLOAT>(table, result);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn put_table<const FLOAT: usize>(table: &mut [u8], results: __m512) {
    if FLOAT == F32 {
        if let Some(table) = table.first_chunk_mut() {
            store(table, _mm512_castps_si512(results));
        }
    } else if let Some(table) = table.first_chunk_mut() {
        store32(table, words::<FLOAT>(results));
    }
}

/// Sources of codes, as constants of [`look_up`].
pub(super) const BYTES: usize = 0;
/// See [`BYTES`].
pub(super) const LOW_FIRST: usize = 1;
/// See [`BYTES`].
pub(super) const HIGH_FIRST: usize = 2;
/// See [`BYTES`].
pub(super) const AWQ: usize = 3;

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

/// The lowest bit of code `code` of eight in their 32 bits.
const fn shift<const SOURCE: usize>(code: usize) -> usize {
    4 * match SOURCE {
        LOW_FIRST => code,
        HIGH_FIRST => code ^ 1,
        _ => code / 2 + code % 2 * 4,
    }
}

/// Codes per vector of results.
const fn lanes<const FLOAT: usize>() -> usize {
    64 / size_of_result::<FLOAT>()
}

/// Bytes of the codes of one vector of results.
const fn block_len<const SOURCE: usize, const FLOAT: usize>() -> usize {
    if SOURCE == BYTES {
        lanes::<FLOAT>()
    } else {
        lanes::<FLOAT>() / 2
    }
}

/// What brings the codes of a vector to lanes as wide as its results.
#[derive(Clone, Copy)]
struct Spread<const SOURCE: usize, const FLOAT: usize> {
    /// Which 32 bits each 64-bit lane gets.
    copies: __m512i,
    /// Where the field of each byte begins. Only the lowest byte of a lane matters.
    shifts: __m512i,
}

impl<const SOURCE: usize, const FLOAT: usize> Spread<SOURCE, FLOAT> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn new() -> Self {
        let size = size_of_result::<FLOAT>();
        let mut copies = [0; 64];
        let mut shifts = [0; 64];
        for code in 0..lanes::<FLOAT>() {
            let byte = code * size;
            copies[byte / 8 * 8] = (code / 8) as u8;
            shifts[byte] = shift::<SOURCE>(code % 8) as u8;
        }
        Self {
            copies: load(&copies),
            shifts: load(&shifts),
        }
    }

    /// Codes in the lowest four bits of lanes; the others are rubbish.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    fn codes(self, packed: &[u8]) -> __m512i {
        let packed = match (SOURCE, FLOAT) {
            (BYTES, F32) => return _mm512_cvtepu8_epi32(load16(first(packed))),
            (BYTES, _) => return _mm512_cvtepu8_epi16(load32(first(packed))),
            (_, F32) => _mm_cvtsi64_si128(i64::from_le_bytes(*first(packed))),
            (_, _) => load16(first(packed)),
        };
        let copies = _mm512_permutexvar_epi32(self.copies, _mm512_broadcast_i32x4(packed));
        _mm512_multishift_epi64_epi8(self.shifts, copies)
    }
}

#[inline]
fn first<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    match bytes.first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("blocks have the length of their source"),
    }
}

/// Results of a segment. `codes`: packed as `SOURCE` says; `tables`: those of [`build`], from the first code's group on,
/// each for `group` codes: 16, a multiple of 32, or all of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) fn look_up<const SOURCE: usize, const FLOAT: usize, const STREAM: bool>(
    codes: &[u8],
    group: usize,
    tables: &[u8],
    out: &mut [u8],
) {
    if group == 16 && FLOAT != F32 {
        each_table::<SOURCE, FLOAT, STREAM, true>(codes, 32, tables, out);
    } else {
        each_table::<SOURCE, FLOAT, STREAM, false>(codes, group, tables, out);
    }
}

/// `n_codes` share a register of results: one table, or two (`PAIRS`).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn each_table<const SOURCE: usize, const FLOAT: usize, const STREAM: bool, const PAIRS: bool>(
    codes: &[u8],
    n_codes: usize,
    tables: &[u8],
    out: &mut [u8],
) {
    let spread = Spread::<SOURCE, FLOAT>::new();
    let len = block_len::<SOURCE, FLOAT>();
    let code_len = n_codes.div_ceil(lanes::<FLOAT>()) * len;
    let tables = tables.chunks(table_len::<FLOAT>() * if PAIRS { 2 } else { 1 });
    let outs = out.chunks_mut(n_codes * size_of_result::<FLOAT>());
    for ((table, codes), out) in tables.zip(codes.chunks(code_len)).zip(outs) {
        let table = load_table::<FLOAT>(table);
        let (vectors, rest) = out.as_chunks_mut::<64>();
        // Not zipped with `chunks_exact`: in release builds its `next` stayed a call for each vector.
        let mut codes = codes;
        for out in vectors {
            let (block, behind) = codes.split_at(len);
            codes = behind;
            put::<STREAM>(out, results::<FLOAT, PAIRS>(table, spread.codes(block)));
        }
        if !rest.is_empty() {
            let mut padded = [0; 32];
            let n = codes.len().min(len);
            padded[..n].copy_from_slice(&codes[..n]);
            let mut bytes = [0; 64];
            let codes = spread.codes(&padded);
            store(&mut bytes, results::<FLOAT, PAIRS>(table, codes));
            rest.copy_from_slice(&bytes[..rest.len()]);
        }
    }
}

/// One table in both halves, or two; F32: one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn load_table<const FLOAT: usize>(table: &[u8]) -> __m512i {
    if let Some(whole) = table.first_chunk() {
        return load(whole);
    }
    _mm512_broadcast_i64x4(load32(first(table)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn results<const FLOAT: usize, const PAIRS: bool>(table: __m512i, codes: __m512i) -> __m512i {
    if FLOAT == F32 {
        return _mm512_permutexvar_epi32(codes, table);
    }
    if !PAIRS {
        return _mm512_permutexvar_epi16(codes, table);
    }
    let codes = _mm512_and_si512(codes, _mm512_set1_epi16(0x000f));
    let upper = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(std::arch::x86_64::_mm256_setzero_si256()),
        std::arch::x86_64::_mm256_set1_epi16(0x0010),
    );
    _mm512_permutexvar_epi16(_mm512_or_si512(codes, upper), table)
}
