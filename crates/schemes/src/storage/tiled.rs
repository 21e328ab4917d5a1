//! A grid stored in permuted tiles: AWQ's fast layouts, Marlin, swizzled block scales, Nunchaku.

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::{Backend, Tile, TileOrder};

use super::{Grid, entry_bytes, extent_of, part_bytes, part_grid, to_u64, wrong_size};
use crate::encode::EncodedRegion;
use crate::{Axis, Error, Part, QuantizedTensor};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Tiled {
    tile: Tile,
    grid: Grid,
    /// Tiles below and beside each other in one matrix.
    tiles: Grid,
    lies: Lies,
}

/// How the grid lies in its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    /// Rows along rows.
    Upright,
    /// The grid is one row, and tiles have one column: the row stands up in them.
    Turned,
}

impl Tiled {
    fn lay(tensor: &QuantizedTensor, part: &Part, tile: Tile) -> Result<Self, Error> {
        let mut grid = part_grid(tensor, part)?;
        let mut extent = extent_of(tensor, part, grid)?;
        let mut lies = Lies::Upright;
        if grid.rows == 1 && extent.rows == 1 && tile.columns() == 1 && grid.columns > 1 {
            lies = Lies::Turned;
            for turned in [&mut grid, &mut extent] {
                (turned.rows, turned.columns) = (turned.columns, turned.rows);
            }
        }
        let tiles = Grid {
            rows: extent.rows.div_ceil(tile.rows()),
            columns: extent.columns.div_ceil(tile.columns()),
        };
        Ok(Self {
            tile,
            grid,
            tiles,
            lies,
        })
    }

    /// Rows of the grid as they lie in tiles.
    fn lying(&self, rows: &Range<usize>) -> Range<usize> {
        match self.lies {
            Lies::Upright => rows.clone(),
            Lies::Turned if rows.is_empty() => 0..0,
            Lies::Turned => 0..self.grid.rows,
        }
    }

    pub(super) fn new(tensor: &QuantizedTensor, part: &Part, tile: Tile) -> Result<Self, Error> {
        let stored = Self::lay(tensor, part, tile)?;
        let needed = stored.matrix_len().saturating_mul(tensor.n_matrices());
        let fits = tile.entry_bytes() == entry_bytes(tensor, part);
        if !fits || part_bytes(part) != Some(needed) {
            return Err(wrong_size(tensor, part, needed));
        }
        Ok(stored)
    }

    /// Bytes of a part with this storage.
    pub(super) fn bytes(tensor: &QuantizedTensor, part: &Part, tile: Tile) -> Result<u64, Error> {
        let stored = Self::lay(tensor, part, tile)?;
        Ok(stored.matrix_len().saturating_mul(tensor.n_matrices()))
    }

    /// The bytes of some rows or columns of the grid of a single matrix, if they are whole tiles that lie together.
    pub(super) fn contiguous(&self, axis: Axis, entries: &Range<usize>) -> Option<Range<u64>> {
        let (is_first, unit, others) = match (self.tile.order(), axis) {
            (TileOrder::RowByRow, Axis::Out) => (true, self.tile.rows(), self.tiles.columns),
            (TileOrder::ColumnByColumn, Axis::In) => (true, self.tile.columns(), self.tiles.rows),
            (TileOrder::RowByRow, Axis::In) | (TileOrder::ColumnByColumn, Axis::Out) => {
                (false, 1, 0)
            }
        };
        if self.lies == Lies::Turned || !is_first || !entries.start.is_multiple_of(unit) {
            return None;
        }
        let len = to_u64(others).saturating_mul(to_u64(self.tile.len_bytes()));
        let at = |tile: usize| to_u64(tile).saturating_mul(len);
        Some(at(entries.start / unit)..at(entries.end.div_ceil(unit)))
    }

    fn matrix_len(&self) -> u64 {
        to_u64(self.tiles.rows)
            .saturating_mul(to_u64(self.tiles.columns))
            .saturating_mul(to_u64(self.tile.len_bytes()))
    }

    pub(super) fn row_unit(&self) -> usize {
        match self.lies {
            Lies::Upright => self.tile.rows(),
            Lies::Turned => 1,
        }
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let n_rows = match self.lies {
            Lies::Upright => n_rows,
            Lies::Turned => to_u64(self.grid.rows),
        };
        let rows = n_rows.saturating_add(2 * to_u64(self.tile.rows()));
        let columns = to_u64(self.tiles.columns).saturating_mul(to_u64(self.tile.columns()));
        let entry = 2 * to_u64(self.tile.entry_bytes());
        rows.saturating_mul(columns).saturating_mul(entry)
    }

    /// The tile rows that rows of the matrix lie in.
    fn tile_rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start / self.tile.rows()..rows.end.div_ceil(self.tile.rows())
    }

    /// The bytes of some tile rows as a rectangle of the part: rows of `len` bytes, and the columns wanted of each.
    fn rectangle(&self, matrix: u64, tile_rows: &Range<usize>) -> (u64, Range<u64>, Range<u64>) {
        let bytes = to_u64(self.tile.len_bytes());
        let (start, end) = (to_u64(tile_rows.start), to_u64(tile_rows.end));
        match self.tile.order() {
            TileOrder::RowByRow => {
                let first = matrix * to_u64(self.tiles.rows);
                let len = to_u64(self.tiles.columns) * bytes;
                (len, first + start..first + end, 0..len)
            }
            TileOrder::ColumnByColumn => {
                let n = to_u64(self.tiles.columns);
                let len = to_u64(self.tiles.rows) * bytes;
                (
                    len,
                    matrix * n..(matrix + 1) * n,
                    start * bytes..end * bytes,
                )
            }
        }
    }

    /// Where in a rectangle of `n` tile rows a tile begins, counted in tiles.
    fn place(&self, row: usize, column: usize, n: usize) -> usize {
        match self.tile.order() {
            TileOrder::RowByRow => row * self.tiles.columns + column,
            TileOrder::ColumnByColumn => column * n + row,
        }
    }

    pub(super) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &Backend,
    ) -> Result<Vec<u8>, Error> {
        let rows = &self.lying(rows);
        if rows.is_empty() || self.grid.columns == 0 {
            return Ok(Vec::new());
        }
        let tile_rows = self.tile_rows(rows);
        let n = tile_rows.len();
        let size = self.tile.len_bytes();
        let mut stored = vec![0; n * self.tiles.columns * size];
        let (len, lines, columns) = self.rectangle(matrix, &tile_rows);
        tensor.read_rectangle(len, lines, columns, &mut stored)?;
        let entry = self.tile.entry_bytes();
        let mut out = vec![0; rows.len() * self.grid.columns * entry];
        let mut unpacked = vec![0; self.tile.n_entries() * entry];
        for row in 0..n {
            for column in 0..self.tiles.columns {
                let at = self.place(row, column, n) * size;
                (backend.unpack_tile)(self.tile, &stored[at..at + size], &mut unpacked);
                self.each_line(tile_rows.start + row, column, rows, |tile, matrix| {
                    copy(&unpacked[tile], &mut out[matrix]);
                });
            }
        }
        Ok(out)
    }

    pub(super) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        entries: &[u8],
        backend: &Backend,
    ) -> Vec<EncodedRegion> {
        let rows = &self.lying(rows);
        if rows.is_empty() || self.grid.columns == 0 {
            return Vec::new();
        }
        let mut tile_rows = self.tile_rows(rows);
        if rows.end == self.grid.rows {
            tile_rows.end = self.tiles.rows;
        }
        let n = tile_rows.len();
        let size = self.tile.len_bytes();
        let mut bytes = vec![0; n * self.tiles.columns * size];
        let mut unpacked = vec![0; self.tile.n_entries() * self.tile.entry_bytes()];
        for row in 0..n {
            for column in 0..self.tiles.columns {
                unpacked.fill(0);
                self.each_line(tile_rows.start + row, column, rows, |tile, matrix| {
                    copy(&entries[matrix], &mut unpacked[tile]);
                });
                let at = self.place(row, column, n) * size;
                (backend.pack_tile)(self.tile, &unpacked, &mut bytes[at..at + size]);
            }
        }
        let (row_len, rows, columns) = self.rectangle(matrix, &tile_rows);
        vec![EncodedRegion {
            part,
            row_len,
            rows,
            columns,
            bytes,
        }]
    }

    /// Calls `f` with the byte ranges, in the tile and in the rows wanted, of each line that both have.
    fn each_line(
        &self,
        tile_row: usize,
        tile_column: usize,
        rows: &Range<usize>,
        mut f: impl FnMut(Range<usize>, Range<usize>),
    ) {
        let entry = self.tile.entry_bytes();
        let (top, left) = (
            tile_row * self.tile.rows(),
            tile_column * self.tile.columns(),
        );
        let width = self
            .tile
            .columns()
            .min(self.grid.columns.saturating_sub(left));
        if width == 0 {
            return;
        }
        let first = rows.start.max(top);
        let last = rows.end.min(top + self.tile.rows());
        for row in first..last {
            let from = (row - top) * self.tile.columns() * entry;
            let to = ((row - rows.start) * self.grid.columns + left) * entry;
            f(from..from + width * entry, to..to + width * entry);
        }
    }
}

/// Copies a line, most of which have 16 or 64 bytes: in pieces whose length the compiler knows, since a call for each line
/// takes as long as unpacking it.
fn copy(from: &[u8], to: &mut [u8]) {
    let (pieces, rest) = from.as_chunks::<16>();
    let (to, last) = to.as_chunks_mut::<16>();
    for (to, piece) in to.iter_mut().zip(pieces) {
        *to = *piece;
    }
    if !rest.is_empty() {
        last.copy_from_slice(rest);
    }
}
