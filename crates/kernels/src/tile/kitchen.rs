//! comfy-kitchen's tiled SVDQuant layout: rows are in plain order inside a tile, only the tiles are apart.
//!
//! `weight[t, u, p, 32a + b]` of the stored `[out_features / 128, in_features / 64, 32, 128]` bytes is byte `32u + b` of
//! row `128t + 4p + a`: `128p + 32a` is 32 times the row in the tile. The scales `[out_features / 128, n_groups, 128]`
//! and the up projection `[out_features / 128, rank, 128]` are the transposes of tiles of 128 rows: column `c` of tile row
//! `t` is the run `[t, c, ..]` ([`super::Tile::KitchenSvdqColumns`]).
//!
//! Spec: `specs/packings/kitchen_svdq.md`.

/// [`super::Tile::KitchenSvdq`].
pub(super) const fn svdq(row: usize, column: usize) -> usize {
    row * 64 + column
}

#[cfg(test)]
mod tests {
    use crate::Tile;

    /// comfyui.md §3.9, the formula as it stands there.
    #[test]
    fn the_formula_of_the_library_is_row_major() {
        for a in 0..4 {
            for p in 0..32 {
                for b in 0..32 {
                    let stored_byte = p * 128 + 32 * a + b;
                    let position = Tile::KitchenSvdq.position(4 * p + a, 2 * b);
                    assert_eq!(position, 2 * stored_byte);
                }
            }
        }
    }
}
