//! Marlin for 2:4 sparse weights ("marlin-24"): codes of the kept half of the columns, the positions of those codes in
//! CUTLASS's order for `mma.sp`, and scales.
//!
//! ```text
//! codes     thread i = 4 * (n / 8) + (k / 2) % 4 owns 32 consecutive codes: four runs, one for each n % 4, of eight:
//!           n % 8 / 4 outside, then k / 8 and k % 2; in a run the even places come first
//! metadata  a word of 16 bits covers four quads of one row: 64 rows by 2 words, row r at place
//!           d = 2 * (r % 2) + r % 8 / 4 + 32 * (r % 4 / 2) + 4 * (r / 8); odd d and odd column change places with even
//! scales    8 features: x = 0 .. 7 of the block at 0 2 4 6 1 3 5 7
//! ```
//!
//! Spec: `specs/packings/sparse_marlin.md`, `sparse_marlin_bytes.md`, `sparse_marlin_scales.md`, `sparse_marlin_meta.md`.

/// Where the eight 4-bit codes of a run go.
const INTERLEAVE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Where four 8-bit codes go: half a run.
const INTERLEAVE_BYTES: [usize; 4] = [0, 2, 1, 3];

/// First code of the run, and where in the run the code lies before it is interleaved.
const fn run(row: usize, column: usize) -> (usize, usize) {
    let thread = 4 * (row / 8) + column / 2 % 4;
    let of_run = row % 8 / 4 * 4 + column / 8 * 2 + column % 2;
    (32 * thread + 8 * (row % 4), of_run)
}

/// [`super::Tile::SparseMarlin`].
pub(super) const fn codes(row: usize, column: usize) -> usize {
    let (run, at) = run(row, column);
    run + INTERLEAVE[at]
}

/// [`super::Tile::SparseMarlinBytes`].
pub(super) const fn codes_of_bytes(row: usize, column: usize) -> usize {
    let (run, at) = run(row, column);
    run + at / 4 * 4 + INTERLEAVE_BYTES[at % 4]
}

/// [`super::Tile::SparseMarlinScales`].
pub(super) const fn scales(row: usize) -> usize {
    row % 4 * 2 + row / 4
}

/// [`super::Tile::SparseMarlinMeta`].
pub(super) const fn meta(row: usize, column: usize) -> usize {
    let d = 2 * (row % 2) + row % 8 / 4 + 32 * (row % 4 / 2) + 4 * (row / 8);
    match (d % 2, column) {
        (0, 1) => 2 * (d + 1),
        (1, 0) => 2 * (d - 1) + 1,
        _ => 2 * d + column,
    }
}

#[cfg(test)]
mod tests {
    use crate::Tile;

    /// The library's loop (`marlin_24.py`, `get_permutations_24`), which lists for each place the entry that goes there.
    fn permutation(interleave: &[usize]) -> Vec<usize> {
        let mut perm = Vec::new();
        for i in 0..32 {
            let col = i / 4;
            let mut eight = Vec::new();
            for block in [0, 1] {
                for row in [
                    2 * (i % 4),
                    2 * (i % 4) + 1,
                    2 * (i % 4 + 4),
                    2 * (i % 4 + 4) + 1,
                ] {
                    eight.push(16 * row + col / 2 * 256 + 8 * (col % 2) + 4 * block);
                }
            }
            for j in 0..4 {
                perm.extend(eight.iter().map(|p| p + j));
            }
        }
        perm.chunks(interleave.len())
            .flat_map(|run| interleave.iter().map(|&i| run[i]))
            .collect()
    }

    #[test]
    fn codes_are_permuted_as_in_the_library() {
        for (tile, interleave) in [
            (Tile::SparseMarlin, &[0, 2, 4, 6, 1, 3, 5, 7][..]),
            (Tile::SparseMarlinBytes, &[0, 2, 1, 3]),
        ] {
            for (place, entry) in permutation(interleave).into_iter().enumerate() {
                let (n, k) = (entry / 256 * 16 + entry % 16, entry % 256 / 16);
                assert_eq!(tile.position(n, k), place, "{tile:?} {n} {k}");
            }
        }
    }

    /// `marlin_24.py`, `get_permutations_24`: place `8i + y` holds feature `8i + [0, 4, 1, 5, 2, 6, 3, 7][y]`.
    #[test]
    fn scales_are_interleaved_in_blocks_of_eight() {
        for (y, feature) in [0, 4, 1, 5, 2, 6, 3, 7].into_iter().enumerate() {
            assert_eq!(Tile::SparseMarlinScales.position(feature, 0), y);
        }
    }
}
