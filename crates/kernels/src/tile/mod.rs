//! Permutations of a whole tile of a stored matrix: one file per family, each with its index formula.
//!
//! A [`crate::Packing`] is about one run of codes. Layouts made for one GPU instruction move entries across rows as well:
//! what they permute is a *tile* of a few rows (output features) by a few columns (input features, or groups where the
//! matrix holds scales). [`Tile::position`] is the definition of such a layout; everything else here follows from it.

mod awq;
mod kitchen;
mod marlin;
mod nunchaku;
mod sparse_marlin;
mod swizzled;

/// A permutation of the entries of one tile (specs/packings/).
///
/// An entry is a 4-bit code, or a value of whole bytes that is moved as it is. The entries lie in the tile's bytes as one
/// stream, lowest bits first: entry `p` is bits `p * bits` to `(p + 1) * bits - 1`.
///
/// | tile | rows x columns | bits | order of tiles | spec |
/// |---|---|---|---|---|
/// | `AwqGemvFast` | 4 x 64 | 4 | row by row | specs/packings/awq_gemv_fast.md |
/// | `Marlin` | 64 x 16 | 4 | column by column | specs/packings/marlin.md |
/// | `MarlinScales` | 64 x 1 | 16 | column by column | specs/packings/marlin_scales.md |
/// | `MarlinScalesSingle` | 32 x 1 | 16 | column by column | specs/packings/marlin_scales_single.md |
/// | `SparseMarlin` | 64 x 16 | 4 | column by column | specs/packings/sparse_marlin.md |
/// | `SparseMarlinBytes` | 64 x 16 | 8 | column by column | specs/packings/sparse_marlin_bytes.md |
/// | `SparseMarlinScales` | 8 x 1 | 16 | column by column | specs/packings/sparse_marlin_scales.md |
/// | `SparseMarlinMeta` | 64 x 2 | 16 | column by column | specs/packings/sparse_marlin_meta.md |
/// | `Swizzled` | 128 x 4 | 8 | row by row | specs/packings/swizzled.md |
/// | `NunchakuCodes` | 128 x 64 | 4 | row by row | specs/packings/nunchaku_codes.md |
/// | `NunchakuScales` | 128 x 1 | 16 | row by row | specs/packings/nunchaku_scales.md |
/// | `NunchakuMicroScales` | 128 x 4 | 8 | row by row | specs/packings/nunchaku_micro_scales.md |
/// | `NunchakuLowRank` | 16 x 16 | 16 | row by row | specs/packings/nunchaku_low_rank.md |
/// | `NunchakuLowRankDown` | 16 x 16 | 16 | row by row | specs/packings/nunchaku_low_rank_down.md |
/// | `KitchenSvdq` | 128 x 64 | 4 | row by row | specs/packings/kitchen_svdq.md |
/// | `KitchenSvdqColumns` | 128 x 1 | 16 | row by row | specs/packings/kitchen_svdq_columns.md |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// AWQ `gemv_fast` and llm-awq codes: 64 halfwords of a stored row `[out_features / 4, in_features]` (I16). Nunchaku's
    /// W4A16 modulation layers are the same bytes under I32 `[out_features / 4, in_features / 2]`.
    AwqGemvFast,
    /// Marlin codes: 128 consecutive words of a stored row `[in_features / 16, 2 * out_features]` (I32).
    Marlin,
    /// Marlin scales with more than one group: 64 consecutive entries of a stored row `[n_groups, out_features]`.
    MarlinScales,
    /// Marlin scales with one group per output feature: 32 consecutive entries of `[1, out_features]`.
    MarlinScalesSingle,
    /// 4-bit codes of a 2:4 sparse matrix, kept columns only: 128 consecutive words of `[in_features / 32, 2 * out_features]`
    /// (I32).
    SparseMarlin,
    /// As [`Tile::SparseMarlin`] with 8-bit codes: 256 consecutive words of `[in_features / 32, 4 * out_features]`.
    SparseMarlinBytes,
    /// Scales beside [`Tile::SparseMarlin`] with more than one group: 8 consecutive entries of a stored row
    /// `[n_groups, out_features]`.
    SparseMarlinScales,
    /// Positions of the kept codes in CUTLASS's order, 16 bits for four quads: 128 consecutive words of
    /// `[in_features / 32, 2 * out_features]` (I16).
    SparseMarlinMeta,
    /// Block scales as tensor cores read them ("swizzled", "blocked", cuBLAS 128x4): 512 consecutive bytes.
    Swizzled,
    /// Nunchaku W4A4 codes: 4096 consecutive bytes of `qweight`.
    NunchakuCodes,
    /// Nunchaku scales of groups of 64, bias and smoothing factors (one column): 128 consecutive 16-bit values.
    NunchakuScales,
    /// Nunchaku E4M3 scales of groups of 16: 512 consecutive bytes.
    NunchakuMicroScales,
    /// Nunchaku's up projection `[out_features, rank]`: 256 consecutive 16-bit values.
    NunchakuLowRank,
    /// Nunchaku's down projection, as the matrix `[in_features, rank]`: 256 consecutive 16-bit values, in each tile the
    /// transpose of [`Tile::NunchakuLowRank`].
    NunchakuLowRankDown,
    /// comfy-kitchen's tiled SVDQuant codes `[out_features / 128, in_features / 64, 32, 128]` (I8): 4096 consecutive bytes.
    KitchenSvdq,
    /// What stands beside [`Tile::KitchenSvdq`], scales `[out_features / 128, n_groups, 128]` and up projection
    /// `[out_features / 128, rank, 128]`: 128 consecutive 16-bit values of one column.
    KitchenSvdqColumns,
}

/// In which order the tiles of a matrix follow each other in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TileOrder {
    /// All tiles of the first rows, left to right, then those of the next rows.
    RowByRow,
    /// All tiles of the first columns, top to bottom, then those of the next columns.
    ColumnByColumn,
}

/// [`Tile::position`] of every entry, row-major; computed by the compiler.
const fn table<const N: usize>(tile: Tile) -> [u16; N] {
    assert!(N == tile.n_entries(), "one position per entry");
    let mut positions = [0; N];
    let mut i = 0;
    while i < N {
        positions[i] = tile.position(i / tile.columns(), i % tile.columns()) as u16;
        i += 1;
    }
    positions
}

impl Tile {
    /// Every tile, in the order of the declaration.
    pub const ALL: &'static [Tile] = &[
        Tile::AwqGemvFast,
        Tile::Marlin,
        Tile::MarlinScales,
        Tile::MarlinScalesSingle,
        Tile::SparseMarlin,
        Tile::SparseMarlinBytes,
        Tile::SparseMarlinScales,
        Tile::SparseMarlinMeta,
        Tile::Swizzled,
        Tile::NunchakuCodes,
        Tile::NunchakuScales,
        Tile::NunchakuMicroScales,
        Tile::NunchakuLowRank,
        Tile::NunchakuLowRankDown,
        Tile::KitchenSvdq,
        Tile::KitchenSvdqColumns,
    ];

    /// Rows of the logical matrix that a tile covers.
    pub const fn rows(self) -> usize {
        match self {
            Tile::AwqGemvFast => 4,
            Tile::SparseMarlinScales => 8,
            Tile::NunchakuLowRank | Tile::NunchakuLowRankDown => 16,
            Tile::MarlinScalesSingle => 32,
            Tile::Marlin
            | Tile::MarlinScales
            | Tile::SparseMarlin
            | Tile::SparseMarlinBytes
            | Tile::SparseMarlinMeta => 64,
            Tile::Swizzled
            | Tile::NunchakuCodes
            | Tile::NunchakuScales
            | Tile::NunchakuMicroScales
            | Tile::KitchenSvdq
            | Tile::KitchenSvdqColumns => 128,
        }
    }

    /// Columns of the logical matrix that a tile covers.
    pub const fn columns(self) -> usize {
        match self {
            Tile::MarlinScales
            | Tile::MarlinScalesSingle
            | Tile::SparseMarlinScales
            | Tile::NunchakuScales
            | Tile::KitchenSvdqColumns => 1,
            Tile::SparseMarlinMeta => 2,
            Tile::Swizzled | Tile::NunchakuMicroScales => 4,
            Tile::Marlin
            | Tile::SparseMarlin
            | Tile::SparseMarlinBytes
            | Tile::NunchakuLowRank
            | Tile::NunchakuLowRankDown => 16,
            Tile::AwqGemvFast | Tile::NunchakuCodes | Tile::KitchenSvdq => 64,
        }
    }

    /// Bits per entry: 4, 8 or 16.
    pub const fn bits(self) -> u32 {
        match self {
            Tile::AwqGemvFast
            | Tile::Marlin
            | Tile::SparseMarlin
            | Tile::NunchakuCodes
            | Tile::KitchenSvdq => 4,
            Tile::Swizzled | Tile::SparseMarlinBytes | Tile::NunchakuMicroScales => 8,
            Tile::MarlinScales
            | Tile::MarlinScalesSingle
            | Tile::SparseMarlinScales
            | Tile::SparseMarlinMeta
            | Tile::NunchakuScales
            | Tile::NunchakuLowRank
            | Tile::NunchakuLowRankDown
            | Tile::KitchenSvdqColumns => 16,
        }
    }

    /// Entries per tile.
    pub const fn n_entries(self) -> usize {
        self.rows() * self.columns()
    }

    /// Bytes of a packed tile.
    pub const fn len_bytes(self) -> usize {
        self.n_entries() * self.bits() as usize / 8
    }

    /// Bytes of one unpacked entry: 1 for a 4-bit code.
    pub const fn entry_bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// How the tiles of a matrix follow each other.
    pub const fn order(self) -> TileOrder {
        match self {
            Tile::Marlin
            | Tile::MarlinScales
            | Tile::MarlinScalesSingle
            | Tile::SparseMarlin
            | Tile::SparseMarlinBytes
            | Tile::SparseMarlinScales
            | Tile::SparseMarlinMeta => TileOrder::ColumnByColumn,
            Tile::AwqGemvFast
            | Tile::Swizzled
            | Tile::NunchakuCodes
            | Tile::NunchakuScales
            | Tile::NunchakuMicroScales
            | Tile::NunchakuLowRank
            | Tile::NunchakuLowRankDown
            | Tile::KitchenSvdq
            | Tile::KitchenSvdqColumns => TileOrder::RowByRow,
        }
    }

    /// Where in the tile's stream the entry at `row`, `column` of the tile lies: the definition of the layout.
    ///
    /// ```
    /// use safequant_kernels::Tile;
    /// assert_eq!(Tile::Swizzled.position(31, 2), 498);
    /// ```
    ///
    /// # Panics
    /// If `row` or `column` lies outside the tile.
    pub const fn position(self, row: usize, column: usize) -> usize {
        assert!(
            row < self.rows() && column < self.columns(),
            "the entry lies outside the tile"
        );
        match self {
            Tile::AwqGemvFast => awq::gemv_fast(row, column),
            Tile::Marlin => marlin::codes(row, column),
            Tile::MarlinScales => marlin::scales(row),
            Tile::MarlinScalesSingle => marlin::scales_single(row),
            Tile::SparseMarlin => sparse_marlin::codes(row, column),
            Tile::SparseMarlinBytes => sparse_marlin::codes_of_bytes(row, column),
            Tile::SparseMarlinScales => sparse_marlin::scales(row),
            Tile::SparseMarlinMeta => sparse_marlin::meta(row, column),
            Tile::Swizzled => swizzled::scales(row, column),
            Tile::NunchakuCodes => nunchaku::codes(row, column),
            Tile::NunchakuScales => nunchaku::scales(row),
            Tile::NunchakuMicroScales => nunchaku::micro_scales(row, column),
            Tile::NunchakuLowRank => nunchaku::low_rank(row, column),
            Tile::NunchakuLowRankDown => nunchaku::low_rank(column, row),
            Tile::KitchenSvdq => kitchen::svdq(row, column),
            Tile::KitchenSvdqColumns => row,
        }
    }

    /// [`Tile::position`] of every entry, row-major.
    pub fn positions(self) -> &'static [u16] {
        static AWQ_GEMV_FAST: [u16; 4 * 64] = table(Tile::AwqGemvFast);
        static MARLIN: [u16; 64 * 16] = table(Tile::Marlin);
        static MARLIN_SCALES: [u16; 64] = table(Tile::MarlinScales);
        static MARLIN_SCALES_SINGLE: [u16; 32] = table(Tile::MarlinScalesSingle);
        static SPARSE_MARLIN: [u16; 64 * 16] = table(Tile::SparseMarlin);
        static SPARSE_MARLIN_BYTES: [u16; 64 * 16] = table(Tile::SparseMarlinBytes);
        static SPARSE_MARLIN_SCALES: [u16; 8] = table(Tile::SparseMarlinScales);
        static SPARSE_MARLIN_META: [u16; 64 * 2] = table(Tile::SparseMarlinMeta);
        static SWIZZLED: [u16; 128 * 4] = table(Tile::Swizzled);
        static NUNCHAKU_CODES: [u16; 128 * 64] = table(Tile::NunchakuCodes);
        static NUNCHAKU_SCALES: [u16; 128] = table(Tile::NunchakuScales);
        static NUNCHAKU_MICRO_SCALES: [u16; 128 * 4] = table(Tile::NunchakuMicroScales);
        static NUNCHAKU_LOW_RANK: [u16; 16 * 16] = table(Tile::NunchakuLowRank);
        static NUNCHAKU_LOW_RANK_DOWN: [u16; 16 * 16] = table(Tile::NunchakuLowRankDown);
        static KITCHEN_SVDQ: [u16; 128 * 64] = table(Tile::KitchenSvdq);
        static KITCHEN_SVDQ_COLUMNS: [u16; 128] = table(Tile::KitchenSvdqColumns);
        match self {
            Tile::AwqGemvFast => &AWQ_GEMV_FAST,
            Tile::Marlin => &MARLIN,
            Tile::MarlinScales => &MARLIN_SCALES,
            Tile::MarlinScalesSingle => &MARLIN_SCALES_SINGLE,
            Tile::SparseMarlin => &SPARSE_MARLIN,
            Tile::SparseMarlinBytes => &SPARSE_MARLIN_BYTES,
            Tile::SparseMarlinScales => &SPARSE_MARLIN_SCALES,
            Tile::SparseMarlinMeta => &SPARSE_MARLIN_META,
            Tile::Swizzled => &SWIZZLED,
            Tile::NunchakuCodes => &NUNCHAKU_CODES,
            Tile::NunchakuScales => &NUNCHAKU_SCALES,
            Tile::NunchakuMicroScales => &NUNCHAKU_MICRO_SCALES,
            Tile::NunchakuLowRank => &NUNCHAKU_LOW_RANK,
            Tile::NunchakuLowRankDown => &NUNCHAKU_LOW_RANK_DOWN,
            Tile::KitchenSvdq => &KITCHEN_SVDQ,
            Tile::KitchenSvdqColumns => &KITCHEN_SVDQ_COLUMNS,
        }
    }

    /// Which of the tiles of a matrix covers tile row `tile_row` and tile column `tile_column`, where the matrix has
    /// `n_tile_rows` x `n_tile_columns` tiles. The tile's first byte is this times [`Tile::len_bytes`].
    ///
    /// ```
    /// use safequant_kernels::Tile;
    /// assert_eq!(Tile::Swizzled.index(1, 0, 2, 3), 3);
    /// assert_eq!(Tile::Marlin.index(1, 0, 2, 3), 1);
    /// ```
    ///
    /// # Panics
    /// If the tile lies outside the matrix.
    pub const fn index(
        self,
        tile_row: usize,
        tile_column: usize,
        n_tile_rows: usize,
        n_tile_columns: usize,
    ) -> usize {
        assert!(
            tile_row < n_tile_rows && tile_column < n_tile_columns,
            "the tile lies outside the matrix"
        );
        match self.order() {
            TileOrder::RowByRow => tile_row * n_tile_columns + tile_column,
            TileOrder::ColumnByColumn => tile_column * n_tile_rows + tile_row,
        }
    }

    /// Unpacks one tile.
    ///
    /// `packed`: [`Tile::len_bytes`] bytes.
    /// `out`: `[rows, columns]`, row-major, [`Tile::entry_bytes`] per entry: one 4-bit code per byte, wider entries as
    /// their bytes.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn unpack(self, packed: &[u8], out: &mut [u8]) {
        self.check(packed.len(), out.len());
        let positions = self.positions();
        match self.bits() {
            4 => {
                for (code, &position) in out.iter_mut().zip(positions) {
                    *code = packed[usize::from(position / 2)] >> (position % 2 * 4) & 15;
                }
            }
            8 => gather::<1>(positions, packed, out),
            _ => gather::<2>(positions, packed, out),
        }
    }

    /// Packs one tile: the inverse of [`Tile::unpack`]. Of a code only the lowest four bits count.
    ///
    /// # Panics
    /// If a slice has another length than [`Tile::unpack`] says.
    pub fn pack(self, entries: &[u8], packed: &mut [u8]) {
        self.check(packed.len(), entries.len());
        let positions = self.positions();
        match self.bits() {
            4 => {
                packed.fill(0);
                for (&code, &position) in entries.iter().zip(positions) {
                    packed[usize::from(position / 2)] |= (code & 15) << (position % 2 * 4);
                }
            }
            8 => scatter::<1>(positions, entries, packed),
            _ => scatter::<2>(positions, entries, packed),
        }
    }

    pub(crate) fn check(self, packed: usize, entries: usize) {
        assert_eq!(packed, self.len_bytes(), "bytes of a packed {self:?} tile");
        let expected = self.n_entries() * self.entry_bytes();
        assert_eq!(entries, expected, "bytes of an unpacked {self:?} tile");
    }
}

fn gather<const B: usize>(positions: &[u16], packed: &[u8], out: &mut [u8]) {
    let packed = packed.as_chunks::<B>().0;
    for (entry, &position) in out.as_chunks_mut::<B>().0.iter_mut().zip(positions) {
        *entry = packed[usize::from(position)];
    }
}

fn scatter<const B: usize>(positions: &[u16], entries: &[u8], packed: &mut [u8]) {
    let packed = packed.as_chunks_mut::<B>().0;
    for (entry, &position) in entries.as_chunks::<B>().0.iter().zip(positions) {
        packed[usize::from(position)] = *entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_a_bijection() {
        let mut visited = 0;
        for &tile in Tile::ALL {
            let mut seen = vec![false; tile.n_entries()];
            for &position in tile.positions() {
                assert!(!std::mem::replace(&mut seen[usize::from(position)], true));
                visited += 1;
            }
        }
        assert_eq!(
            visited,
            256 + 1024
                + 64
                + 32
                + (1024 + 1024 + 8 + 128)
                + 512
                + 8192
                + 128
                + 512
                + 2 * 256
                + 8192
                + 128
        );
    }

    #[test]
    fn unpack_after_pack_is_the_identity() {
        for &tile in Tile::ALL {
            let len = tile.n_entries() * tile.entry_bytes();
            let mask = if tile.bits() == 4 { 15 } else { 255 };
            let entries: Vec<u8> = (0..len).map(|i| (i % 251) as u8 & mask).collect();
            let mut packed = vec![0xff; tile.len_bytes()];
            tile.pack(&entries, &mut packed);
            let mut back = vec![0xff; len];
            tile.unpack(&packed, &mut back);
            assert_eq!(back, entries, "{tile:?}");
        }
    }

    #[test]
    fn upper_bits_of_a_code_are_dropped() {
        let mut packed = [vec![0; 128], vec![0; 128]];
        Tile::AwqGemvFast.pack(&[0xf3; 256], &mut packed[0]);
        Tile::AwqGemvFast.pack(&[0x03; 256], &mut packed[1]);
        assert_eq!(packed[0], packed[1]);
    }

    #[test]
    #[should_panic(expected = "bytes of an unpacked Swizzled tile")]
    fn a_wrong_length_panics() {
        Tile::Swizzled.unpack(&[0; 512], &mut [0; 511]);
    }
}
