//! Packed runs to one code per byte: whole blocks here, the end of a run by [`Packing::unpack`].

use std::arch::x86_64::{
    __m256i, _mm_loadl_epi64, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_mullo_epi16,
    _mm256_or_si256, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi8, _mm256_setr_epi32,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srli_epi16,
    _mm256_srlv_epi32,
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
        Packing::LsbFirst { bits: 2 } | Packing::LsbFirstNoStraddle { bits: 2 } => {
            two_bits(packed, out)
        }
        Packing::LsbFirst { bits: 3 } => three_bits(packed, out),
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

/// Codes that were unpacked: 32 in 12 bytes, of which 16 are read.
#[target_feature(enable = "avx2")]
#[inline]
fn three_bits(packed: &[u8], out: &mut [u8]) -> usize {
    let mut done = 0;
    for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let Some(bytes) = packed[12 * block..].first_chunk::<16>() else {
            break;
        };
        store(out, three_bit_codes(bytes));
        done += 32;
    }
    done
}

#[target_feature(enable = "avx2")]
#[inline]
fn three_bit_codes(packed: &[u8; 16]) -> __m256i {
    let bytes = _mm256_broadcastsi128_si256(load16(packed));
    // Four codes take 12 bits: a 32-bit lane gets the bytes from its first code's on, the odd lanes start in mid-byte.
    let gather = _mm256_setr_epi8(
        0, 1, 2, -1, 1, 2, 3, -1, 3, 4, 5, -1, 4, 5, 6, -1, //
        6, 7, 8, -1, 7, 8, 9, -1, 9, 10, 11, -1, 10, 11, 12, -1,
    );
    let fields = _mm256_shuffle_epi8(bytes, gather);
    let fields = _mm256_srlv_epi32(fields, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    // ....dddcccbbbaaa to 00000ddd00000ccc00000bbb00000aaa.
    let pairs = _mm256_or_si256(
        _mm256_and_si256(fields, _mm256_set1_epi32(0x0000_003f)),
        _mm256_and_si256(
            _mm256_slli_epi32::<10>(fields),
            _mm256_set1_epi32(0x003f_0000),
        ),
    );
    let low = _mm256_and_si256(pairs, _mm256_set1_epi16(0x0007));
    let high = _mm256_and_si256(_mm256_slli_epi16::<5>(pairs), _mm256_set1_epi16(0x0700));
    _mm256_or_si256(low, high)
}
