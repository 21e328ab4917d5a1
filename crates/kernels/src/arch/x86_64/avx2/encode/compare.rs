//! Sums over a weight and what became of it.

use std::arch::x86_64::{
    __m256, __m256d, _mm256_add_pd, _mm256_andnot_ps, _mm256_castps256_ps128, _mm256_cvtps_pd,
    _mm256_extractf128_ps, _mm256_max_ps, _mm256_mul_pd, _mm256_set1_ps, _mm256_setzero_pd,
    _mm256_setzero_ps, _mm256_storeu_pd, _mm256_sub_ps,
};

use super::super::lanes::store_ps;
use super::lanes::{BF16, F16, F32, bytes_of, load8, size_of};
use crate::Float;
use crate::encode::{Difference, Floats, LANES, sum_of_lanes};
use crate::portable;

/// See [`portable::encode::compare`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn compare(original: Floats<'_>, decoded: Floats<'_>) -> Difference {
    assert_eq!(
        original.len(),
        decoded.len(),
        "as many values as there were"
    );
    let (float, bytes) = bytes_of(original);
    let found = match float {
        Float::F32 => with_original::<F32>(bytes, decoded),
        Float::F16 => with_original::<F16>(bytes, decoded),
        Float::Bf16 => with_original::<BF16>(bytes, decoded),
    };
    // Squares of finite values are finite in F64: some value was not, and has to be left out.
    if found.signal.is_finite() {
        found
    } else {
        portable::encode::compare(original, decoded)
    }
}

#[target_feature(enable = "avx2,f16c")]
fn with_original<const A: u8>(original: &[u8], decoded: Floats<'_>) -> Difference {
    let (float, decoded) = bytes_of(decoded);
    match float {
        Float::F32 => run::<A, F32>(original, decoded),
        Float::F16 => run::<A, F16>(original, decoded),
        Float::Bf16 => run::<A, BF16>(original, decoded),
    }
}

/// The sums of eight lanes.
struct Sums {
    signal: [__m256d; 2],
    noise: [__m256d; 2],
    max_error: __m256,
}

#[target_feature(enable = "avx2,f16c")]
fn run<const A: u8, const B: u8>(original: &[u8], decoded: &[u8]) -> Difference {
    let mut sums = Sums {
        signal: [_mm256_setzero_pd(); 2],
        noise: [_mm256_setzero_pd(); 2],
        max_error: _mm256_setzero_ps(),
    };
    let mut originals = original.chunks_exact(8 * size_of::<A>());
    let mut decodeds = decoded.chunks_exact(8 * size_of::<B>());
    for (a, b) in (&mut originals).zip(&mut decodeds) {
        add(&mut sums, load8::<A>(a), load8::<B>(b));
    }
    // Zeros add nothing.
    let (mut last_a, mut last_b) = ([0; 32], [0; 32]);
    let (rest_a, rest_b) = (originals.remainder(), decodeds.remainder());
    last_a[..rest_a.len()].copy_from_slice(rest_a);
    last_b[..rest_b.len()].copy_from_slice(rest_b);
    add(&mut sums, load8::<A>(&last_a), load8::<B>(&last_b));
    let mut errors = [0.0; 8];
    store_ps(&mut errors, sums.max_error);
    Difference {
        signal: sum_of_lanes(&lanes(sums.signal)),
        noise: sum_of_lanes(&lanes(sums.noise)),
        max_error: errors.into_iter().fold(0.0, f32::max),
        n_values: (original.len() / size_of::<A>()) as u64,
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add(sums: &mut Sums, a: __m256, b: __m256) {
    let error = _mm256_sub_ps(a, b);
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), error);
    // Of a NaN and a number this is the second one.
    sums.max_error = _mm256_max_ps(magnitude, sums.max_error);
    add_squares(&mut sums.signal, a);
    add_squares(&mut sums.noise, error);
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add_squares(sums: &mut [__m256d; 2], v: __m256) {
    let halves = [
        _mm256_cvtps_pd(_mm256_castps256_ps128(v)),
        _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v)),
    ];
    for (sum, half) in sums.iter_mut().zip(halves) {
        *sum = _mm256_add_pd(*sum, _mm256_mul_pd(half, half));
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes(sums: [__m256d; 2]) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        // SAFETY: 4 writable F64; the store needs no alignment.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) }
    }
    lanes
}
