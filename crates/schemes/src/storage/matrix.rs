//! A grid stored as a matrix: one element per entry, or runs of packed codes along one of its axes. No arithmetic but
//! shifts.

mod raw;
mod transpose;

use std::borrow::Cow;
use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::{Backend, Packing};

pub(crate) use self::raw::Raw;
pub(crate) use self::transpose::transpose;
use super::{Grid, WordShift, ends_with, part_grid, to_u64, to_usize};
use crate::encode::EncodedRegion;
use crate::{Axes, Axis, Error, Part, QuantizedTensor, Storage};

/// Where the grids of a stack lie in a part; lengths checked against the header.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    grid: Grid,
    /// The stored grid: the logical one and its padding.
    extent: Grid,
    axes: Axes,
    /// Packing and the axis of its runs; `None` for one element per entry.
    packing: Option<(Packing, Axis)>,
    /// Bytes of an element or word.
    word: usize,
    /// Byte offset of the first matrix.
    base: u64,
    /// Matrices that are stored: 1, or all of the stack.
    n_matrices: u64,
    /// Rows of one stored matrix.
    n_stored_rows: usize,
    /// Bytes of a stored row.
    row_len: usize,
}

impl Matrix {
    /// Resolves a part's storage.
    ///
    /// # Errors
    /// [`Error::PartShape`] if the header's shape does not hold the grids exactly.
    pub(crate) fn new(tensor: &QuantizedTensor, part: &Part) -> Result<Self, Error> {
        let stored = Self::unchecked(tensor, part)?;
        stored.check(tensor, part)?;
        Ok(stored)
    }

    fn unchecked(tensor: &QuantizedTensor, part: &Part) -> Result<Self, Error> {
        let grid = part_grid(tensor, part)?;
        let word = to_usize(&tensor.module, "an element", part.dtype.bits() / 8)?.max(1);
        let (axes, packing, first) = match part.storage {
            Storage::Elements { axes } => (axes, None, 0),
            Storage::SharedElements { first } => (Axes::OutIn, None, first),
            Storage::Packed {
                axes,
                packing,
                along,
            }
            | Storage::PackedConstant {
                axes,
                packing,
                along,
                ..
            } => (axes, Some((packing, along)), 0),
            Storage::Vector
            | Storage::Common
            | Storage::LowHigh { .. }
            | Storage::Flat { .. }
            | Storage::Planes { .. }
            | Storage::Sparse { .. }
            | Storage::Blocks { .. }
            | Storage::Tiled { .. } => (Axes::OutIn, None, 0),
        };
        let extent = super::extent_of(tensor, part, grid)?;
        let mut stored = Self {
            grid,
            extent,
            axes,
            packing,
            word,
            base: first.saturating_mul(to_u64(word)),
            n_matrices: match part.storage {
                Storage::Common => 1,
                Storage::Elements { .. }
                | Storage::SharedElements { .. }
                | Storage::Packed { .. }
                | Storage::PackedConstant { .. }
                | Storage::Blocks { .. }
                | Storage::Vector
                | Storage::LowHigh { .. }
                | Storage::Sparse { .. }
                | Storage::Flat { .. }
                | Storage::Planes { .. }
                | Storage::Tiled { .. } => tensor.n_matrices(),
            },
            n_stored_rows: 0,
            row_len: 0,
        };
        (stored.n_stored_rows, stored.row_len) = stored.stored_shape();
        Ok(stored)
    }

    /// The shape of a part with this storage.
    pub(super) fn shape(tensor: &QuantizedTensor, part: &Part) -> Result<Vec<u64>, Error> {
        let stored = Self::unchecked(tensor, part)?;
        let stack = tensor.shape.len().saturating_sub(2);
        let mut shape = tensor.shape[..stack].to_vec();
        shape.push(to_u64(stored.n_stored_rows));
        shape.push(to_u64(stored.row_len / stored.word));
        if matches!(part.storage, Storage::Vector) {
            shape = vec![to_u64(stored.grid.rows * stored.grid.columns)];
        }
        Ok(shape)
    }

    /// The bytes of some rows or columns of the grid of a single matrix, if they lie together.
    pub(super) fn contiguous(&self, axis: Axis, entries: &Range<usize>) -> Option<Range<u64>> {
        let is_first = match self.axes {
            Axes::OutIn => axis == Axis::Out,
            Axes::InOut => axis == Axis::In,
        };
        if !is_first || self.extent != self.grid {
            return None;
        }
        let rows = match self.packing {
            Some((packing, along)) if along == axis => {
                let (unit, _) = packing.codes_per_word_unit(self.word);
                if !entries.start.is_multiple_of(unit) {
                    return None;
                }
                let words = |n: usize| packing.packed_len_bytes(n, self.word) / self.word;
                words(entries.start)..words(entries.end)
            }
            Some(_) | None => entries.clone(),
        };
        let at = |row: usize| self.base + to_u64(row) * to_u64(self.row_len);
        Some(at(rows.start)..at(rows.end))
    }

    /// Rows and row bytes of one stored matrix.
    fn stored_shape(&self) -> (usize, usize) {
        let Grid { rows, columns } = self.extent;
        let (first, second, axis) = match self.axes {
            Axes::OutIn => (rows, columns, Axis::Out),
            Axes::InOut => (columns, rows, Axis::In),
        };
        match self.packing {
            None => (first, second.saturating_mul(self.word)),
            Some((packing, along)) if along == axis => {
                let words = packing.packed_len_bytes(first, self.word) / self.word;
                (words, second.saturating_mul(self.word))
            }
            Some((packing, _)) => (first, packing.packed_len_bytes(second, self.word)),
        }
    }

    fn check(&self, tensor: &QuantizedTensor, part: &Part) -> Result<(), Error> {
        let bytes = |shape: &[u64]| {
            let n = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
            n.and_then(|n| n.checked_mul(to_u64(self.word)))
        };
        let needed = self.matrix_len().checked_mul(self.n_matrices);
        let (found, end) = (
            bytes(&part.shape),
            needed.and_then(|n| n.checked_add(self.base)),
        );
        let shared = matches!(part.storage, Storage::SharedElements { .. });
        let fits = match (found, end) {
            (Some(found), Some(end)) => found == end || (shared && end <= found),
            _ => false,
        };
        // The last dimension is what tells a row from the next one.
        let row = to_u64(self.row_len / self.word);
        let is_flat = self.packing.is_none() && self.axes == Axes::OutIn;
        if fits && (is_flat || ends_with(&part.shape, row) || found == Some(0)) {
            return Ok(());
        }
        Err(Error::PartShape {
            module: tensor.module.clone(),
            part: part.name.clone(),
            expected: format!(
                "{} matrices of [{}, {row}]",
                self.n_matrices, self.n_stored_rows
            ),
            found: part.shape.clone(),
        })
    }

    /// Bytes of one stored matrix.
    pub(crate) fn matrix_len(&self) -> u64 {
        to_u64(self.n_stored_rows).saturating_mul(to_u64(self.row_len))
    }

    /// Rows of one matrix between two places where a stored word begins.
    pub(crate) fn row_unit(&self) -> usize {
        match self.packing {
            Some((packing, Axis::Out)) => packing.codes_per_word_unit(self.word).0,
            Some((_, Axis::In)) | None => 1,
        }
    }

    /// Upper bound of the bytes that [`Matrix::read`] allocates for `n_rows` rows, the result included.
    pub(crate) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let columns = to_u64(self.grid.columns);
        match self.packing {
            None => n_rows
                .saturating_mul(columns)
                .saturating_mul(2 * to_u64(self.word)),
            Some((packing, along)) => {
                let slack = 2 * to_u64(self.row_unit());
                let rows = n_rows.saturating_add(if along == Axis::Out { slack } else { 0 });
                let codes = rows.saturating_mul(columns);
                // Packed words at most double the codes (no straddling, short rows), read and transposed.
                let run = match along {
                    Axis::In => to_u64(packing.packed_len_bytes(self.grid.columns, self.word))
                        .saturating_mul(rows),
                    Axis::Out => codes.saturating_add(columns.saturating_mul(64)),
                };
                codes
                    .saturating_mul(2)
                    .saturating_add(run.saturating_mul(2))
            }
        }
    }

    /// Reads rows `rows` of one matrix, row-major: one code per byte, or the bytes of the elements.
    pub(crate) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
        shift: WordShift,
    ) -> Result<Vec<u8>, Error> {
        if rows.is_empty() || self.grid.columns == 0 {
            return Ok(Vec::new());
        }
        // One matrix may stand for all.
        let matrix = matrix.min(self.n_matrices.saturating_sub(1));
        match self.packing {
            None => self.read_elements(tensor, matrix, rows),
            Some((packing, Axis::In)) => self.read_along_in(packing, tensor, matrix, rows, backend),
            Some((packing, Axis::Out)) => {
                self.read_along_out(packing, tensor, matrix, rows, backend, shift)
            }
        }
    }

    /// Bytes `columns` of stored rows `rows` of one matrix.
    fn rectangle(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; rows.len() * columns.len()];
        self.rectangle_into(tensor, matrix, (rows, columns), &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Matrix::rectangle`], into memory of the caller.
    fn rectangle_into(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        (rows, columns): (Range<usize>, Range<usize>),
        out: &mut [u8],
    ) -> Result<(), Error> {
        let first = matrix * to_u64(self.n_stored_rows);
        Ok(tensor.read_rectangle(
            to_u64(self.row_len),
            first + to_u64(rows.start)..first + to_u64(rows.end),
            to_u64(columns.start)..to_u64(columns.end),
            out,
        )?)
    }

    fn read_elements(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let columns = self.grid.columns;
        match self.axes {
            Axes::OutIn if self.extent.columns == columns => {
                let mut bytes = vec![0; rows.len() * self.row_len];
                let start = self.base + matrix * self.matrix_len();
                tensor.read_exact_at(start + to_u64(rows.start * self.row_len), &mut bytes)?;
                Ok(bytes)
            }
            Axes::OutIn => self.rectangle(tensor, matrix, rows.clone(), 0..columns * self.word),
            Axes::InOut => {
                let cut = rows.start * self.word..rows.end * self.word;
                let bytes = self.rectangle(tensor, matrix, 0..columns, cut)?;
                Ok(transpose(&bytes, columns, rows.len(), self.word))
            }
        }
    }

    /// Runs follow the input features: one run per wanted row.
    fn read_along_in(
        &self,
        packing: Packing,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
    ) -> Result<Vec<u8>, Error> {
        let runs = match self.axes {
            Axes::OutIn => self.rectangle(tensor, matrix, rows.clone(), 0..self.row_len)?,
            Axes::InOut => {
                let cut = rows.start * self.word..rows.end * self.word;
                let words = self.rectangle(tensor, matrix, 0..self.n_stored_rows, cut)?;
                transpose(&words, self.n_stored_rows, rows.len(), self.word)
            }
        };
        Ok(unpack_runs(
            packing,
            &runs,
            rows.len(),
            self.grid.columns,
            backend,
        ))
    }

    /// Runs follow the output features: a piece of every run, cut at whole units.
    fn read_along_out(
        &self,
        packing: Packing,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
        shift: WordShift,
    ) -> Result<Vec<u8>, Error> {
        let columns = self.grid.columns;
        let start = rows.start - rows.start % self.row_unit();
        let cut = packing.packed_len_bytes(start, self.word)
            ..packing.packed_len_bytes(rows.end, self.word);
        let mut runs = match self.axes {
            Axes::OutIn => {
                let cut = cut.start / self.word..cut.end / self.word;
                let n_words = cut.len();
                let words = self.rectangle(tensor, matrix, cut, 0..columns * self.word)?;
                transpose(&words, n_words, columns, self.word)
            }
            Axes::InOut => self.rectangle(tensor, matrix, 0..columns, cut)?,
        };
        shift_words(&mut runs, self.word, shift, u64::wrapping_add);
        let covering = rows.end - start;
        let codes = unpack_runs(packing, &runs, columns, covering, backend);
        let mut by_row = transpose(&codes, columns, covering, 1);
        by_row.drain(..(rows.start - start) * columns);
        Ok(by_row)
    }

    /// The bytes that rows `rows` of one matrix become; `entries` as [`Matrix::read`] gives them.
    pub(crate) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        entries: &[u8],
        backend: &'static Backend,
        shift: WordShift,
    ) -> Vec<EncodedRegion> {
        if rows.is_empty() || self.grid.columns == 0 {
            return Vec::new();
        }
        let (rows, entries) = self.padded(rows, entries);
        let (rows, entries) = (&rows, entries.as_ref());
        let columns = self.extent.columns;
        let Some((packing, along)) = self.packing else {
            return self.write_elements(part, matrix, rows, entries);
        };
        let cut = rows.start * self.word..rows.end * self.word;
        let whole = 0..self.row_len;
        let (stored_rows, stored_columns, bytes) = match (along, self.axes) {
            (Axis::In, Axes::OutIn) => {
                let runs = pack_runs(packing, entries, rows.len(), columns, self.word, backend);
                (rows.clone(), whole, runs)
            }
            (Axis::In, Axes::InOut) => {
                let runs = pack_runs(packing, entries, rows.len(), columns, self.word, backend);
                let words = transpose(&runs, rows.len(), self.n_stored_rows, self.word);
                (0..self.n_stored_rows, cut, words)
            }
            (Axis::Out, axes) => {
                let by_column = transpose(entries, rows.len(), columns, 1);
                let mut runs =
                    pack_runs(packing, &by_column, columns, rows.len(), self.word, backend);
                shift_words(&mut runs, self.word, shift, u64::wrapping_sub);
                let cut = packing.packed_len_bytes(rows.start, self.word)
                    ..packing.packed_len_bytes(rows.end, self.word);
                match axes {
                    Axes::InOut => (0..columns, cut, runs),
                    Axes::OutIn => {
                        let words = cut.start / self.word..cut.end / self.word;
                        let turned = transpose(&runs, columns, words.len(), self.word);
                        (words, whole, turned)
                    }
                }
            }
        };
        vec![self.region(part, matrix, &stored_rows, &stored_columns, bytes)]
    }

    /// Entries with the zeros that stand beside and, after the last row, below them.
    fn padded<'e>(&self, rows: &Range<usize>, entries: &'e [u8]) -> (Range<usize>, Cow<'e, [u8]>) {
        if self.extent == self.grid {
            return (rows.clone(), Cow::Borrowed(entries));
        }
        let size = if self.packing.is_some() { 1 } else { self.word };
        let end = if rows.end == self.grid.rows {
            self.extent.rows
        } else {
            rows.end
        };
        let (from, to) = (self.grid.columns * size, self.extent.columns * size);
        let mut padded = vec![0; (end - rows.start) * to];
        for (line, row) in padded.chunks_exact_mut(to).zip(entries.chunks_exact(from)) {
            line[..from].copy_from_slice(row);
        }
        (rows.start..end, Cow::Owned(padded))
    }

    fn region(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        columns: &Range<usize>,
        bytes: Vec<u8>,
    ) -> EncodedRegion {
        let first = matrix * to_u64(self.n_stored_rows);
        EncodedRegion {
            part,
            row_len: to_u64(self.row_len),
            rows: first + to_u64(rows.start)..first + to_u64(rows.end),
            columns: to_u64(columns.start)..to_u64(columns.end),
            bytes,
        }
    }

    fn write_elements(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        entries: &[u8],
    ) -> Vec<EncodedRegion> {
        match self.axes {
            Axes::OutIn => {
                let start =
                    self.base + matrix * self.matrix_len() + to_u64(rows.start * self.row_len);
                flat_regions(part, to_u64(self.row_len), start, entries)
            }
            Axes::InOut => {
                let columns = self.extent.columns;
                let bytes = transpose(entries, rows.len(), columns, self.word);
                let cut = rows.start * self.word..rows.end * self.word;
                vec![self.region(part, matrix, &(0..columns), &cut, bytes)]
            }
        }
    }
}

/// Regions for consecutive bytes of a tensor whose rows have `row_len` bytes: at most a partial row, whole rows, and
/// another partial one.
pub(super) fn flat_regions(
    part: usize,
    row_len: u64,
    start: u64,
    bytes: &[u8],
) -> Vec<EncodedRegion> {
    let mut regions = Vec::new();
    let (mut at, mut rest) = (start, bytes);
    while !rest.is_empty() {
        let (row, column) = (at / row_len, at % row_len);
        let left = to_u64(rest.len());
        let (n_rows, len) = if column == 0 && left >= row_len {
            (left / row_len, left - left % row_len)
        } else {
            (1, left.min(row_len - column))
        };
        let (head, tail) = rest.split_at(usize::try_from(len).expect("at most the slice's length"));
        regions.push(EncodedRegion {
            part,
            row_len,
            rows: row..row + n_rows,
            columns: column..column + len / n_rows,
            bytes: head.to_vec(),
        });
        (at, rest) = (at + len, tail);
    }
    regions
}

/// One code per byte: `n_runs` runs of equal length lie one after the other in `runs`.
fn unpack_runs(
    packing: Packing,
    runs: &[u8],
    n_runs: usize,
    n_codes: usize,
    backend: &'static Backend,
) -> Vec<u8> {
    let mut codes = vec![0; n_runs * n_codes];
    let run_len = runs.len() / n_runs.max(1);
    if run_len > 0 && n_codes > 0 {
        for (run, out) in runs
            .chunks_exact(run_len)
            .zip(codes.chunks_exact_mut(n_codes))
        {
            (backend.unpack)(packing, run, out);
        }
    }
    codes
}

/// The reverse of [`unpack_runs`]; each run is padded to whole words.
fn pack_runs(
    packing: Packing,
    codes: &[u8],
    n_runs: usize,
    n_codes: usize,
    word: usize,
    backend: &'static Backend,
) -> Vec<u8> {
    let run_len = packing.packed_len_bytes(n_codes, word);
    let mut runs = vec![0; n_runs * run_len];
    if run_len > 0 && n_codes > 0 {
        for (codes, run) in codes
            .chunks_exact(n_codes)
            .zip(runs.chunks_exact_mut(run_len))
        {
            (backend.pack)(packing, codes, run);
        }
    }
    runs
}

/// Adds or subtracts the lane constant to little-endian words.
fn shift_words(bytes: &mut [u8], word: usize, shift: WordShift, op: fn(u64, u64) -> u64) {
    let WordShift::PerLane(bits) = shift else {
        return;
    };
    let constant = (0..64)
        .step_by(bits.max(1) as usize)
        .fold(0_u64, |c, at| c | 1 << at);
    for chunk in bytes.chunks_exact_mut(word) {
        let mut wide = [0; 8];
        wide[..word].copy_from_slice(chunk);
        // What overflows into the bytes above the word is dropped: arithmetic modulo the word.
        let shifted = op(u64::from_le_bytes(wide), constant).to_le_bytes();
        chunk.copy_from_slice(&shifted[..word]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_is_the_identity() {
        for size in [1, 2, 4, 8] {
            for (rows, columns) in [(1, 5), (5, 1), (33, 65), (64, 32), (0, 4)] {
                let bytes: Vec<u8> = (0_u8..251).cycle().take(rows * columns * size).collect();
                let turned = transpose(&bytes, rows, columns, size);
                assert_eq!(
                    transpose(&turned, columns, rows, size),
                    bytes,
                    "{size} {rows} {columns}"
                );
                if rows > 1 && columns > 1 {
                    assert_eq!(
                        turned[size..2 * size],
                        bytes[columns * size..(columns + 1) * size]
                    );
                }
            }
        }
    }

    /// gptq.md, section 4: z = 3,0,5,7,1,2,9,15 in GPTQModel's v1.
    #[test]
    fn words_are_shifted_as_a_whole() {
        let mut word = 0xf921_7503_u32.to_le_bytes();
        shift_words(&mut word, 4, WordShift::PerLane(4), u64::wrapping_sub);
        assert_eq!(u32::from_le_bytes(word), 0xe810_63f2);
        shift_words(&mut word, 4, WordShift::PerLane(4), u64::wrapping_add);
        assert_eq!(u32::from_le_bytes(word), 0xf921_7503);
    }

    #[test]
    fn flat_bytes_become_partial_and_whole_rows() {
        let regions = flat_regions(0, 4, 6, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let shapes: Vec<_> = regions
            .iter()
            .map(|r| (r.rows.clone(), r.columns.clone()))
            .collect();
        assert_eq!(shapes, [(1..2, 2..4), (2..4, 0..4), (4..5, 0..1)]);
    }
}
