//! Two codes to a byte: `Packing::pack` for 4 bits. A multiply-add of neighbors puts one of them above the other.

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_maddubs_epi16, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16,
};

use super::super::again;
use super::super::lanes::{load, store};
use crate::Packing;

/// What the lower and the upper code of a pair are multiplied by, where a byte holds two.
pub(super) const fn factors_of(packing: Packing) -> Option<[u8; 2]> {
    match packing {
        Packing::LsbFirst { bits: 4 } | Packing::LsbFirstNoStraddle { bits: 4 } => Some([1, 16]),
        Packing::NibblesHighFirst => Some([16, 1]),
        Packing::Bytes
        | Packing::LsbFirst { .. }
        | Packing::LsbFirstNoStraddle { .. }
        | Packing::Planar { .. }
        | Packing::AwqInterleaved => None,
    }
}

/// See [`Packing::pack`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn pack(packing: Packing, codes: &[u8], packed: &mut [u8]) {
    let Some(factors) = factors_of(packing) else {
        return again::pack(packing, codes, packed);
    };
    let len = packing.packed_len_bytes(codes.len(), 1);
    assert!(
        packed.len() >= len,
        "{} packed bytes, {len} needed",
        packed.len()
    );
    let factors = _mm256_set1_epi16(i16::from_le_bytes(factors));
    let (pairs, last) = codes.as_chunks::<64>();
    let (whole, rest) = packed.split_at_mut(pairs.len() * 32);
    for (out, pair) in whole.as_chunks_mut().0.iter_mut().zip(pairs) {
        let (pair, _) = pair.as_chunks();
        let bytes = _mm256_packus_epi16(joined(&pair[0], factors), joined(&pair[1], factors));
        store(out, _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes));
    }
    again::pack(packing, last, rest);
}

/// Sixteen bytes of two codes each, in 16-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn joined(codes: &[u8; 32], factors: __m256i) -> __m256i {
    let codes = _mm256_and_si256(load(codes), _mm256_set1_epi8(15));
    _mm256_maddubs_epi16(codes, factors)
}
