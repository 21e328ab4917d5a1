//! Codes of at most four bits: sixteen results per entry of the grid, looked up with `vpshufb`.
//!
//! The results of some groups ([`super::batch`]) are calculated right before their codes are looked up, so that the
//! processor calculates for some while the stores of others wait for memory. (The tables of all groups of a segment first, then
//! all codes, was tried: the memory idles meanwhile, a quarter of the rate.)
//!
//! ```text
//! codes      c0 c1 c2 ...        one per byte
//! low plane  l[c0] l[c1] ...  )
//! high plane h[c0] h[c1] ...  )  vpunpcklbw, vpunpckhbw:  l[c0] h[c0] l[c1] h[c1] ...
//! ```
//!
//! Both unpack within the two halves of a register. Codes are therefore brought into an order first (quarters 0, 2 | 1, 3
//! for results of two bytes, eighths 0, 2, 4, 6 | 1, 3, 5, 7 for those of four), and everything behind it comes out in order.
//! A group of sixteen codes has a half of a register to itself, and results are brought into order at the end.
//!
//! Two neighbors of two bits are one code of four bits whose result has four bytes: those of two results of two bytes.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_and_si128, _mm_loadl_epi64, _mm_set1_epi8, _mm_setr_epi8,
    _mm_shuffle_epi8, _mm_srli_epi16, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_cvtepu8_epi32,
    _mm256_mul_ps, _mm256_mullo_epi16, _mm256_or_si256, _mm256_permute2x128_si256,
    _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32, _mm256_permutevar8x32_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srli_epi16,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

use super::batch::{Batch, Batches};
use super::formula::{BF16, F16, F32, size_of_result};
use super::lanes::{load, load_ps, load16, prefetch_ahead, put, store, store_ps};
use super::tables::{Planes, Sixteen};
use crate::{Packing, portable};

/// Sources of codes, as constants of [`look_up`].
pub(super) const BYTES: usize = 0;
/// See [`BYTES`].
pub(super) const LOW_FIRST: usize = 1;
/// See [`BYTES`].
pub(super) const HIGH_FIRST: usize = 2;
/// See [`BYTES`].
pub(super) const AWQ: usize = 3;
/// Eight codes to three bytes, lowest bits first.
pub(super) const THREE_BITS: usize = 4;

/// Bytes of 64 codes.
const fn block_len<const SOURCE: usize>() -> usize {
    match SOURCE {
        BYTES => 64,
        THREE_BITS => 24,
        _ => 32,
    }
}

/// How many codes share a table, as constants of [`look_up`]: a multiple of 64, or this number.
pub(super) const MANY: usize = 64;

/// Results of a part of a row. `codes`: packed as `SOURCE` says; `first`: the entry of the first code's group; `GROUP`: 16,
/// 32 or [`MANY`] codes to a group, in the last case `group`. `RESULT`: see [`super::batch`]; with two results to an entry,
/// a code is one of these pairs.
#[target_feature(enable = "avx2,f16c")]
#[inline(never)]
pub(super) fn look_up<
    const SOURCE: usize,
    const GROUP: usize,
    const RESULT: usize,
    const STREAM: bool,
>(
    (codes, group): (&[u8], usize),
    batches: &Batches<'_>,
    first: usize,
    out: &mut [u8],
) {
    let n_groups = const { 8 * 64 / GROUP };
    let n_blocks = n_groups * group / 64;
    let codes = codes.chunks(n_blocks * block_len::<SOURCE>());
    let outs = out.chunks_mut(n_blocks * 64 * size_of_entry::<RESULT>());
    let mut batch = Batch::new();
    for (at, (codes, out)) in codes.zip(outs).enumerate() {
        batches.fill::<RESULT>(first + at * n_groups, n_groups, &mut batch);
        if size_of_entry::<RESULT>() == 4 {
            look_up_batch::<SOURCE, GROUP, F32, STREAM>((codes, group), &batch, out);
        } else {
            look_up_batch::<SOURCE, GROUP, BF16, STREAM>((codes, group), &batch, out);
        }
    }
}

/// Bytes of an entry of a table.
const fn size_of_entry<const RESULT: usize>() -> usize {
    match RESULT {
        F16 | BF16 => 2,
        _ => 4,
    }
}

/// The same of a batch of groups. `SIZE`: [`F32`] for results of four bytes, else [`BF16`].
#[target_feature(enable = "avx2")]
#[inline(never)]
fn look_up_batch<const SOURCE: usize, const GROUP: usize, const SIZE: usize, const STREAM: bool>(
    (codes, group): (&[u8], usize),
    batch: &Batch,
    out: &mut [u8],
) {
    let size = 64 * size_of_result::<SIZE>();
    let n_whole = out.len() / size;
    let (whole, rest) = out.split_at_mut(n_whole * size);
    let mut blocks = codes
        .chunks_exact(block_len::<SOURCE>())
        .zip(whole.chunks_exact_mut(size));
    if GROUP == MANY {
        let mut at = 0;
        while blocks.len() > 0 {
            let planes = batch.one::<SIZE>(at);
            for (codes, out) in blocks.by_ref().take(group / 64) {
                prefetch_ahead(codes.as_ptr());
                let codes = codes_of::<SOURCE, GROUP, SIZE>(codes);
                for (codes, out) in codes.into_iter().zip(halves_of::<SIZE>(out)) {
                    put_results::<GROUP, SIZE, STREAM>(&planes, codes, out);
                }
            }
            at += 1;
        }
    } else {
        for (at, (codes, out)) in blocks.enumerate() {
            prefetch_ahead(codes.as_ptr());
            let codes = codes_of::<SOURCE, GROUP, SIZE>(codes);
            for (half, (codes, out)) in codes.into_iter().zip(halves_of::<SIZE>(out)).enumerate() {
                let planes = planes_of_half::<GROUP, SIZE>(batch, 2 * at + half);
                put_results::<GROUP, SIZE, STREAM>(&planes, codes, out);
            }
        }
    }
    if !rest.is_empty() {
        let codes = &codes[n_whole * block_len::<SOURCE>()..];
        part_of_block::<SOURCE, GROUP, SIZE>(codes, batch, n_whole * 64 / group, rest);
    }
}

/// Results of fewer than 64 codes, whose first group is group `first` of the batch.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn part_of_block<const SOURCE: usize, const GROUP: usize, const SIZE: usize>(
    codes: &[u8],
    batch: &Batch,
    first: usize,
    out: &mut [u8],
) {
    let mut padded = [0; 64];
    let n = codes.len().min(block_len::<SOURCE>());
    padded[..n].copy_from_slice(&codes[..n]);
    let codes = codes_of::<SOURCE, GROUP, SIZE>(&padded);
    let mut results = [0; 256];
    let halves = halves_of::<SIZE>(&mut results);
    for (half, (codes, out)) in codes.into_iter().zip(halves).enumerate() {
        let planes = match GROUP {
            MANY => batch.one::<SIZE>(first),
            _ => planes_of_half::<GROUP, SIZE>(batch, first * GROUP / 32 + half),
        };
        put_results::<GROUP, SIZE, false>(&planes, codes, out);
    }
    out.copy_from_slice(&results[..out.len()]);
}

/// The output of a block in pieces of 32 results.
fn halves_of<const FLOAT: usize>(out: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    out.chunks_exact_mut(32 * size_of_result::<FLOAT>())
}

/// The planes of half a block, counted in these.
#[target_feature(enable = "avx2")]
#[inline]
fn planes_of_half<const GROUP: usize, const SIZE: usize>(batch: &Batch, half: usize) -> Planes {
    if GROUP == 16 {
        batch.two::<SIZE>(2 * half)
    } else {
        batch.one::<SIZE>(half)
    }
}

/// 64 codes in two registers, in the order that groups and results of this size need.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_of<const SOURCE: usize, const GROUP: usize, const FLOAT: usize>(
    codes: &[u8],
) -> [__m256i; 2] {
    if SOURCE == THREE_BITS {
        return three_bits::<GROUP, FLOAT>(codes);
    }
    let (bytes, _) = codes.as_chunks::<32>();
    let eighths = |codes, order| _mm256_permutevar8x32_epi32(codes, order);
    if SOURCE == BYTES {
        let codes = [load(&bytes[0]), load(&bytes[1])];
        let codes = codes.map(|c| _mm256_and_si256(c, _mm256_set1_epi8(15)));
        return match FLOAT {
            _ if GROUP == 16 => codes,
            F32 => {
                let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
                codes.map(|codes| eighths(codes, order))
            }
            _ => codes.map(|codes| _mm256_permute4x64_epi64::<0b11_01_10_00>(codes)),
        };
    }
    let packed = load(&bytes[0]);
    if GROUP == 16 {
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        return split::<SOURCE>(packed);
    }
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    ordered_codes::<SOURCE, FLOAT>(eighths(packed, order))
}

/// 64 codes of eight words that stand in the order 0, 2, 4, 6, 1, 3, 5, 7.
#[target_feature(enable = "avx2")]
#[inline]
fn ordered_codes<const SOURCE: usize, const FLOAT: usize>(packed: __m256i) -> [__m256i; 2] {
    let codes = split::<SOURCE>(packed);
    if FLOAT == F32 {
        let order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
        codes.map(|codes| _mm256_permutevar8x32_epi32(codes, order))
    } else {
        codes
    }
}

/// The same of 24 bytes of codes of three bits. The two bytes that two neighbors lie in come to a word, and a product brings
/// both to its upper end.
#[target_feature(enable = "avx2")]
#[inline]
fn three_bits<const GROUP: usize, const SIZE: usize>(packed: &[u8]) -> [__m256i; 2] {
    let powers = load(const { &three_bit_powers(words_in_order::<GROUP, SIZE>()) });
    // 16 bytes each, that overlap: no byte behind the 24 is read.
    let bytes = const {
        let words = words_in_order::<GROUP, SIZE>();
        [three_bit_bytes(words, 0), three_bit_bytes(words, 4)]
    };
    [(0, &bytes[0]), (8, &bytes[1])].map(|(start, bytes)| {
        let codes = match packed[start..].first_chunk() {
            Some(bytes) => _mm256_broadcastsi128_si256(load16(bytes)),
            None => unreachable!("a block has 24 bytes"),
        };
        let pairs = _mm256_shuffle_epi8(codes, load(bytes));
        let pairs = _mm256_srli_epi16::<10>(_mm256_mullo_epi16(pairs, powers));
        let pairs = _mm256_or_si256(pairs, _mm256_slli_epi16::<5>(pairs));
        _mm256_and_si256(pairs, _mm256_set1_epi16(0x0707))
    })
}

/// The two bytes that each pair of codes lies in; from byte `skipped` on.
const fn three_bit_bytes(words: [usize; 16], skipped: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut at = 0;
    while at < 16 {
        let byte = (words[at] / 4 * 3 + words[at] % 4 + skipped) as u8;
        // The byte before the first one is none, the one behind the last is not needed.
        bytes[2 * at] = byte.wrapping_sub(1);
        bytes[2 * at + 1] = byte;
        at += 1;
    }
    bytes
}

/// What brings each pair to the upper end of its word: there it begins at bit 8, 6, 4 or 2.
const fn three_bit_powers(words: [usize; 16]) -> [u8; 32] {
    let mut powers = [0; 32];
    let mut at = 0;
    while at < 16 {
        let power = (4u16 << (words[at] % 4 * 2)).to_le_bytes();
        powers[2 * at] = power[0];
        powers[2 * at + 1] = power[1];
        at += 1;
    }
    powers
}

/// The pairs of 32 codes in the order that groups and results of this size need.
const fn words_in_order<const GROUP: usize, const SIZE: usize>() -> [usize; 16] {
    match SIZE {
        _ if GROUP == 16 => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        F32 => [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15],
        _ => [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15],
    }
}

/// The codes of 32 bytes: the lower ones of each half, then the upper ones.
#[target_feature(enable = "avx2")]
#[inline]
fn split<const SOURCE: usize>(packed: __m256i) -> [__m256i; 2] {
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

/// The results of 32 codes.
#[target_feature(enable = "avx2")]
#[inline]
fn put_results<const GROUP: usize, const FLOAT: usize, const STREAM: bool>(
    planes: &Planes,
    codes: __m256i,
    out: &mut [u8],
) {
    let (out, _) = out.as_chunks_mut::<32>();
    if FLOAT == F32 {
        for (out, dwords) in out.iter_mut().zip(dwords::<GROUP>(planes, codes)) {
            put::<STREAM>(out, dwords);
        }
    } else {
        for (out, words) in out.iter_mut().zip(words::<GROUP>(planes, codes)) {
            put::<STREAM>(out, words);
        }
    }
}

/// Results of two bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn words<const GROUP: usize>(planes: &Planes, codes: __m256i) -> [__m256i; 2] {
    let low = _mm256_shuffle_epi8(planes[0], codes);
    let high = _mm256_shuffle_epi8(planes[1], codes);
    let lower = _mm256_unpacklo_epi8(low, high);
    let upper = _mm256_unpackhi_epi8(low, high);
    if GROUP == 16 {
        in_order(lower, upper)
    } else {
        [lower, upper]
    }
}

/// Results of four bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn dwords<const GROUP: usize>(planes: &Planes, codes: __m256i) -> [__m256i; 4] {
    let bytes = planes.map(|plane| _mm256_shuffle_epi8(plane, codes));
    let low = [
        _mm256_unpacklo_epi8(bytes[0], bytes[1]),
        _mm256_unpackhi_epi8(bytes[0], bytes[1]),
    ];
    let high = [
        _mm256_unpacklo_epi8(bytes[2], bytes[3]),
        _mm256_unpackhi_epi8(bytes[2], bytes[3]),
    ];
    let results = [
        _mm256_unpacklo_epi16(low[0], high[0]),
        _mm256_unpackhi_epi16(low[0], high[0]),
        _mm256_unpacklo_epi16(low[1], high[1]),
        _mm256_unpackhi_epi16(low[1], high[1]),
    ];
    if GROUP == 16 {
        let [first, third] = in_order(results[0], results[1]);
        let [second, fourth] = in_order(results[2], results[3]);
        [first, second, third, fourth]
    } else {
        results
    }
}

/// The lower halves, then the upper ones.
#[target_feature(enable = "avx2")]
#[inline]
fn in_order(first: __m256i, second: __m256i) -> [__m256i; 2] {
    [
        _mm256_permute2x128_si256::<0x20>(first, second),
        _mm256_permute2x128_si256::<0x31>(first, second),
    ]
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

/// The source of any packing of at most four bits: itself, or unpacked bytes.
pub(super) const fn source_of(packing: Packing) -> usize {
    match (packing, nibbles(packing)) {
        (_, Some(source)) => source,
        (Packing::LsbFirst { bits: 3 }, None) => THREE_BITS,
        (_, None) => BYTES,
    }
}

/// 64 codes, two to a byte, to one per byte, in order.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn unpack<const SOURCE: usize>(packed: &[u8; 32], out: &mut [u8; 64]) {
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(load(packed));
    let (out, _) = out.as_chunks_mut::<32>();
    for (out, codes) in out.iter_mut().zip(split::<SOURCE>(packed)) {
        store(out, codes);
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
