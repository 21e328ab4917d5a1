//! Dense floats to F32 and back: `portable::convert`, eight or sixteen at a time.
//!
//! F16C's conversions are the portable ones: subnormals are kept, a NaN becomes quiet and keeps its sign and the payload
//! bits that fit. What is left behind the last whole vector is done by the portable code.

use std::arch::x86_64::{
    __m256i, _MM_FROUND_TO_NEAREST_INT, _mm256_and_si256, _mm256_blendv_epi8, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_or_si256,
    _mm256_set1_epi32, _mm256_slli_epi32, _mm256_srli_epi32,
};

use super::lanes::{
    load_ps, load16, nan_lanes, narrow, round_bf16_upper, store, store_ps, store16,
};
use crate::Float;
use crate::portable::convert;

/// See [`convert::widen`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen(float: Float, bytes: &[u8], out: &mut [f32]) {
    let size = float.size_bytes();
    assert_eq!(
        bytes.len(),
        out.len() * size,
        "bytes of {} values",
        out.len()
    );
    let (vectors, rest) = out.as_chunks_mut::<8>();
    let (head, tail) = bytes.split_at(vectors.len() * 8 * size);
    let halves = head.as_chunks::<16>().0;
    match float {
        Float::F32 => return convert::widen(float, bytes, out),
        Float::F16 => {
            for (out, halves) in vectors.iter_mut().zip(halves) {
                store_ps(out, _mm256_cvtph_ps(load16(halves)));
            }
        }
        Float::Bf16 => {
            let quiet = _mm256_set1_epi32(0x0040_0000);
            for (out, halves) in vectors.iter_mut().zip(halves) {
                let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load16(halves)));
                let nan = _mm256_and_si256(nan_lanes(_mm256_castsi256_ps(wide)), quiet);
                store_ps(out, _mm256_castsi256_ps(_mm256_or_si256(wide, nan)));
            }
        }
    }
    convert::widen(float, tail, rest);
}

/// See [`convert::round`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn round(float: Float, values: &[f32], bytes: &mut [u8]) {
    let size = float.size_bytes();
    assert_eq!(
        bytes.len(),
        values.len() * size,
        "bytes of {} values",
        values.len()
    );
    let (vectors, rest) = values.as_chunks::<16>();
    let (head, tail) = bytes.split_at_mut(vectors.len() * 16 * size);
    match float {
        Float::F32 => return convert::round(float, values, bytes),
        Float::F16 => {
            for (out, values) in head
                .as_chunks_mut::<16>()
                .0
                .iter_mut()
                .zip(values.as_chunks().0)
            {
                store16(
                    out,
                    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load_ps(values)),
                );
            }
        }
        Float::Bf16 => {
            for (out, values) in head.as_chunks_mut().0.iter_mut().zip(vectors) {
                let (pair, _) = values.as_chunks();
                store(out, narrow(bf16(&pair[0]), bf16(&pair[1])));
            }
        }
    }
    convert::round(float, rest, tail);
}

/// BF16 bits in 32-bit lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn bf16(values: &[f32; 8]) -> __m256i {
    let v = load_ps(values);
    let quiet = _mm256_or_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x0040_0000));
    _mm256_srli_epi32::<16>(_mm256_blendv_epi8(round_bf16_upper(v), quiet, nan_lanes(v)))
}
