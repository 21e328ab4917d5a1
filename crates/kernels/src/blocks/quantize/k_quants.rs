//! `Q2_K` to `Q6_K`: a search for scales (and minima) per group, which are then quantized themselves.

use super::super::k_quants::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
use super::super::layout::{Block, BlockLayout, narrow_f16, widen_f16};
use super::nearest_int;

/// `GROUP_MAX_EPS`: groups below it count as zero.
pub(crate) const EPSILON: f32 = 1e-15;

/// Rounds to F16 and back.
pub(crate) fn through_f16(value: f32) -> f32 {
    widen_f16(&narrow_f16(value).to_le_bytes(), 0)
}

/// The search of `make_qkx2_quants`.
pub(crate) struct Search {
    /// Codes are 0 to this.
    pub(crate) max_code: i32,
    /// The first trial's divisor is `max_code + first`; the next ones' are 0.1 larger each.
    first: f32,
    /// The last trial's number, counted from 0.
    last: i32,
    /// What a difference costs before it is weighted.
    pub(crate) cost: Cost,
}

/// What a difference costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Its magnitude.
    Magnitude,
    /// Its square.
    Square,
}

impl Cost {
    fn of(self, difference: f32) -> f32 {
        match self {
            Cost::Magnitude => difference.abs(),
            Cost::Square => difference * difference,
        }
    }
}

/// The search for `Q2_K`: weights are magnitudes.
pub(crate) const Q2_SEARCH: Search = Search {
    max_code: 3,
    first: -0.5,
    last: 15,
    cost: Cost::Magnitude,
};

/// The search for `Q4_K`: weights are magnitudes on top of their quadratic mean.
pub(crate) const Q4_SEARCH: Search = Search {
    max_code: 15,
    first: -1.0,
    last: 20,
    cost: Cost::Square,
};

/// The search for `Q5_K`, weights as for `Q4_K`.
pub(crate) const Q5_SEARCH: Search = Search {
    max_code: 31,
    first: -0.5,
    last: 15,
    cost: Cost::Square,
};

/// A scale and a minimum found, the minimum counted downward.
pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) min: f32,
}

impl Search {
    /// What each trial divides, in order.
    pub(crate) fn divisors(&self) -> impl Iterator<Item = f32> {
        (0..=self.last).map(|step| self.first + 0.1 * step as f32 + self.max_code as f32)
    }

    fn codes(&self, x: &[f32], inverse_scale: f32, min: f32, codes: &mut [u8]) {
        for (code, x) in codes.iter_mut().zip(x) {
            let nearest = nearest_int(inverse_scale * (x - min));
            *code = nearest.clamp(0, self.max_code) as u8;
        }
    }

    fn error(&self, x: &[f32], weights: &[f32], codes: &[u8], scale: f32, min: f32) -> f32 {
        let terms = x.iter().zip(weights).zip(codes);
        terms.fold(0.0, |sum, ((x, weight), &code)| {
            sum + weight * self.cost.of(scale * f32::from(code) + min - x)
        })
    }

    /// Tries scales, fits scale and minimum to the codes of each by weighted least squares, and keeps the best.
    #[expect(
        clippy::float_cmp,
        reason = "equal extremes are a case of their own in ggml"
    )]
    fn run(&self, x: &[f32], weights: &[f32], codes: &mut [u8]) -> Affine {
        let (mut min, mut max) = (x[0], x[0]);
        let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
        for (&x, &w) in x.iter().zip(weights).skip(1) {
            min = if x < min { x } else { min };
            max = if x > max { x } else { max };
            sum_w += w;
            sum_x += w * x;
        }
        min = if min > 0.0 { 0.0 } else { min };
        if max == min {
            codes.fill(0);
            return Affine {
                scale: 0.0,
                min: -min,
            };
        }
        let inverse_scale = self.max_code as f32 / (max - min);
        let mut scale = 1.0 / inverse_scale;
        self.codes(x, inverse_scale, min, codes);
        let mut best = self.error(x, weights, codes, scale, min);
        let mut trial = [0; 32];
        let trial = &mut trial[..x.len()];
        for divisor in self.divisors() {
            // `min` is the best one so far: later trials start from it, as in ggml.
            self.codes(x, divisor / (max - min), min, trial);
            let Some((new_scale, new_min)) = fit(x, weights, trial, sum_w, sum_x) else {
                continue;
            };
            let error = self.error(x, weights, trial, new_scale, new_min);
            if error < best {
                codes.copy_from_slice(trial);
                (best, scale, min) = (error, new_scale, new_min);
            }
        }
        Affine { scale, min: -min }
    }
}

/// Scale and minimum of least weighted squares for given codes; the minimum is at most 0.
fn fit(x: &[f32], weights: &[f32], codes: &[u8], sum_w: f32, sum_x: f32) -> Option<(f32, f32)> {
    let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
    for ((x, w), &code) in x.iter().zip(weights).zip(codes) {
        let l = f32::from(code);
        sum_l += w * l;
        sum_l2 += w * l * l;
        sum_xl += w * l * x;
    }
    let determinant = sum_w * sum_l2 - sum_l * sum_l;
    if determinant.is_nan() || determinant <= 0.0 {
        return None;
    }
    let scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    let min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if min > 0.0 {
        return Some((sum_xl / sum_l2, 0.0));
    }
    Some((scale, min))
}

/// The largest of several, if it is above 0.
fn largest(values: &[f32]) -> f32 {
    let max = |max, &value| if value > max { value } else { max };
    values.iter().fold(0.0, max)
}

/// Codes with the scales as stored: what the search chose was for unrounded ones. Groups of scale 0 keep their codes.
fn requantize(layout: &BlockLayout, x: &[f32], max_code: i32, block: &mut Block) {
    let (d, m) = (through_f16(block.d), through_f16(block.m));
    for (group, x) in x.chunks_exact(layout.group).enumerate() {
        let scale = d * f32::from(block.scales[group]);
        if scale == 0.0 {
            continue;
        }
        let min = m * f32::from(block.mins[group]);
        for (code, x) in block.codes[group * layout.group..].iter_mut().zip(x) {
            *code = nearest_int((x + min) / scale).clamp(0, max_code) as u8;
        }
    }
}

pub(super) fn q2_k(x: &[f32], block: &mut Block) {
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for (group, x) in x.chunks_exact(16).enumerate() {
        let found = magnitude_weighted(x, &mut block.codes[16 * group..16 * (group + 1)]);
        (scales[group], mins[group]) = (found.scale, found.min);
    }
    set_nibbles(&scales, &mins, block);
    requantize(&Q2_K, x, 3, block);
}

/// A group of `Q2_K`.
pub(crate) fn magnitude_weighted(x: &[f32], codes: &mut [u8]) -> Affine {
    let weights: [f32; 16] = std::array::from_fn(|i| x[i].abs());
    Q2_SEARCH.run(x, &weights, codes)
}

/// Stores what was found for the groups of `Q2_K`.
pub(crate) fn set_nibbles(scales: &[f32; 16], mins: &[f32; 16], block: &mut Block) {
    block.d = nibbles(scales, &mut block.scales);
    block.m = nibbles(mins, &mut block.mins);
}

/// Quantizes scales or minima to 4 bits and returns their common scale.
fn nibbles(values: &[f32; 16], codes: &mut [i16; 16]) -> f32 {
    let max = largest(values);
    if max > 0.0 {
        let inverse = 15.0 / max;
        for (code, value) in codes.iter_mut().zip(values) {
            *code = i16::from(nearest_int(inverse * value) as u8);
        }
    }
    if max > 0.0 { max / 15.0 } else { 0.0 }
}

pub(super) fn q4_k(x: &[f32], block: &mut Block) {
    six_bit_pairs(&Q4_SEARCH, &Q4_K, x, block);
}

pub(super) fn q5_k(x: &[f32], block: &mut Block) {
    six_bit_pairs(&Q5_SEARCH, &Q5_K, x, block);
}

/// `Q4_K` and `Q5_K`: 8 groups, 6-bit scales and minima.
fn six_bit_pairs(search: &Search, layout: &BlockLayout, x: &[f32], block: &mut Block) {
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    for (group, x) in x.chunks_exact(32).enumerate() {
        let found = mean_weighted(search, x, &mut block.codes[32 * group..32 * (group + 1)]);
        (scales[group], mins[group]) = (found.scale, found.min);
    }
    set_six_bits(&scales, &mins, block);
    requantize(layout, x, search.max_code, block);
}

/// A group of `Q4_K` or `Q5_K`.
pub(crate) fn mean_weighted(search: &Search, x: &[f32], codes: &mut [u8]) -> Affine {
    let sum = x.iter().fold(0.0_f32, |sum, x| sum + x * x);
    let mean = (sum / 32.0).sqrt();
    let weights: [f32; 32] = std::array::from_fn(|i| mean + x[i].abs());
    search.run(x, &weights, codes)
}

/// Stores what was found for the groups of `Q4_K` or `Q5_K`.
pub(crate) fn set_six_bits(scales: &[f32; 8], mins: &[f32; 8], block: &mut Block) {
    let (max_scale, max_min) = (largest(scales), largest(mins));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let six_bits = |value: f32| i16::from((nearest_int(value) as u8).min(63));
    for group in 0..8 {
        block.scales[group] = six_bits(inverse(max_scale) * scales[group]);
        block.mins[group] = six_bits(inverse(max_min) * mins[group]);
    }
    (block.d, block.m) = (max_scale / 63.0, max_min / 63.0);
}

/// The scale of largest magnitude, the first of several.
fn extreme_scale(scales: &[f32; 16]) -> f32 {
    super::extreme(scales)
}

pub(super) fn q3_k(x: &[f32], block: &mut Block) {
    let mut scales = [0.0; 16];
    for (group, x) in x.chunks_exact(16).enumerate() {
        scales[group] = refined(x, &mut block.codes[16 * group..16 * (group + 1)]);
    }
    let max = extreme_scale(&scales);
    if max == 0.0 {
        block.scales = [-32; 16];
        return;
    }
    let inverse = -32.0 / max;
    for (code, scale) in block.scales.iter_mut().zip(scales) {
        let nearest = nearest_int(inverse * scale) as i8;
        *code = i16::from(nearest.clamp(-32, 31));
    }
    block.d = 1.0 / inverse;
    requantize_signed(&Q3_K, x, 4, block);
}

/// `make_q3_quants`: codes -4 to 3 by the largest magnitude, then up to five rounds that move single codes where that
/// lowers the weighted error. The codes come out plus 4.
fn refined(x: &[f32], codes: &mut [u8]) -> f32 {
    let max = super::extreme(x);
    if max.abs() < EPSILON {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -4.0 / max;
    let mut signed = [0_i32; 16];
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for (l, x) in signed.iter_mut().zip(x) {
        *l = nearest_int(inverse * x).clamp(-4, 3);
        let weight = x * x;
        sum_lx += weight * x * *l as f32;
        sum_l2 += weight * *l as f32 * *l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (l, x) in signed.iter_mut().zip(x) {
            let weight = x * x;
            let lx = sum_lx - weight * x * *l as f32;
            if lx.is_nan() || lx <= 0.0 {
                continue;
            }
            let l2 = sum_l2 - weight * *l as f32 * *l as f32;
            let new = nearest_int(x * l2 / lx).clamp(-4, 3);
            if new == *l {
                continue;
            }
            let lx = lx + weight * x * new as f32;
            let l2 = l2 + weight * new as f32 * new as f32;
            if l2 > 0.0 && lx * lx * sum_l2 > sum_lx * sum_lx * l2 {
                (*l, sum_lx, sum_l2) = (new, lx, l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for (code, l) in codes.iter_mut().zip(signed) {
        *code = (l + 4) as u8;
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// As [`requantize`] for the types without minima; `half` is half the number of codes.
fn requantize_signed(layout: &BlockLayout, x: &[f32], half: i32, block: &mut Block) {
    let d = through_f16(block.d);
    for (group, x) in x.chunks_exact(layout.group).enumerate() {
        let scale = d * f32::from(block.scales[group]);
        if scale == 0.0 {
            continue;
        }
        for (code, x) in block.codes[group * layout.group..].iter_mut().zip(x) {
            *code = (nearest_int(x / scale).clamp(-half, half - 1) + half) as u8;
        }
    }
}

pub(super) fn q6_k(x: &[f32], block: &mut Block) {
    let mut scales = [0.0; 16];
    for (group, x) in x.chunks_exact(16).enumerate() {
        scales[group] = best_of_19(x, &mut block.codes[16 * group..16 * (group + 1)]);
    }
    if set_signed_bytes(&scales, block) {
        requantize_signed(&Q6_K, x, 32, block);
    }
}

/// Stores what was found for the groups of `Q6_K`; whether there is anything but zeros.
pub(crate) fn set_signed_bytes(scales: &[f32; 16], block: &mut Block) -> bool {
    let max = extreme_scale(scales);
    if max.abs() < EPSILON {
        *block = Block::ZERO;
        return false;
    }
    let inverse = -128.0 / max;
    block.d = 1.0 / inverse;
    for (code, scale) in block.scales.iter_mut().zip(scales) {
        *code = i16::from(nearest_int(inverse * scale).min(127) as i8);
    }
    true
}

/// What each trial for `Q6_K` but the first divides by the largest value.
pub(crate) fn dividends() -> impl Iterator<Item = f32> {
    let steps = (-9..=9).filter(|step| *step != 0);
    steps.map(|step| -(HALF as f32 + 0.1 * step as f32))
}

/// Codes of `Q6_K` to either side.
pub(crate) const HALF: i32 = 32;

/// `make_qx_quants` with 32 codes to either side and weights x^2: 19 scales about the largest magnitude's, each with its
/// best fit. The codes come out plus 32.
pub(crate) fn best_of_19(x: &[f32], codes: &mut [u8]) -> f32 {
    let max = super::extreme(x);
    if max.abs() < EPSILON {
        codes.fill(0);
        return 0.0;
    }
    let choose = |inverse: f32, x: f32| nearest_int(inverse * x).clamp(-HALF, HALF - 1);
    let sums = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0_f32, 0.0_f32);
        for &x in x {
            let (l, weight) = (choose(inverse, x) as f32, x * x);
            sum_lx += weight * x * l;
            sum_l2 += weight * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut chosen = -(HALF as f32) / max;
    let (sum_lx, sum_l2) = sums(chosen);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut best = scale * sum_lx;
    for dividend in dividends() {
        let inverse = dividend / max;
        let (sum_lx, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            (chosen, scale) = (inverse, sum_lx / sum_l2);
            best = scale * sum_lx;
        }
    }
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (choose(chosen, x) + HALF) as u8;
    }
    scale
}
