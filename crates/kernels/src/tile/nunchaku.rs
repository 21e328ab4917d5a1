//! Nunchaku (SVDQuant for diffusion models): every tensor in the order of the fragments of `mma` instructions.
//!
//! Written as digits, most significant first, in mixed radix (the number after a letter is its radix):
//!
//! ```text
//! codes       row a8 b2 c8, column d2 e4 f8     nibble  a c e b d f
//! scales      row p8 q2 l4 m2                   value   p l q m
//! micro       row p4 q4 l8, column m4           byte    l q p m
//! low rank    row b2 c8, column d2 e4 f2        value   c e b d f
//! ```
//!
//! The codes of its W4A16 modulation layers are those of [`super::awq`].
//! Spec: `specs/packings/nunchaku_codes.md`, `nunchaku_scales.md`, `nunchaku_micro_scales.md`,
//! `nunchaku_low_rank.md`, `nunchaku_low_rank_down.md`.

/// [`super::Tile::NunchakuCodes`].
pub(super) const fn codes(row: usize, column: usize) -> usize {
    let thread = (row / 16 * 8 + row % 8) * 4 + column / 8 % 4;
    let word = thread * 4 + row / 8 % 2 * 2 + column / 32;
    8 * word + column % 8
}

/// [`super::Tile::NunchakuScales`].
pub(super) const fn scales(row: usize) -> usize {
    row / 16 * 16 + row / 2 % 4 * 4 + row / 8 % 2 * 2 + row % 2
}

/// [`super::Tile::NunchakuMicroScales`].
pub(super) const fn micro_scales(row: usize, column: usize) -> usize {
    let thread = row % 8 * 4 + row / 8 % 4;
    thread * 16 + row / 32 * 4 + column
}

/// [`super::Tile::NunchakuLowRank`]; with the arguments exchanged [`super::Tile::NunchakuLowRankDown`].
pub(super) const fn low_rank(row: usize, column: usize) -> usize {
    let thread = row % 8 * 4 + column / 2 % 4;
    thread * 8 + row / 8 * 4 + column / 8 * 2 + column % 2
}
