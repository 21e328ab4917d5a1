//! IQ1, IQ2, IQ3: groups of four or eight elements are points of a lattice.
//!
//! A point's coordinates are few values (see [`super::lattice_grids`]); signs are stored beside the indices, either all
//! eight of them, or seven with the eighth making their number even.

use super::lattice_grids::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::layout::widen_f16;

const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const IQ3_XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
const IQ1_VALUES: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];

/// What IQ1 shifts its points by, up or down.
const IQ1_DELTA: f32 = 0.125;

/// Seven signs completed to an even number of negative ones (`ksigns_iq2xs`).
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// Writes eight elements: `(scale * coordinate) * sign`, bit `j` of `signs` meaning minus.
fn put_eight(out: &mut [f32], scale: f32, coordinates: [f32; 8], signs: u8) {
    for (j, (out, coordinate)) in out.iter_mut().zip(coordinates).enumerate() {
        let sign = if signs >> j & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * coordinate * sign;
    }
}

/// The eight coordinates of a point with 2-bit digits.
fn eight(point: u16, values: &[f32; 4]) -> [f32; 8] {
    std::array::from_fn(|j| values[usize::from(point >> (2 * j) & 3)])
}

/// The coordinates of two points with 3-bit digits.
fn four_and_four(points: [u16; 2], values: &[f32; 8]) -> [f32; 8] {
    std::array::from_fn(|j| values[usize::from(points[j / 4] >> (3 * (j % 4)) & 7)])
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) | u32::from(word(bytes, at + 2)) << 16
}

/// d@0, then per 32 elements 4 indices and a word of 4 x 7 signs and a 4-bit scale.
pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let at = 2 + 8 * i;
        let rest = double_word(block, at + 4);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let point = IQ2_XXS[usize::from(block[at + l])];
            put_eight(
                out,
                scale,
                eight(point, &IQ2_VALUES),
                even_signs(rest >> (7 * l)),
            );
        }
    }
}

/// d@0, words of 9-bit index and 7 signs @2, 4-bit scales per 16 elements @66.
pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = word(block, 2 + 2 * i);
        let scale = iq2_scale(d, block[66 + i / 4], i);
        let point = IQ2_XS[usize::from(code & 511)];
        put_eight(
            out,
            scale,
            eight(point, &IQ2_VALUES),
            even_signs(u32::from(code >> 9)),
        );
    }
}

/// d@0, low bytes of the indices @2, signs @34, top bits of the indices @66, 4-bit scales per 16 elements @74.
pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let top = usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
        let scale = iq2_scale(d, block[74 + i / 4], i);
        let point = IQ2_S[usize::from(block[2 + i]) | top << 8];
        put_eight(out, scale, eight(point, &IQ2_VALUES), block[34 + i]);
    }
}

/// The scale of the `i`-th eight elements, two of which share a nibble.
fn iq2_scale(d: f32, nibbles: u8, i: usize) -> f32 {
    let nibble = nibbles >> (4 * (i % 4 / 2)) & 15;
    d * (0.5 + f32::from(nibble)) * 0.25
}

/// d@0, indices @2, then per 32 elements a word of 4 x 7 signs and a 4-bit scale @66.
pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let rest = double_word(block, 66 + 4 * i);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let at = 2 + 8 * i + 2 * l;
            let points = [block[at], block[at + 1]].map(|index| IQ3_XXS[usize::from(index)]);
            let coordinates = four_and_four(points, &IQ3_XXS_VALUES);
            put_eight(out, scale, coordinates, even_signs(rest >> (7 * l)));
        }
    }
}

/// d@0, low bytes of the indices @2, top bits @66, signs @74, 4-bit scales per 32 elements @106.
pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let nibble = block[106 + i / 8] >> (4 * (i / 4 % 2)) & 15;
        let scale = d * f32::from(1 + 2 * nibble);
        let tops = block[66 + i / 4] >> (2 * (i % 4));
        let index = |k: usize| usize::from(block[2 + 2 * i + k]) | usize::from(tops >> k & 1) << 8;
        let coordinates = four_and_four([IQ3_S[index(0)], IQ3_S[index(1)]], &IQ3_S_VALUES);
        put_eight(out, scale, coordinates, block[74 + i]);
    }
}

/// d@0, low bytes of the indices @2, then per 32 elements a word @34: 4 x 3 top bits, a 3-bit scale, the shift's sign.
pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let d = widen_f16(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let rest = word(block, 34 + i / 4 * 2);
        let scale = d * f32::from(2 * (rest >> 12 & 7) + 1);
        let index = u16::from(block[2 + i]) | (rest >> (3 * (i % 4)) & 7) << 8;
        put_shifted(out, scale, index, rest & 0x8000 != 0);
    }
}

/// Low bytes of the indices @0, then per eight elements a nibble @32 (3 top bits, the shift's sign), then four words @48
/// of four 3-bit scales each, whose top nibbles together are the F16 scale.
pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    let words: [u16; 4] = std::array::from_fn(|k| word(block, 48 + 2 * k));
    let bits = words[0] >> 12 | words[1] >> 8 & 0x00f0 | words[2] >> 4 & 0x0f00 | words[3] & 0xf000;
    let d = widen_f16(&bits.to_le_bytes(), 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = words[i / 8] >> (3 * (i / 2 % 4)) & 7;
        let nibble = block[32 + i / 2] >> (4 * (i % 2)) & 15;
        let index = u16::from(block[i]) | u16::from(nibble & 7) << 8;
        put_shifted(out, d * f32::from(2 * scale + 1), index, nibble & 8 != 0);
    }
}

/// Writes eight elements of an IQ1 type: the point, shifted down if `down` is set and up otherwise, times the scale.
fn put_shifted(out: &mut [f32], scale: f32, index: u16, down: bool) {
    let delta = if down { -IQ1_DELTA } else { IQ1_DELTA };
    let coordinates = eight(IQ1_S[usize::from(index)], &IQ1_VALUES);
    for (out, coordinate) in out.iter_mut().zip(coordinates) {
        *out = scale * (coordinate + delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_signs_are_completed_to_an_even_number() {
        // The first and last entries of `ksigns_iq2xs`.
        assert_eq!(
            [0, 1, 2, 3, 126, 127].map(even_signs),
            [0, 129, 130, 3, 126, 255]
        );
    }

    #[test]
    fn points_have_legal_digits_and_differ() {
        let mut n_points = 0;
        for (grid, ternary) in [
            (&IQ2_XXS[..], true),
            (&IQ2_XS, true),
            (&IQ2_S, true),
            (&IQ1_S, true),
            (&IQ3_XXS, false),
            (&IQ3_S, false),
        ] {
            let mut points = grid.to_vec();
            points.sort_unstable();
            points.dedup();
            assert_eq!(points.len(), grid.len());
            let is_ternary = |point: &u16| (0..8).all(|j| point >> (2 * j) & 3 != 3);
            let is_legal = |point: &u16| (ternary && is_ternary(point)) || point >> 12 == 0;
            assert!(points.iter().all(is_legal));
            n_points += points.len();
        }
        assert_eq!(n_points, 256 + 512 + 1024 + 2048 + 256 + 512);
    }
}
