//! `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.

use super::super::layout::Block;
use super::{extreme, inverse, max_magnitude};

pub(super) fn q4_0(x: &[f32], block: &mut Block) {
    symmetric(x, block, 8);
}

pub(super) fn q5_0(x: &[f32], block: &mut Block) {
    symmetric(x, block, 16);
}

/// The value of largest magnitude becomes code 0; `half` is half the number of codes. The scale carries its sign.
fn symmetric(x: &[f32], block: &mut Block, half: u8) {
    block.d = extreme(x) / -f32::from(half);
    let id = inverse(block.d);
    for (code, x) in block.codes.iter_mut().zip(x) {
        let rounded = (x * id + (f32::from(half) + 0.5)) as i8;
        *code = (rounded as u8).min(2 * half - 1);
    }
}

pub(super) fn q4_1(x: &[f32], block: &mut Block) {
    affine(x, block, 15);
}

/// ggml clamps no code here; none exceeds 31 for finite values.
pub(super) fn q5_1(x: &[f32], block: &mut Block) {
    affine(x, block, 31);
}

/// The smallest value becomes code 0, the largest `max_code`.
fn affine(x: &[f32], block: &mut Block, max_code: u8) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &x in x {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
    }
    (block.d, block.m) = ((max - min) / f32::from(max_code), min);
    let id = inverse(block.d);
    for (code, x) in block.codes.iter_mut().zip(x) {
        *code = (((x - min) * id + 0.5) as u8).min(max_code);
    }
}

/// Ties away from zero; the codes follow from the scale before it is rounded to F16.
pub(super) fn q8_0(x: &[f32], block: &mut Block) {
    block.d = max_magnitude(x) / 127.0;
    let id = inverse(block.d);
    for (code, x) in block.codes.iter_mut().zip(x) {
        *code = ((x * id).round() as i8) as u8 ^ 0x80;
    }
}
