//! Contiguous streams of codes to one code per byte: blocks of 64 here, other packings by the AVX2 backend.
//!
//! Eight codes of `bits` bits are `bits` whole bytes. `vpermb` brings the eight codes from byte `bits * i` on to 64-bit lane
//! `i`, `vpmultishiftqb` brings each of them to a byte of its own.

use std::arch::x86_64::{
    _mm512_and_si512, _mm512_multishift_epi64_epi8, _mm512_permutexvar_epi8, _mm512_set1_epi8,
};

use super::super::avx2;
use super::lanes::{load, load_some, store};
use crate::Packing;

/// See [`Packing::unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) fn unpack(packing: Packing, packed: &[u8], out: &mut [u8]) {
    let len = packing.packed_len_bytes(out.len(), 1);
    assert!(
        packed.len() >= len,
        "{} packed bytes, {len} needed",
        packed.len()
    );
    let done = match packing {
        Packing::LsbFirst { bits } if bits < 8 => lsb_first(bits as usize, packed, out),
        Packing::LsbFirst { .. }
        | Packing::LsbFirstNoStraddle { .. }
        | Packing::Planar { .. }
        | Packing::NibblesHighFirst
        | Packing::AwqInterleaved
        | Packing::Bytes => 0,
    };
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    let rest = &packed[done / unit_codes * unit_bytes..];
    (avx2::BACKEND.unpack)(packing, rest, &mut out[done..]);
}

/// Codes that were unpacked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn lsb_first(bits: usize, packed: &[u8], out: &mut [u8]) -> usize {
    let spread: [u8; 64] = std::array::from_fn(|i| (i / 8 * bits + i % 8) as u8);
    let shifts: [u8; 64] = std::array::from_fn(|i| (i % 8 * bits) as u8);
    let (spread, shifts) = (load(&spread), load(&shifts));
    let mask = _mm512_set1_epi8((1i8 << bits).wrapping_sub(1));
    let (blocks, _) = out.as_chunks_mut::<64>();
    for (out, packed) in blocks.iter_mut().zip(packed.chunks_exact(8 * bits)) {
        let lanes = _mm512_permutexvar_epi8(spread, load_some(packed));
        let fields = _mm512_multishift_epi64_epi8(shifts, lanes);
        store(out, _mm512_and_si512(fields, mask));
    }
    64 * blocks.len()
}
