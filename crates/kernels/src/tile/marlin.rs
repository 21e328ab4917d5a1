//! Marlin as AutoAWQ and AutoGPTQ write it: codes in the order in which the fragments of an `mma.m16n8k16` are loaded,
//! scales in the order in which its threads need them.
//!
//! ```text
//! codes     word 4 * (4 * (n % 8) + (k % 8) / 2) + n / 16 holds, lowest nibble first, with even k and k + 1, n and n + 8
//!           (written n8), k and k + 8 (k8) of one thread:
//!           (n, k) (n, k8) (n8, k) (n8, k8), then the same of k + 1: hence the interleave 0 4 1 5 2 6 3 7
//! scales    64 features as a transposed 8 x 8 matrix: feature 8j + i at 8i + j
//! single    32 features as 4 blocks of 8: block i holds features 2i + 0, 1, 8, 9, 16, 17, 24, 25
//! ```
//!
//! Spec: `specs/packings/marlin.md`, `marlin_scales.md`, `marlin_scales_single.md`.

/// Where the eight codes of a thread go in its word.
const INTERLEAVE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// [`super::Tile::Marlin`].
pub(super) const fn codes(row: usize, column: usize) -> usize {
    let (c, k) = (row % 16, column);
    let thread = (c % 8) * 4 + (k % 8) / 2;
    let of_thread = c / 8 * 4 + k / 8 * 2 + k % 2;
    32 * thread + 8 * (row / 16) + INTERLEAVE[of_thread]
}

/// [`super::Tile::MarlinScales`].
pub(super) const fn scales(row: usize) -> usize {
    8 * (row % 8) + row / 8
}

/// [`super::Tile::MarlinScalesSingle`].
pub(super) const fn scales_single(row: usize) -> usize {
    8 * (row % 8 / 2) + 2 * (row / 8) + row % 2
}

#[cfg(test)]
mod tests {
    use crate::Tile;

    /// awq.md §6, run there: all codes 8 except column k = 0, where rows 0 to 7 are 0 to 7.
    #[test]
    fn autoawq_example() {
        let mut codes = vec![8; 1024];
        for n in 0..8 {
            codes[n * 16] = n as u8;
        }
        let mut packed = vec![0xff; 512];
        Tile::Marlin.pack(&codes, &mut packed);
        let words = packed.as_chunks().0.iter().map(|&w| u32::from_le_bytes(w));
        for (i, word) in words.enumerate() {
            let expected = if i % 16 == 0 {
                0x8888_8880 + i as u32 / 16
            } else {
                0x8888_8888
            };
            assert_eq!(word, expected, "word {i}");
        }
    }

    /// awq.md §6: position `8i + y` of a block holds feature `2i + [0, 1, 8, 9, 16, 17, 24, 25][y]`.
    #[test]
    fn scales_of_one_group_are_in_blocks_of_eight() {
        for i in 0..4 {
            for (y, base) in [0, 1, 8, 9, 16, 17, 24, 25].into_iter().enumerate() {
                assert_eq!(
                    Tile::MarlinScalesSingle.position(2 * i + base, 0),
                    8 * i + y
                );
            }
        }
    }

    #[test]
    fn scales_are_a_transposed_square() {
        for i in 0..8 {
            for j in 0..8 {
                assert_eq!(Tile::MarlinScales.position(i + 8 * j, 0), 8 * i + j);
            }
        }
    }
}
