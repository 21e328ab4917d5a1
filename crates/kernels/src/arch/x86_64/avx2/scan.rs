//! Scans: one pass, no stores. `portable::scan`, with enough independent accumulators to wait for memory only.

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_castps_si256, _mm256_max_epi32, _mm256_max_ps, _mm256_min_ps,
    _mm256_or_si256, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_testz_si256,
};

use super::lanes::{load_ps, nan_lanes, store_ps};
use crate::portable::scan;

/// Values per turn: four vectors.
const TURN: usize = 32;

/// See [`scan::absmax`].
#[target_feature(enable = "avx2")]
pub(super) fn absmax(values: &[f32]) -> f32 {
    let mask = _mm256_set1_epi32(0x7fff_ffff);
    let mut largest = [_mm256_setzero_si256(); 4];
    let (turns, rest) = values.as_chunks::<TURN>();
    for turn in turns {
        for (largest, values) in largest.iter_mut().zip(turn.as_chunks().0) {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(load_ps(values)), mask);
            *largest = _mm256_max_epi32(*largest, magnitude);
        }
    }
    let [a, b, c, d] = largest;
    let all = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    // The magnitudes stand for themselves among the rest.
    let mut last = [0.0; 8 + TURN];
    store_ps(
        first_eight(&mut last),
        std::arch::x86_64::_mm256_castsi256_ps(all),
    );
    last[8..8 + rest.len()].copy_from_slice(rest);
    scan::absmax(&last)
}

/// See [`scan::min_max`].
#[target_feature(enable = "avx2")]
pub(super) fn min_max(values: &[f32]) -> (f32, f32) {
    let (turns, rest) = values.as_chunks::<TURN>();
    let Some(first) = turns.first() else {
        return scan::min_max(values);
    };
    let start = load_ps(&first.as_chunks().0[0]);
    let (mut low, mut high) = ([start; 4], [start; 4]);
    let mut nan = [_mm256_setzero_si256(); 4];
    for turn in turns {
        for (lane, values) in turn.as_chunks().0.iter().enumerate() {
            let v = load_ps(values);
            low[lane] = _mm256_min_ps(v, low[lane]);
            high[lane] = _mm256_max_ps(v, high[lane]);
            nan[lane] = _mm256_or_si256(nan[lane], nan_lanes(v));
        }
    }
    if any(nan) {
        return scan::min_max(&[f32::NAN]);
    }
    // Smallest, largest and the rest: the portable code ends it, zeros included.
    let mut last = [first[0]; 16 + TURN];
    let lows = _mm256_min_ps(_mm256_min_ps(low[0], low[1]), _mm256_min_ps(low[2], low[3]));
    let highs = _mm256_max_ps(
        _mm256_max_ps(high[0], high[1]),
        _mm256_max_ps(high[2], high[3]),
    );
    let (pair, tail) = last.split_at_mut(16);
    let (pair, _) = pair.as_chunks_mut();
    store_ps(&mut pair[0], lows);
    store_ps(&mut pair[1], highs);
    tail[..rest.len()].copy_from_slice(rest);
    scan::min_max(&last)
}

#[target_feature(enable = "avx2")]
#[inline]
fn any(masks: [__m256i; 4]) -> bool {
    let [a, b, c, d] = masks;
    let all = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
    _mm256_testz_si256(all, all) == 0
}

fn first_eight<const N: usize>(values: &mut [f32; N]) -> &mut [f32; 8] {
    &mut values.as_chunks_mut().0[0]
}
