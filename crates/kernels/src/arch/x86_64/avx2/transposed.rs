//! Layouts that store the transpose (GPTQ's words, AWQ's columns): tiles of packed rows, decoded as rows are.
//!
//! A tile is turned in two steps, so that memory sees long pieces in order and the arithmetic sees L1 only:
//!
//! ```text
//! stored lines   --a piece of a line at a time-->  a band of lines, in L1
//! band           --super::gather-->                packed rows of the tile, in a cache
//! packed rows    --super::rows-->                  results, long pieces of a row at a time
//! ```
//!
//! While the rows of a tile are decoded, the next one is turned: after each row, as many of its lines as keeps pace, and
//! each line asks for the piece of a line that comes a little later.
//!
//! What was measured (Zen 3, from DRAM):
//!
//! - Without arithmetic, pieces of 64 or 128 bytes take twice as long to read as pieces of 256 and more, at every stride, and
//!   with huge pages as well: it is not the TLB. A piece is read in one go; eight lines in turns take twice as long again.
//! - To decode packed codes from a cache took a prototype the time of a copy for whole rows, 1.3 to 2.5 times that for tiles
//!   of 1024 rows, 3 times for 2048: every piece of a row is on another page, and so are its scales. Hence long pieces.
//! - Reading and writing still take turns: a tile takes as long as turning it and decoding it take one after the other.

use std::ops::Range;

use super::formula::size_of_result;
use super::gather;
use super::plan::Plan;
use super::rows::{PartOfRow, Scratch, byte_of};
use super::sixteen::{AWQ, HIGH_FIRST, LOW_FIRST, nibbles};
use crate::Packing;
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, StoredCodes, Stores, Zeros};

/// Bytes that a tile takes of each stored line of words, where there are so many.
const WORDS: usize = 512;

/// The same of a column, whose bytes are of more rows.
const COLUMN: usize = 256;

/// Bytes of a tile of packed rows: whole rows of most matrices.
const TILE: usize = 1 << 20;

/// Columns of a row that are decoded between two shares of the next tile.
const PART: usize = 4096;

/// How many lines before its turn a piece is asked for.
const AHEAD: usize = 16;

/// How many rows before its turn the numbers of a row are asked for.
const ROWS_AHEAD: usize = 8;

/// A line of the cache.
const LINE: usize = 64;

/// Between two rows in a tile, so that they do not all fall into the same sets of the cache.
const GAP: usize = 64;

/// Decodes all rows.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode<const FLOAT: usize>(
    rows: &CodedRows<'_>,
    plan: Plan,
    out: &mut [u8],
    stores: Stores,
) {
    let size = size_of_result::<FLOAT>();
    let tiles = Tiles::new(rows, plan);
    let mut scratch = Scratch::new(rows, &plan);
    let mut turner = Turner::new(rows, plan, &tiles);
    let (row_len, parts) = (turner.row_len, plan.cut(PART));
    let mut now = vec![0; tiles.height * row_len];
    let mut next = vec![0; if tiles.len() > 1 { now.len() } else { 0 }];
    turner.turn((1, 1), &mut now);
    for at in 0..tiles.len() {
        let tile = tiles.at(at);
        let size_of_tile = tile.rows.len() * tile.columns.len();
        let mut done = 0;
        turner.begin(at + 1);
        for (i, codes) in now.chunks_exact(row_len).take(tile.rows.len()).enumerate() {
            let row = tile.rows.start + i;
            ask_numbers(rows, &tile, i + ROWS_AHEAD);
            let mut start = tile.columns.start;
            while start < tile.columns.end {
                let (columns, _) = parts.segment(start, tile.columns.end);
                let codes = &codes[byte_of(plan.packing, start - tile.columns.start)..];
                let first = row * rows.n_columns;
                let out = &mut out[(first + start) * size..(first + columns.end) * size];
                (start, done) = (columns.end, done + columns.len());
                let part = PartOfRow {
                    row,
                    columns,
                    codes,
                };
                part.decode::<FLOAT>((rows, &plan), &mut scratch, stores, out);
                turner.turn((done, size_of_tile), &mut next);
            }
        }
        std::mem::swap(&mut now, &mut next);
    }
}

/// Asks for what the grid has for row `row` of a tile: where tiles lie beside each other, rows of the grid are too far apart
/// for the processor to see it coming. In a prototype the first table of each piece of a row waited a fifth of the time.
#[target_feature(enable = "avx2")]
#[inline]
fn ask_numbers(rows: &CodedRows<'_>, tile: &Tile, row: usize) {
    if row >= tile.rows.len() {
        return;
    }
    let width = rows.grid.width(rows.n_columns);
    let first = rows.grid.line(tile.rows.start + row).saturating_mul(width);
    let [start, end] =
        [tile.columns.start, tile.columns.end - 1].map(|at| first + at / rows.grid.columns);
    let zeros = match rows.value {
        CodeMeaning::Integer {
            zero: Zeros::Each(zeros),
            flip: _,
        } => zeros.as_ptr().cast(),
        CodeMeaning::Integer { .. } | CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => {
            std::ptr::null()
        }
    };
    let offsets = rows.formula.offsets().unwrap_or_default();
    for numbers in [
        rows.grid.scales.as_ptr().cast(),
        zeros,
        offsets.as_ptr().cast(),
    ] {
        let numbers: *const u8 = numbers;
        ask_for(numbers.wrapping_add(4 * start), 4 * (end + 1 - start));
    }
}

/// Asks for `len` bytes: all lines of the cache that they touch, as a file's bytes begin anywhere.
#[target_feature(enable = "avx2")]
#[inline]
fn ask_for(start: *const u8, len: usize) {
    let before = start.addr() % LINE;
    for at in (0..before + len).step_by(LINE) {
        gather::prefetch(start.wrapping_sub(before).wrapping_add(at));
    }
}

/// Rows and columns that are turned together.
#[derive(Clone)]
struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// The tiles of a matrix: all columns of some rows, then those of the next.
struct Tiles {
    columns: Vec<Range<usize>>,
    n_rows: usize,
    /// Rows of a tile, or more: a multiple of the rows that are turned at once.
    height: usize,
}

impl Tiles {
    fn new(rows: &CodedRows<'_>, plan: Plan) -> Self {
        let (most, multiple) = match rows.codes.layout {
            CodeLayout::Rows(_) | CodeLayout::WordsOfRows(_) => (WORDS / 4, LINE / 4),
            CodeLayout::Columns(packing) => (COLUMN * 8 / packing.bits() as usize, 2 * LINE),
        };
        // All of them alike: a last tile of few rows would take less than a line of the cache of each stored line.
        let height = rows.n_rows.div_ceil(rows.n_rows.div_ceil(most));
        let height = height
            .next_multiple_of(multiple)
            .min(rows.n_rows.next_multiple_of(gather::ROWS));
        let width = 8 * TILE / plan.packing.bits() as usize / height;
        let plan = plan.cut((width / 64 * 64).max(64));
        let mut columns = Vec::new();
        let mut start = 0;
        while start < rows.n_columns {
            let (tile, _) = plan.segment(start, rows.n_columns);
            start = tile.end;
            columns.push(tile);
        }
        Self {
            columns,
            n_rows: rows.n_rows,
            height,
        }
    }

    fn len(&self) -> usize {
        self.columns.len() * self.n_rows.div_ceil(self.height)
    }

    /// Beyond the last one, an empty one.
    fn at(&self, at: usize) -> Tile {
        let first = (at / self.columns.len() * self.height).min(self.n_rows);
        let rows = first..self.n_rows.min(first + self.height);
        Tile {
            columns: match rows.len() {
                0 => 0..0,
                _ => self.columns[at % self.columns.len()].clone(),
            },
            rows,
        }
    }
}

/// What lies in a stored line.
#[derive(Clone, Copy)]
enum Lines {
    /// A word of each row.
    Words,
    /// Codes of neighboring rows, two to a byte, and which is the first: see [`nibbles`].
    Nibbles(usize),
    /// Codes that become one per byte.
    Codes(Packing),
}

impl Lines {
    /// Lines that are turned at once, and the bytes that they are in a packed row.
    const fn band(self) -> (usize, usize) {
        match self {
            Lines::Words => (8, 32),
            Lines::Nibbles(_) => (gather::BAND_LINES, 32),
            Lines::Codes(_) => (gather::BAND_LINES, gather::BAND_LINES),
        }
    }
}

/// The part of a stored line that belongs to a tile.
#[derive(Clone, Copy, Default)]
struct Pieces {
    /// Where the first one begins.
    first: usize,
    len: usize,
    n_lines: usize,
}

/// Turns a tile after the other, a few lines at a time.
struct Turner<'a> {
    codes: StoredCodes<'a>,
    tiles: &'a Tiles,
    lines: Lines,
    /// The tile at hand, its rows, and the tile after it.
    now: Pieces,
    n_rows: usize,
    after: Pieces,
    /// Lines of the tile at hand that are in bands, and those that were asked for; they may be of the tile after it.
    done: usize,
    asked: usize,
    band: Vec<[u8; gather::BAND_LINE]>,
    /// Bytes from one packed row to the next.
    row_len: usize,
}

impl<'a> Turner<'a> {
    /// The first tile is at hand.
    fn new(rows: &CodedRows<'a>, plan: Plan, tiles: &'a Tiles) -> Self {
        let lines = match rows.codes.layout {
            CodeLayout::Rows(_) | CodeLayout::WordsOfRows(_) => Lines::Words,
            CodeLayout::Columns(packing) => match nibbles(packing) {
                Some(source) if plan.packing != Packing::Bytes => Lines::Nibbles(source),
                Some(_) | None => Lines::Codes(packing),
            },
        };
        let most_columns = tiles.columns.iter().map(Range::len).max();
        let packed = plan
            .packing
            .packed_len_bytes(most_columns.unwrap_or_default(), 4);
        let (_, band_len) = lines.band();
        let mut turner = Self {
            codes: rows.codes,
            tiles,
            lines,
            now: Pieces::default(),
            n_rows: 0,
            after: Pieces::default(),
            done: 0,
            asked: 0,
            band: vec![[0; gather::BAND_LINE]; gather::BAND_LINES],
            row_len: packed.next_multiple_of(band_len) + GAP,
        };
        turner.begin(0);
        turner
    }

    /// Takes up tile `at`.
    fn begin(&mut self, at: usize) {
        let tile = self.tiles.at(at);
        self.asked = self.asked.saturating_sub(self.now.n_lines);
        self.done = 0;
        self.n_rows = tile.rows.len();
        self.now = self.pieces(&tile);
        self.after = self.pieces(&self.tiles.at(at + 1));
    }

    fn pieces(&self, tile: &Tile) -> Pieces {
        let (line, across, len, n_lines) = match self.codes.layout {
            CodeLayout::Rows(packing) | CodeLayout::WordsOfRows(packing) => (
                byte_of(packing, tile.columns.start) / 4,
                4 * tile.rows.start,
                4 * tile.rows.len(),
                packing.packed_len_bytes(tile.columns.len(), 4) / 4,
            ),
            CodeLayout::Columns(packing) => (
                tile.columns.start,
                byte_of(packing, tile.rows.start),
                packing.packed_len_bytes(tile.rows.len(), 1),
                tile.columns.len(),
            ),
        };
        Pieces {
            first: line * self.codes.stride + across,
            len,
            n_lines,
        }
    }

    /// Turns as many more lines as `part` of the tile wants, its numerator and denominator.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn turn(&mut self, (done, of): (usize, usize), packed: &mut [u8]) {
        let due = self.now.n_lines * done / of;
        let (n_lines, _) = self.lines.band();
        while self.done < due {
            self.ask(self.done + AHEAD);
            let piece = self.now.first + self.done * self.codes.stride;
            let piece = &self.codes.bytes[piece..piece + self.now.len];
            self.band[self.done % n_lines][..piece.len()].copy_from_slice(piece);
            self.done += 1;
            if self.done.is_multiple_of(n_lines) || self.done == self.now.n_lines {
                self.turn_band((self.done - 1) / n_lines, packed);
            }
        }
    }

    /// Asks for all pieces before piece `end`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn ask(&mut self, end: usize) {
        while self.asked < end {
            let (pieces, line) = match self.asked.checked_sub(self.now.n_lines) {
                Some(line) => (self.after, line),
                None => (self.now, self.asked),
            };
            if line < pieces.n_lines {
                let start = pieces.first + line * self.codes.stride;
                ask_for(self.codes.bytes.as_ptr().wrapping_add(start), pieces.len);
            }
            self.asked += 1;
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn turn_band(&self, at: usize, packed: &mut [u8]) {
        let (n_lines, len) = self.lines.band();
        let Some(band) = self.band.first_chunk() else {
            unreachable!("all lines of a band are there");
        };
        let (n_rows, row_len) = (self.n_rows, self.row_len);
        let to = &mut packed[at * len..];
        match self.lines {
            Lines::Words => gather::words(band, n_rows, to, row_len),
            Lines::Nibbles(LOW_FIRST) => {
                gather::nibbles::<LOW_FIRST>(band, n_rows, to, row_len);
            }
            Lines::Nibbles(HIGH_FIRST) => {
                gather::nibbles::<HIGH_FIRST>(band, n_rows, to, row_len);
            }
            Lines::Nibbles(_) => gather::nibbles::<AWQ>(band, n_rows, to, row_len),
            Lines::Codes(packing) => {
                let size = (n_rows, self.done - at * n_lines);
                gather::codes(packing, band, size, to, row_len);
            }
        }
    }
}
