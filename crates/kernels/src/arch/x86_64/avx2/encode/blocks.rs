//! ggml's blocks of 32 in one go: what its reference quantizers in [`crate::blocks::quantize`] do, in lanes.
//!
//! Each kernel knows in which range of magnitudes its operations neither overflow nor meet zeros whose sign matters; a block
//! beyond it goes to portable, and so does every other type.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_cvtps_ph, _mm_cvtsi128_si32,
    _mm_cvtss_f32, _mm_max_epi32, _mm_max_ps, _mm_min_ps, _mm_movehdup_ps, _mm_movehl_ps,
    _mm_or_si128, _mm_set_ss, _mm_shuffle_epi32, _mm_slli_epi16, _mm256_add_ps, _mm256_and_ps,
    _mm256_and_si256, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_si128,
    _mm256_cmpeq_epi32, _mm256_cvttps_epi32, _mm256_extractf128_ps, _mm256_extracti128_si256,
    _mm256_max_epi32, _mm256_max_ps, _mm256_min_epu8, _mm256_min_ps, _mm256_movemask_epi8,
    _mm256_mul_ps, _mm256_or_ps, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi16, _mm256_sub_ps,
};

use super::super::lanes::{prefetch_ahead, store, store16};
use super::super::{fused, stream};
use super::k_quants;
use super::lanes::{BF16, F16, F32, bytes_of, four, in_order, load32, size_of, together};
use super::small_float::toward_zero_unsigned;
use crate::blocks::Block;
use crate::blocks::quantize::k_quants::{Q4_SEARCH, Q5_SEARCH};
use crate::blocks::quantize::lattice;
use crate::encode::Floats;
use crate::rows::Stores;
use crate::{BlockFormat, Float, portable};

/// Values of a block that has a kernel.
const BLOCK: usize = 32;

/// Bytes that are moved past the caches at once: blocks do not begin where such stores could.
const BUFFER: usize = 8192;

#[repr(align(64))]
struct Buffer([u8; BUFFER]);

/// See [`crate::portable::encode::encode_blocks`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_blocks(
    format: BlockFormat,
    source: Floats<'_>,
    blocks: &mut [u8],
    stores: Stores,
) {
    assert_eq!(
        blocks.len() * format.elements(),
        source.len() * format.bytes(),
        "the blocks of {} values",
        source.len()
    );
    match stores {
        Stores::Ordinary => of_type(format, source, blocks),
        Stores::Streaming => {
            let mut buffer = Buffer([0; BUFFER]);
            let n = BUFFER / format.bytes();
            let mut start = 0;
            for out in blocks.chunks_mut(n * format.bytes()) {
                let end = start + out.len() / format.bytes() * format.elements();
                let buffer = &mut buffer.0[..out.len()];
                of_type(format, source.cut(start..end), buffer);
                // SAFETY: the fence follows.
                unsafe { stream::copy(buffer, out) }
                start = end;
            }
            stream::fence();
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn of_type(format: BlockFormat, source: Floats<'_>, blocks: &mut [u8]) {
    let (float, bytes) = bytes_of(source);
    match float {
        Float::F32 => of_kind::<F32>(format, (float, bytes), blocks),
        Float::F16 => of_kind::<F16>(format, (float, bytes), blocks),
        Float::Bf16 => of_kind::<BF16>(format, (float, bytes), blocks),
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn of_kind<const KIND: u8>(format: BlockFormat, source: (Float, &[u8]), blocks: &mut [u8]) {
    match format {
        BlockFormat::Q4_0 => each::<KIND, 18>(format, source, blocks, |v| q4_0::<KIND>(v)),
        BlockFormat::Q4_1 => each::<KIND, 20>(format, source, blocks, |v| q4_1::<KIND>(v)),
        BlockFormat::Q5_0 => each::<KIND, 22>(format, source, blocks, |v| q5_0::<KIND>(v)),
        BlockFormat::Q5_1 => each::<KIND, 24>(format, source, blocks, |v| q5_1::<KIND>(v)),
        BlockFormat::Q8_0 => each::<KIND, 34>(format, source, blocks, |v| q8_0::<KIND>(v)),
        BlockFormat::Mxfp4 => each::<KIND, 17>(format, source, blocks, |v| mxfp4::<KIND>(v)),
        BlockFormat::Q2K => searched::<KIND>(format, source, blocks, |x, b| k_quants::q2_k(x, b)),
        BlockFormat::Q4K => searched::<KIND>(format, source, blocks, |x, b| {
            k_quants::six_bit_pairs(&Q4_SEARCH, x, b);
        }),
        BlockFormat::Q5K => searched::<KIND>(format, source, blocks, |x, b| {
            k_quants::six_bit_pairs(&Q5_SEARCH, x, b);
        }),
        BlockFormat::Q6K => searched::<KIND>(format, source, blocks, |x, b| k_quants::q6_k(x, b)),
        BlockFormat::Iq2Xxs
        | BlockFormat::Iq2Xs
        | BlockFormat::Iq2S
        | BlockFormat::Iq3Xxs
        | BlockFormat::Iq3S => {
            let layout = format.layout().expect("a lattice with codes");
            searched::<KIND>(format, source, blocks, |x, b| {
                lattice::choose(layout, fused::point_edge, x, b);
            });
        }
        BlockFormat::Q3K
        | BlockFormat::Iq4Nl
        | BlockFormat::Iq4Xs
        | BlockFormat::Iq1S
        | BlockFormat::Iq1M
        | BlockFormat::Tq1_0
        | BlockFormat::Tq2_0
        | BlockFormat::Nvfp4
        | BlockFormat::Q1_0
        | BlockFormat::Q2_0 => {
            let source = Floats::Bytes(source.0, source.1);
            portable::encode::encode_blocks(format, source, blocks, Stores::Ordinary);
        }
    }
}

/// Block after block; what the kernel declines is portable's.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn each<const KIND: u8, const BYTES: usize>(
    format: BlockFormat,
    (float, source): (Float, &[u8]),
    blocks: &mut [u8],
    kernel: impl Fn([__m256; 4]) -> Option<[u8; BYTES]>,
) {
    let sources = source.chunks_exact(BLOCK * size_of::<KIND>());
    for (source, block) in sources.zip(blocks.as_chunks_mut::<BYTES>().0) {
        prefetch_ahead(source.as_ptr());
        if let Some(bytes) = kernel(load32::<KIND>(source)) {
            *block = bytes;
        } else {
            let source = Floats::Bytes(float, source);
            portable::encode::encode_blocks(format, source, block, Stores::Ordinary);
        }
    }
}

/// Blocks of the K types; what is not finite is portable's, whose NaN have payloads that decide.
#[target_feature(enable = "avx2,f16c")]
fn searched<const KIND: u8>(
    format: BlockFormat,
    (float, source): (Float, &[u8]),
    blocks: &mut [u8],
    search: impl Fn(&k_quants::Values, &mut Block),
) {
    let layout = format.layout().expect("a coded type");
    let sources = source.chunks_exact(k_quants::ELEMENTS * size_of::<KIND>());
    for (source, block) in sources.zip(blocks.chunks_exact_mut(format.bytes())) {
        prefetch_ahead(source.as_ptr());
        let values = k_quants::widened::<KIND>(source);
        if values.iter().all(|value| value.is_finite()) {
            let mut found = Block::ZERO;
            search(&values, &mut found);
            layout.pack_block(&found, block);
        } else {
            let source = Floats::Bytes(float, source);
            portable::encode::encode_blocks(format, source, block, Stores::Ordinary);
        }
    }
}

/// Magnitudes whose quotients by small integers, their reciprocals, and products of those are far from the ends of F32.
fn is_ordinary(magnitude: f32) -> bool {
    const SMALLEST: f32 = 1e-30;
    const LARGEST: f32 = 1e30;
    (SMALLEST..=LARGEST).contains(&magnitude)
}

/// The largest magnitude of a block, as bits ordered like integers: above infinity lie NaN.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn largest([a, b, c, d]: [__m256i; 4]) -> f32 {
    let all = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    let (low, high) = (
        _mm256_castsi256_si128(all),
        _mm256_extracti128_si256::<1>(all),
    );
    let four = _mm_max_epi32(low, high);
    let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b10_11>(four));
    let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b01>(two));
    f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned())
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn magnitudes(v: [__m256; 4]) -> [__m256i; 4] {
    let mask = _mm256_set1_epi32(0x7fff_ffff);
    four(v, |v| _mm256_and_si256(_mm256_castps_si256(v), mask))
}

/// The top bits of the 32 lanes, in the order of the values.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn top_bits<const KIND: u8>([a, b, c, d]: [__m256i; 4]) -> u32 {
    // Saturation keeps signs.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_movemask_epi8(in_order::<KIND>(bytes)).cast_unsigned()
}

/// The value of largest magnitude, the first of several; `None` if it is not an ordinary one.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn extreme<const KIND: u8>(v: [__m256; 4]) -> Option<f32> {
    let magnitudes = magnitudes(v);
    let largest = largest(magnitudes);
    if !is_ordinary(largest) {
        return None;
    }
    let wanted = _mm256_set1_epi32(largest.to_bits().cast_signed());
    let found = top_bits::<KIND>(four(magnitudes, |m| _mm256_cmpeq_epi32(m, wanted)));
    let negative = top_bits::<KIND>(four(v, |v| _mm256_castps_si256(v)));
    let first = found & found.wrapping_neg();
    Some(if negative & first == 0 {
        largest
    } else {
        -largest
    })
}

/// Smallest and largest value, if the largest magnitude and their distance are ordinary and zero is not the smallest: its sign
/// would be that of the first.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn ends(v: [__m256; 4]) -> Option<(f32, f32)> {
    let low = _mm256_min_ps(_mm256_min_ps(v[0], v[1]), _mm256_min_ps(v[2], v[3]));
    let high = _mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3]));
    let low = _mm_min_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps::<1>(low));
    let high = _mm_max_ps(
        _mm256_castps256_ps128(high),
        _mm256_extractf128_ps::<1>(high),
    );
    let low = _mm_min_ps(low, _mm_movehl_ps(low, low));
    let high = _mm_max_ps(high, _mm_movehl_ps(high, high));
    let low = _mm_cvtss_f32(_mm_min_ps(low, _mm_movehdup_ps(low)));
    let high = _mm_cvtss_f32(_mm_max_ps(high, _mm_movehdup_ps(high)));
    let is_known = is_ordinary(largest(magnitudes(v))) && is_ordinary(high - low) && low != 0.0;
    is_known.then_some((low, high))
}

/// Little-endian F16, rounded to nearest even.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn half(value: f32) -> [u8; 2] {
    let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value));
    (_mm_cvtsi128_si32(half) as u16).to_le_bytes()
}

/// `value * factor + offset` toward zero, at most `max`, one to a byte in the order of the values.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn truncated<const KIND: u8>(v: [__m256; 4], factor: f32, offset: f32, max: u8) -> __m256i {
    let (factor, offset) = (_mm256_set1_ps(factor), _mm256_set1_ps(offset));
    let codes = four(v, |v| {
        _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(v, factor), offset))
    });
    let codes = _mm256_min_epu8(together(codes), _mm256_set1_epi8(max.cast_signed()));
    in_order::<KIND>(codes)
}

/// Code `j` in the low half of byte `j`, code `j + 16` in the upper one.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nibbles(codes: __m256i) -> [u8; 16] {
    let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    let (low, high) = (
        _mm256_castsi256_si128(codes),
        _mm256_extracti128_si256::<1>(codes),
    );
    let bytes: __m128i = _mm_or_si128(low, _mm_slli_epi16::<4>(high));
    let mut out = [0; 16];
    store16(&mut out, bytes);
    out
}

/// Bit 4 of each code.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn fifth_bits(codes: __m256i) -> [u8; 4] {
    let bits = _mm256_movemask_epi8(_mm256_slli_epi16::<3>(codes));
    bits.to_le_bytes()
}

/// One piece after the other.
#[inline(always)]
fn joined<const N: usize>(pieces: &[&[u8]]) -> [u8; N] {
    let (mut out, mut at) = ([0; N], 0);
    for piece in pieces {
        out[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    out
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn q4_0<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 18]> {
    let d = extreme::<KIND>(v)? / -8.0;
    let codes = truncated::<KIND>(v, 1.0 / d, 8.5, 15);
    Some(joined(&[&half(d), &nibbles(codes)]))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn q5_0<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 22]> {
    let d = extreme::<KIND>(v)? / -16.0;
    let codes = truncated::<KIND>(v, 1.0 / d, 16.5, 31);
    Some(joined(&[&half(d), &fifth_bits(codes), &nibbles(codes)]))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn q4_1<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 20]> {
    let (low, high) = ends(v)?;
    let d = (high - low) / 15.0;
    let codes = truncated::<KIND>(above(v, low), 1.0 / d, 0.5, 15);
    Some(joined(&[&half(d), &half(low), &nibbles(codes)]))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn q5_1<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 24]> {
    let (low, high) = ends(v)?;
    let d = (high - low) / 31.0;
    let codes = truncated::<KIND>(above(v, low), 1.0 / d, 0.5, 31);
    let (bits, nibbles) = (fifth_bits(codes), nibbles(codes));
    Some(joined(&[&half(d), &half(low), &bits, &nibbles]))
}

/// Distances from the smallest value.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn above(v: [__m256; 4], low: f32) -> [__m256; 4] {
    let low = _mm256_set1_ps(low);
    four(v, |v| _mm256_sub_ps(v, low))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn q8_0<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 34]> {
    let largest = largest(magnitudes(v));
    if !is_ordinary(largest) {
        return None;
    }
    let d = largest / 127.0;
    let factor = _mm256_set1_ps(1.0 / d);
    // Ties away from zero, as in `codes::away_from_zero`.
    let (below_half, sign) = (_mm256_set1_ps(0.5_f32.next_down()), _mm256_set1_ps(-0.0));
    let rounded = four(v, |v| {
        let product = _mm256_mul_ps(v, factor);
        let half = _mm256_or_ps(below_half, _mm256_and_ps(product, sign));
        _mm256_cvttps_epi32(_mm256_add_ps(product, half))
    });
    let halves = [
        _mm256_packs_epi32(rounded[0], rounded[1]),
        _mm256_packs_epi32(rounded[2], rounded[3]),
    ];
    let codes = _mm256_packs_epi16(halves[0], halves[1]);
    let mut bytes = [0; 32];
    store(&mut bytes, in_order::<KIND>(codes));
    Some(joined(&[&half(d), &bytes]))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn mxfp4<const KIND: u8>(v: [__m256; 4]) -> Option<[u8; 17]> {
    /// Mantissas from here on may have a logarithm that F32 rounds up to an integer.
    const NEARLY_TWO: u32 = 0x007f_ff00;
    let largest = largest(magnitudes(v));
    if !is_ordinary(largest) || largest.to_bits() & 0x007f_ffff >= NEARLY_TWO {
        return None;
    }
    let byte = (largest.to_bits() >> 23) as u8 - 2;
    // The reciprocal of the power, whose exponent field is 254 less that of the power.
    let factor = _mm256_set1_ps(f32::from_bits((254 - u32::from(byte)) << 23));
    let codes = four(v, |v| toward_zero_unsigned(_mm256_mul_ps(v, factor)));
    let codes = in_order::<KIND>(together(codes));
    Some(joined(&[&[byte], &nibbles(codes)]))
}
