//! Nunchaku (SVDQuant for diffusion models): every tensor in the order of the fragments of `mma` instructions.
//!
//! Written as digits, most significant first, in mixed radix (the number after a letter is its radix):
//!
//! ```text
//! codes       row a8 b2 c8, column d2 e4 f8     nibble  a c e b d f
//! scales      row p8 q2 l4 m2                   value   p l q m
//! low rank    row b2 c8, column d2 e4 f2        value   c e b d f
//! ```
//!
//! The codes of its W4A16 modulation layers are those of [`super::awq`].
//! Spec: `specs/packings/nunchaku_codes.md`, `nunchaku_scales.md`, `nunchaku_low_rank.md`.

/// [`super::Tile::NunchakuCodes`].
pub(super) const fn codes(row: usize, column: usize) -> usize {
    let (a, b, c) = (row / 16, row / 8 % 2, row % 8);
    let (d, e, f) = (column / 32, column / 8 % 4, column % 8);
    let word = (a * 8 + c) * 16 + e * 4 + b * 2 + d;
    8 * word + f
}

/// [`super::Tile::NunchakuScales`].
pub(super) const fn scales(row: usize) -> usize {
    let (p, q, l, m) = (row / 16, row / 8 % 2, row / 2 % 4, row % 2);
    p * 16 + l * 4 + q * 2 + m
}

/// [`super::Tile::NunchakuLowRank`].
pub(super) const fn low_rank(row: usize, column: usize) -> usize {
    let (b, c) = (row / 8, row % 8);
    let (d, e, f) = (column / 8, column / 2 % 4, column % 2);
    c * 32 + e * 8 + b * 4 + d * 2 + f
}
