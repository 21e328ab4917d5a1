//! `TQ1_0`, `TQ2_0`, `Q1_0`, `Q2_0`.

use super::super::layout::Block;
use super::{inverse, max_magnitude};

/// `TQ1_0` and `TQ2_0`: the scale is the largest magnitude, so that codes are 0, 1 or 2.
pub(super) fn tq(x: &[f32], block: &mut Block) {
    ternary(x, block, 2);
}

/// As `TQ2_0`. Code 3 could only come from a value above the largest magnitude.
pub(super) fn q2_0(x: &[f32], block: &mut Block) {
    ternary(x, block, 3);
}

fn ternary(x: &[f32], block: &mut Block, max_code: i32) {
    block.d = max_magnitude(x);
    let id = inverse(block.d);
    for (code, x) in block.codes.iter_mut().zip(x) {
        *code = ((x * id).round() as i32)
            .saturating_add(1)
            .clamp(0, max_code) as u8;
    }
}

/// The scale is the mean magnitude, the code whether the value is at least 0.
pub(super) fn q1_0(x: &[f32], block: &mut Block) {
    let sum = x.iter().fold(0.0_f32, |sum, x| sum + x.abs());
    block.d = sum / x.len() as f32;
    for (code, &x) in block.codes.iter_mut().zip(x) {
        *code = u8::from(x >= 0.0);
    }
}
