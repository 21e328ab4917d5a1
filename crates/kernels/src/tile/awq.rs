//! AWQ `gemv_fast` and llm-awq: four output features interleaved in 16-bit words.
//!
//! ```text
//! halfword  0 .. 7     8 .. 15    16 .. 23   24 .. 31   ...  56 .. 63
//!          +----------+----------+----------+----------+    +----------+
//!          | row 0    | row 0    | row 1    | row 1    |    | row 3    |
//!          | k 0..31  | k 32..63 | k 0..31  | k 32..63 |    | k 32..63 |
//!          +----------+----------+----------+----------+    +----------+
//!
//! the eight halfwords of columns 0 to 31, lowest nibble first:
//!    0  8 16 24 |  1  9 17 25 |  2 10 18 26 |  3 11 19 27
//!    4 12 20 28 |  5 13 21 29 |  6 14 22 30 |  7 15 23 31
//! ```
//!
//! Spec: `specs/packings/awq_gemv_fast.md`.

/// [`super::Tile::AwqGemvFast`].
pub(super) const fn gemv_fast(row: usize, column: usize) -> usize {
    let halfword = row * 16 + column / 32 * 8 + column % 8;
    4 * halfword + column / 8 % 4
}

#[cfg(test)]
mod tests {
    use crate::Tile;

    /// awq.md §4, run there: codes 0, 8, 2, 3, ..., 15, 0, 1, ..., 15 for columns 0 to 31 of row 0.
    #[test]
    fn autoawq_example() {
        let mut codes = vec![0; 256];
        for (k, code) in codes[..32].iter_mut().enumerate() {
            *code = if k == 1 { 8 } else { (k % 16) as u8 };
        }
        let mut packed = vec![0xff; 128];
        Tile::AwqGemvFast.pack(&codes, &mut packed);
        let words: Vec<u16> = packed
            .as_chunks()
            .0
            .iter()
            .map(|&word| u16::from_le_bytes(word))
            .collect();
        let expected = [
            0x8080, 0x9198, 0xa2a2, 0xb3b3, 0xc4c4, 0xd5d5, 0xe6e6, 0xf7f7,
        ];
        assert_eq!(words[..8], expected);
        assert_eq!(words[8..], [0; 56]);
    }

    /// awq.md §4 (AutoAWQ) and comfyui.md §5 (Nunchaku) give the same bytes in other words.
    #[test]
    fn both_sources_describe_this_tile() {
        for n in 0..4 {
            for k in 0..64 {
                let t = 32 * (k / 32) + 8 * (k >> 1 & 3) + 4 * (k & 1) + (k >> 3 & 3);
                let autoawq = 4 * (n * 16 + t / 4) + t % 4;
                assert_eq!(Tile::AwqGemvFast.position(n, k), autoawq);
                let nunchaku = 4 * (n * 16 + k / 32 * 8 + k % 8) + k % 32 / 8;
                assert_eq!(Tile::AwqGemvFast.position(n, k), nunchaku);
            }
        }
    }

    #[test]
    fn the_second_row_starts_at_halfword_16() {
        assert_eq!(Tile::AwqGemvFast.position(1, 0), 4 * 16);
    }
}
