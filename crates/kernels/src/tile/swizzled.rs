//! Block scales as tensor cores read them: cuBLAS' 128 x 4 tiles, in torchao and ComfyUI "swizzled" or "blocked".
//!
//! ```text
//! byte    0      4      8      12     16     20            496    500    504    508    511
//!        +------+------+------+------+------+------+      +------+------+------+------+
//!        | r 0  | r 32 | r 64 | r 96 | r 1  | r 33 | ...  | r 31 | r 63 | r 95 | r 127|
//!        +------+------+------+------+------+------+      +------+------+------+------+
//!          each box: columns 0, 1, 2, 3 of that row
//! ```
//!
//! Spec: `specs/packings/swizzled.md`.

/// [`super::Tile::Swizzled`].
pub(super) const fn scales(row: usize, column: usize) -> usize {
    row % 32 * 16 + row / 32 * 4 + column
}

#[cfg(test)]
mod tests {
    use crate::Tile;

    /// comfyui.md §11: `(row, column)` of a grid of 256 x 8 and the byte it lies at.
    #[test]
    fn comfy_kitchen_examples() {
        let cases = [
            ((0, 3), 3),
            ((1, 0), 16),
            ((31, 2), 498),
            ((32, 0), 4),
            ((33, 1), 21),
            ((127, 3), 511),
            ((0, 4), 512),
            ((128, 0), 1024),
            ((200, 5), 1673),
        ];
        for ((row, column), expected) in cases {
            let tile = Tile::Swizzled.index(row / 128, column / 4, 2, 2);
            let within = Tile::Swizzled.position(row % 128, column % 4);
            assert_eq!(512 * tile + within, expected, "({row}, {column})");
        }
    }
}
