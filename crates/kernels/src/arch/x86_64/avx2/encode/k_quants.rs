//! The searches of ggml's K types, eight groups side by side: a lane does for its group what
//! [`crate::blocks::quantize::k_quants`] does, operation by operation, so that the results are the same bit for bit.
//!
//! Almost all of the time goes into some twenty trials per group, each of which chooses codes, fits a scale to them and adds up
//! the error, all in the order of the elements. That order forbids lanes along a group, and allows them across groups.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_EQ_OQ, _CMP_GT_OQ, _CMP_LT_OQ, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_ps, _mm256_and_si256, _mm256_andnot_ps, _mm256_blendv_ps, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_div_ps, _mm256_loadu_ps,
    _mm256_max_epi32, _mm256_max_ps, _mm256_min_epi32, _mm256_min_ps, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sqrt_ps, _mm256_storeu_ps,
    _mm256_sub_epi32, _mm256_sub_ps, _mm256_xor_ps,
};

use super::super::gather::transpose8;
use super::lanes::{load8, size_of, store8};
use crate::blocks::Block;
use crate::blocks::quantize::k_quants::{self, Cost, EPSILON, HALF, Search};

/// Elements of a block of these types.
pub(super) const ELEMENTS: usize = 256;

/// Groups side by side.
const LANES: usize = 8;

/// A block of finite values.
pub(super) type Values = [f32; ELEMENTS];

/// A block's values, from the bytes of a dense type.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn widened<const KIND: u8>(source: &[u8]) -> Values {
    let mut values = [0.0; ELEMENTS];
    let eights = source.chunks_exact(LANES * size_of::<KIND>());
    for (at, eight) in eights.take(ELEMENTS / LANES).enumerate() {
        put(load8::<KIND>(eight), &mut values, LANES * at);
    }
    values
}

/// `Q2_K`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q2_k(x: &Values, block: &mut Block) {
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for (half, x) in x.as_chunks::<128>().0.iter().enumerate() {
        let x = side_by_side::<16>(x);
        let mut weights = x;
        for weight in &mut weights {
            *weight = magnitude(*weight);
        }
        let [scale, min] = search::<16, false>(&k_quants::Q2_SEARCH, &x, &weights);
        put(scale, &mut scales, LANES * half);
        put(min, &mut mins, LANES * half);
    }
    k_quants::set_nibbles(&scales, &mins, block);
    requantize::<16>(x, k_quants::Q2_SEARCH.max_code, block, |x, codes| {
        k_quants::magnitude_weighted(x, codes);
    });
}

/// `Q4_K` and `Q5_K`, by their search.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn six_bit_pairs(of: &Search, x: &Values, block: &mut Block) {
    let lanes = side_by_side::<32>(x);
    let mut sum = _mm256_setzero_ps();
    for x in lanes {
        sum = _mm256_add_ps(sum, _mm256_mul_ps(x, x));
    }
    let mean = _mm256_sqrt_ps(_mm256_div_ps(sum, _mm256_set1_ps(32.0)));
    let mut weights = lanes;
    for weight in &mut weights {
        *weight = _mm256_add_ps(mean, magnitude(*weight));
    }
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    let [scale, min] = search::<32, true>(of, &lanes, &weights);
    put(scale, &mut scales, 0);
    put(min, &mut mins, 0);
    k_quants::set_six_bits(&scales, &mins, block);
    requantize::<32>(x, of.max_code, block, |x, codes| {
        k_quants::mean_weighted(of, x, codes);
    });
}

/// `Q6_K`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q6_k(x: &Values, block: &mut Block) {
    let mut scales = [0.0; 16];
    for (half, x) in x.as_chunks::<128>().0.iter().enumerate() {
        put(
            best_of_19(&side_by_side::<16>(x)),
            &mut scales,
            LANES * half,
        );
    }
    if k_quants::set_signed_bytes(&scales, block) {
        requantize_signed::<16>(x, block);
    }
}

/// See [`Search`]: scales and minima (counted downward) of eight groups.
#[target_feature(enable = "avx2,f16c")]
fn search<const LEN: usize, const SQUARE: bool>(
    of: &Search,
    x: &[__m256; LEN],
    weights: &[__m256; LEN],
) -> [__m256; 2] {
    debug_assert_eq!(of.cost == Cost::Square, SQUARE);
    let zero = _mm256_setzero_ps();
    let max_code = _mm256_set1_ps(of.max_code as f32);
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], _mm256_mul_ps(weights[0], x[0]));
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        (min, max) = (_mm256_min_ps(x, min), _mm256_max_ps(x, max));
        sum_w = _mm256_add_ps(sum_w, w);
        sum_x = _mm256_add_ps(sum_x, _mm256_mul_ps(w, x));
    }
    min = _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(min, zero), min);
    let (is_flat, first_min) = (_mm256_cmp_ps::<_CMP_EQ_OQ>(max, min), min);
    let inverse = _mm256_div_ps(max_code, _mm256_sub_ps(max, min));
    let mut scale = _mm256_div_ps(_mm256_set1_ps(1.0), inverse);
    let mut codes = choose(of.max_code, x, inverse, min);
    let mut best = error::<LEN, SQUARE>((x, weights), &codes, scale, min);
    for divisor in of.divisors() {
        let inverse = _mm256_div_ps(_mm256_set1_ps(divisor), _mm256_sub_ps(max, min));
        codes = choose(of.max_code, x, inverse, min);
        let (is_fit, new_scale, new_min) = fit((x, weights), &codes, sum_w, sum_x);
        let error = error::<LEN, SQUARE>((x, weights), &codes, new_scale, new_min);
        let is_better = _mm256_and_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(error, best), is_fit);
        best = _mm256_blendv_ps(best, error, is_better);
        scale = _mm256_blendv_ps(scale, new_scale, is_better);
        min = _mm256_blendv_ps(min, new_min, is_better);
    }
    scale = _mm256_andnot_ps(is_flat, scale);
    min = _mm256_blendv_ps(min, first_min, is_flat);
    [scale, _mm256_xor_ps(min, _mm256_set1_ps(-0.0))]
}

/// Codes for a scale and a minimum, as floats.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn choose<const LEN: usize>(
    max_code: i32,
    x: &[__m256; LEN],
    inverse: __m256,
    min: __m256,
) -> [__m256; LEN] {
    let mut codes = [min; LEN];
    for (code, &x) in codes.iter_mut().zip(x) {
        let nearest = nearest(_mm256_mul_ps(inverse, _mm256_sub_ps(x, min)));
        *code = _mm256_cvtepi32_ps(clamp(nearest, 0, max_code));
    }
    codes
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn error<const LEN: usize, const SQUARE: bool>(
    (x, weights): (&[__m256; LEN], &[__m256; LEN]),
    codes: &[__m256; LEN],
    scale: __m256,
    min: __m256,
) -> __m256 {
    let mut sum = _mm256_setzero_ps();
    for ((&x, &weight), &code) in x.iter().zip(weights).zip(codes) {
        let value = _mm256_add_ps(_mm256_mul_ps(scale, code), min);
        let difference = _mm256_sub_ps(value, x);
        let cost = if SQUARE {
            _mm256_mul_ps(difference, difference)
        } else {
            magnitude(difference)
        };
        sum = _mm256_add_ps(sum, _mm256_mul_ps(weight, cost));
    }
    sum
}

/// Scale and minimum of least weighted squares, and where there are some.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn fit<const LEN: usize>(
    (x, weights): (&[__m256; LEN], &[__m256; LEN]),
    codes: &[__m256; LEN],
    sum_w: __m256,
    sum_x: __m256,
) -> (__m256, __m256, __m256) {
    let zero = _mm256_setzero_ps();
    let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
    for ((&x, &weight), &code) in x.iter().zip(weights).zip(codes) {
        let weighted = _mm256_mul_ps(weight, code);
        sum_l = _mm256_add_ps(sum_l, weighted);
        sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(weighted, code));
        sum_xl = _mm256_add_ps(sum_xl, _mm256_mul_ps(weighted, x));
    }
    let difference = |a, b, c, d| _mm256_sub_ps(_mm256_mul_ps(a, b), _mm256_mul_ps(c, d));
    let determinant = difference(sum_w, sum_l2, sum_l, sum_l);
    let scale = _mm256_div_ps(difference(sum_w, sum_xl, sum_x, sum_l), determinant);
    let min = _mm256_div_ps(difference(sum_l2, sum_x, sum_l, sum_xl), determinant);
    let is_above = _mm256_cmp_ps::<_CMP_GT_OQ>(min, zero);
    let scale = _mm256_blendv_ps(scale, _mm256_div_ps(sum_xl, sum_l2), is_above);
    let is_fit = _mm256_cmp_ps::<_CMP_GT_OQ>(determinant, zero);
    (is_fit, scale, _mm256_andnot_ps(is_above, min))
}

/// See [`k_quants::best_of_19`]: the scales of eight groups.
#[target_feature(enable = "avx2,f16c")]
fn best_of_19(x: &[__m256; 16]) -> __m256 {
    let zero = _mm256_setzero_ps();
    let mut extreme = zero;
    for &x in x {
        let is_larger = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude(extreme), magnitude(x));
        extreme = _mm256_blendv_ps(extreme, x, is_larger);
    }
    let is_zero = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude(extreme), _mm256_set1_ps(EPSILON));
    let first = _mm256_div_ps(_mm256_set1_ps(-(HALF as f32)), extreme);
    let (sum_lx, sum_l2) = sums_of_signed(x, first);
    let is_nothing = _mm256_cmp_ps::<_CMP_EQ_OQ>(sum_l2, zero);
    let mut scale = _mm256_andnot_ps(is_nothing, _mm256_div_ps(sum_lx, sum_l2));
    let mut best = _mm256_mul_ps(scale, sum_lx);
    for dividend in k_quants::dividends() {
        let inverse = _mm256_div_ps(_mm256_set1_ps(dividend), extreme);
        let (sum_lx, sum_l2) = sums_of_signed(x, inverse);
        let is_some = _mm256_cmp_ps::<_CMP_GT_OQ>(sum_l2, zero);
        let (ours, theirs) = (_mm256_mul_ps(sum_lx, sum_lx), _mm256_mul_ps(best, sum_l2));
        let is_better = _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(ours, theirs), is_some);
        let new = _mm256_div_ps(sum_lx, sum_l2);
        scale = _mm256_blendv_ps(scale, new, is_better);
        best = _mm256_blendv_ps(best, _mm256_mul_ps(new, sum_lx), is_better);
    }
    _mm256_andnot_ps(is_zero, scale)
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn sums_of_signed(x: &[__m256; 16], inverse: __m256) -> (__m256, __m256) {
    let (mut sum_lx, mut sum_l2) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for &x in x {
        let code = clamp(nearest(_mm256_mul_ps(inverse, x)), -HALF, HALF - 1);
        let (code, weight) = (_mm256_cvtepi32_ps(code), _mm256_mul_ps(x, x));
        let (by_x, by_code) = (_mm256_mul_ps(weight, x), _mm256_mul_ps(weight, code));
        sum_lx = _mm256_add_ps(sum_lx, _mm256_mul_ps(by_x, code));
        sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(by_code, code));
    }
    (sum_lx, sum_l2)
}

/// Codes with the scales as stored. A group whose stored scale is zero keeps the codes of its search, which is repeated for
/// them: they are rare, and everywhere else nobody asks for those codes.
#[target_feature(enable = "avx2,f16c")]
fn requantize<const LEN: usize>(
    x: &Values,
    max_code: i32,
    block: &mut Block,
    search: impl Fn(&[f32], &mut [u8]),
) {
    let [d, m] = [block.d, block.m].map(k_quants::through_f16);
    let groups = x.chunks_exact(LEN).zip(block.codes.chunks_exact_mut(LEN));
    for (group, (x, codes)) in groups.enumerate() {
        let scale = d * f32::from(block.scales[group]);
        if scale == 0.0 {
            search(x, codes);
            continue;
        }
        let min = _mm256_set1_ps(m * f32::from(block.mins[group]));
        let scale = _mm256_set1_ps(scale);
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            let nearest = nearest(_mm256_div_ps(_mm256_add_ps(load_f32(x), min), scale));
            store8(codes, clamp(nearest, 0, max_code));
        }
    }
}

/// The same for `Q6_K`.
#[target_feature(enable = "avx2,f16c")]
fn requantize_signed<const LEN: usize>(x: &Values, block: &mut Block) {
    let d = k_quants::through_f16(block.d);
    let groups = x.chunks_exact(LEN).zip(block.codes.chunks_exact_mut(LEN));
    for (group, (x, codes)) in groups.enumerate() {
        let scale = d * f32::from(block.scales[group]);
        if scale == 0.0 {
            k_quants::best_of_19(x, codes);
            continue;
        }
        let scale = _mm256_set1_ps(scale);
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            let nearest = nearest(_mm256_div_ps(load_f32(x), scale));
            let code = clamp(nearest, -HALF, HALF - 1);
            store8(codes, _mm256_add_epi32(code, _mm256_set1_epi32(HALF)));
        }
    }
}

/// Lane `group` of vector `element` is `x[group * LEN + element]`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn side_by_side<const LEN: usize>(x: &[f32]) -> [__m256; LEN] {
    let mut lanes = [_mm256_setzero_ps(); LEN];
    for (at, lanes) in lanes.chunks_exact_mut(8).enumerate() {
        let row = |group: usize| {
            let piece = x[group * LEN + 8 * at..].first_chunk();
            _mm256_castps_si256(load_f32(piece.expect("eight values")))
        };
        let rows = [
            row(0),
            row(1),
            row(2),
            row(3),
            row(4),
            row(5),
            row(6),
            row(7),
        ];
        for (lane, column) in lanes.iter_mut().zip(transpose8(rows)) {
            *lane = _mm256_castsi256_ps(column);
        }
    }
    lanes
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: eight readable values; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

/// Writes lanes to `out[at..]`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn put(lanes: __m256, out: &mut [f32], at: usize) {
    let out: &mut [f32; 8] = out[at..].first_chunk_mut().expect("eight places");
    // SAFETY: eight writable values; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), lanes) }
}

/// `nearest_int` of ggml, whatever it gives.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn nearest(value: __m256) -> __m256i {
    let bits = _mm256_castps_si256(_mm256_add_ps(value, _mm256_set1_ps(12_582_912.0)));
    let low = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
    _mm256_sub_epi32(low, _mm256_set1_epi32(0x0040_0000))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn clamp(value: __m256i, low: i32, high: i32) -> __m256i {
    let raised = _mm256_max_epi32(value, _mm256_set1_epi32(low));
    _mm256_min_epi32(raised, _mm256_set1_epi32(high))
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn magnitude(value: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), value)
}
