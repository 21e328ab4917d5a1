//! `IQ4_NL` and `IQ4_XS` without an importance matrix: weights are the squares of the values.

use super::super::iq_nonlinear::VALUES;
use super::super::layout::Block;
use super::k_quants::EPSILON;
use super::{extreme, inverse, nearest_int};

/// Trials to either side of the first scale (`ntry`).
const TRIALS: i32 = 7;

/// `best_index_int8`: the nearest entry of the table, the upper one of two.
fn nearest(x: f32) -> u8 {
    let value = |i: usize| f32::from(VALUES[i]);
    if x <= value(0) {
        return 0;
    }
    if x >= value(15) {
        return 15;
    }
    // NaN ends at the upper end of the bisection, as in ggml.
    let (mut low, mut high) = (0, 15);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if x < value(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    let below = x - value(high - 1) < value(high) - x;
    (if below { high - 1 } else { high }) as u8
}

/// The best scale of 32 values: a first one from the value of largest magnitude, then 15 others, each with its best fit.
fn scale_of(x: &[f32]) -> f32 {
    let max = extreme(x);
    if max.abs() < EPSILON {
        return 0.0;
    }
    let lowest = f32::from(VALUES[0]);
    let sums = |inverse: f32| {
        let (mut sum_qx, mut sum_q2) = (0.0_f32, 0.0_f32);
        for x in x {
            let q = f32::from(VALUES[usize::from(nearest(inverse * x))]);
            let weight = x * x;
            sum_qx += weight * q * x;
            sum_q2 += weight * q * q;
        }
        (sum_qx, sum_q2)
    };
    let (sum_qx, sum_q2) = sums(1.0 / (-max / lowest));
    let mut scale = if sum_q2 > 0.0 { sum_qx / sum_q2 } else { 0.0 };
    let mut best = scale * sum_qx;
    for trial in -TRIALS..=TRIALS {
        let (sum_qx, sum_q2) = sums((trial as f32 + lowest) / max);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            scale = sum_qx / sum_q2;
            best = scale * sum_qx;
        }
    }
    scale
}

fn choose(x: &[f32], scale: f32, codes: &mut [u8]) {
    let inverse = inverse(scale);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = nearest(inverse * x);
    }
}

pub(super) fn iq4_nl(x: &[f32], block: &mut Block) {
    block.d = scale_of(x);
    choose(x, block.d, &mut block.codes);
}

pub(super) fn iq4_xs(x: &[f32], block: &mut Block) {
    let mut scales = [0.0; 8];
    for (scale, x) in scales.iter_mut().zip(x.chunks_exact(32)) {
        *scale = scale_of(x);
    }
    block.d = -extreme(&scales) / 32.0;
    let id = inverse(block.d);
    for (group, x) in x.chunks_exact(32).enumerate() {
        let l = nearest_int(id * scales[group]).clamp(-32, 31);
        block.scales[group] = l as i16;
        choose(x, block.d * l as f32, &mut block.codes[32 * group..]);
    }
}
