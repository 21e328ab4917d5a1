//! Packed runs to one code per byte: whole blocks here, the end of a run by [`Packing::unpack`].

use std::arch::x86_64::{
    __m256i, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_setr_epi8, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_cmpeq_epi8, _mm256_mullo_epi16, _mm256_or_si256,
    _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x,
    _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_sll_epi32, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_srlv_epi32,
};

use super::lanes::{load16, store};
use super::sixteen::{self, AWQ, HIGH_FIRST, LOW_FIRST, nibbles};
use crate::Packing;

/// See [`Packing::unpack`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn unpack(packing: Packing, packed: &[u8], out: &mut [u8]) {
    let len = packing.packed_len_bytes(out.len(), 1);
    assert!(
        packed.len() >= len,
        "{} packed bytes, {len} needed",
        packed.len()
    );
    let done = match packing {
        Packing::LsbFirst { bits: 2 }
        | Packing::LsbFirstNoStraddle { bits: 2 }
        | Packing::Planar { bits: 2 } => two_bits(packed, out),
        Packing::Planar { bits: 4 } => four_bits::<LOW_FIRST>(packed, out),
        Packing::LsbFirst { bits: 1 } | Packing::LsbFirstNoStraddle { bits: 1 } => {
            one_bit(packed, out)
        }
        Packing::LsbFirst { bits: 3 } => in_lanes::<3>(packed, out),
        Packing::LsbFirst { bits: 5 } => in_lanes::<5>(packed, out),
        Packing::LsbFirst { bits: 6 } => in_lanes::<6>(packed, out),
        Packing::LsbFirst { bits: 7 } => in_lanes::<7>(packed, out),
        Packing::Planar { bits: 3 } => planar::<3>(packed, out),
        Packing::Planar { bits: 5 } => planar::<5>(packed, out),
        Packing::Planar { bits: 6 } => planar::<6>(packed, out),
        Packing::Planar { bits: 7 } => planar::<7>(packed, out),
        Packing::LsbFirst { .. }
        | Packing::LsbFirstNoStraddle { .. }
        | Packing::NibblesHighFirst
        | Packing::AwqInterleaved
        | Packing::Bytes
        | Packing::Planar { .. } => match nibbles(packing) {
            Some(LOW_FIRST) => four_bits::<LOW_FIRST>(packed, out),
            Some(HIGH_FIRST) => four_bits::<HIGH_FIRST>(packed, out),
            Some(_) => four_bits::<AWQ>(packed, out),
            None => 0,
        },
    };
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    packing.unpack(&packed[done / unit_codes * unit_bytes..], &mut out[done..]);
}

/// Codes that were unpacked.
#[target_feature(enable = "avx2")]
#[inline]
fn four_bits<const SOURCE: usize>(packed: &[u8], out: &mut [u8]) -> usize {
    let (blocks, _) = out.as_chunks_mut::<64>();
    for (out, packed) in blocks.iter_mut().zip(packed.as_chunks().0) {
        sixteen::unpack::<SOURCE>(packed, out);
    }
    64 * blocks.len()
}

/// Codes that were unpacked. Each byte is copied to a 32-bit lane and shifted to four positions.
#[target_feature(enable = "avx2")]
#[inline]
fn two_bits(packed: &[u8], out: &mut [u8]) -> usize {
    let (blocks, _) = out.as_chunks_mut::<32>();
    for (out, packed) in blocks.iter_mut().zip(packed.as_chunks::<8>().0) {
        store(out, two_bit_codes(packed));
    }
    32 * blocks.len()
}

#[target_feature(enable = "avx2")]
#[inline]
fn two_bit_codes(packed: &[u8; 8]) -> __m256i {
    // SAFETY: 8 readable bytes; the load needs no alignment.
    let bytes = unsafe { _mm_loadl_epi64(packed.as_ptr().cast()) };
    let spread = _mm256_setr_epi8(
        0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, //
        4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7,
    );
    let copies = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
    // Bytes 0 and 2 of a lane from bits 0 and 4, bytes 1 and 3 from bits 2 and 6: the former by a shift of the 16-bit
    // lanes' low bytes, the latter by one of the high bytes. All shifts are to the same place: times 2^(6 - position).
    let low = _mm256_set1_epi16(0x00ff);
    let factors_even = _mm256_set1_epi32(0x0004_0040);
    let factors_odd = _mm256_set1_epi32(0x0001_0010);
    let even = _mm256_mullo_epi16(_mm256_and_si256(copies, low), factors_even);
    let odd = _mm256_mullo_epi16(_mm256_and_si256(copies, low), factors_odd);
    let mask = _mm256_set1_epi16(3);
    let even = _mm256_and_si256(_mm256_srli_epi16::<6>(even), mask);
    let odd = _mm256_and_si256(_mm256_srli_epi16::<6>(odd), mask);
    _mm256_or_si256(even, _mm256_slli_epi16::<8>(odd))
}

/// Codes that were unpacked.
#[target_feature(enable = "avx2")]
#[inline]
fn one_bit(packed: &[u8], out: &mut [u8]) -> usize {
    let (blocks, _) = out.as_chunks_mut::<32>();
    for (out, &packed) in blocks.iter_mut().zip(packed.as_chunks().0) {
        store(out, one_bit_codes(packed));
    }
    32 * blocks.len()
}

#[target_feature(enable = "avx2")]
#[inline]
fn one_bit_codes(packed: [u8; 4]) -> __m256i {
    let spread = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, //
        2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
    );
    let copies = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(packed)), spread);
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(copies, bits), bits);
    _mm256_and_si256(set, _mm256_set1_epi8(1))
}

/// Codes that were unpacked: 32 in `4 * BITS` bytes, of which a few more are read.
#[target_feature(enable = "avx2")]
#[inline]
fn in_lanes<const BITS: usize>(packed: &[u8], out: &mut [u8]) -> usize {
    let mut done = 0;
    for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let start = 4 * BITS * block;
        let halves = (
            packed[start..].first_chunk(),
            packed[start + 2 * BITS..].first_chunk(),
        );
        let (Some(low), Some(high)) = halves else {
            break;
        };
        store(out, lane_codes::<BITS>(low, high));
        done += 32;
    }
    done
}

/// 32 codes of 3, 5, 6 or 7 bits; `low` starts with the first of them, `high` with the seventeenth.
///
/// Four codes take at most 28 bits: a 32-bit lane gets the bytes from its first code's on, which may start in mid-byte.
#[target_feature(enable = "avx2")]
#[inline]
fn lane_codes<const BITS: usize>(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    let first_byte = |lane: usize| (4 * BITS * lane / 8) as i8;
    let [a, b, c, d] = [0, 1, 2, 3].map(first_byte);
    #[rustfmt::skip]
    let gather = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        a, a + 1, a + 2, a + 3, b, b + 1, b + 2, b + 3,
        c, c + 1, c + 2, c + 3, d, d + 1, d + 2, d + 3,
    ));
    let fields = _mm256_shuffle_epi8(_mm256_set_m128i(load16(high), load16(low)), gather);
    let odd = if BITS % 2 == 1 { 4 } else { 0 };
    let fields = _mm256_srlv_epi32(fields, _mm256_setr_epi32(0, odd, 0, odd, 0, odd, 0, odd));
    // ddddddccccccbbbbbbaaaaaa (6 bits) to dddddd|cccccc in the upper half, bbbbbb|aaaaaa in the lower one.
    let two = (1 << (2 * BITS)) - 1;
    let pairs = _mm256_or_si256(
        _mm256_and_si256(fields, _mm256_set1_epi32(two)),
        _mm256_and_si256(
            shift_left(fields, 16 - 2 * BITS),
            _mm256_set1_epi32(two << 16),
        ),
    );
    let one = (1 << BITS) - 1;
    _mm256_or_si256(
        _mm256_and_si256(pairs, _mm256_set1_epi16(one)),
        _mm256_and_si256(shift_left(pairs, 8 - BITS), _mm256_set1_epi16(one << 8)),
    )
}

/// By a number that the compiler knows.
#[target_feature(enable = "avx2")]
#[inline]
fn shift_left(lanes: __m256i, bits: usize) -> __m256i {
    _mm256_sll_epi32(lanes, _mm_cvtsi32_si128(bits as i32))
}

/// Codes that were unpacked: blocks of 32 in planes of 4, 2 and 1 bits, as many as the width needs (see `packing::planar`).
#[target_feature(enable = "avx2")]
#[inline]
fn planar<const BITS: usize>(packed: &[u8], out: &mut [u8]) -> usize {
    let (blocks, _) = out.as_chunks_mut::<32>();
    for (out, packed) in blocks.iter_mut().zip(packed.chunks_exact(4 * BITS)) {
        let (low, high) = packed.split_at(if BITS == 3 { 8 } else { 16 });
        let low = match (low.first_chunk(), low.first_chunk()) {
            (Some(sixteen), _) => {
                let [first, second] = sixteen::split16::<LOW_FIRST>(load16(sixteen));
                _mm256_set_m128i(second, first)
            }
            (None, Some(eight)) => two_bit_codes(eight),
            (None, None) => _mm256_setzero_si256(),
        };
        let (pairs, bit) = high.split_at(if BITS >= 6 { 8 } else { 0 });
        let mut codes = low;
        if let Some(pairs) = pairs.first_chunk() {
            let pairs = shift_left(two_bit_codes(pairs), 4);
            codes = _mm256_or_si256(codes, pairs);
        }
        if let Some(&bit) = bit.first_chunk() {
            let bit = shift_left(one_bit_codes(bit), BITS - 1);
            codes = _mm256_or_si256(codes, bit);
        }
        store(out, codes);
    }
    32 * blocks.len()
}
