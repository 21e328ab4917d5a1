//! Sparse matrices: only the entries that a mask marks are stored, row after row; the others are zero. What is here goes
//! between a row as it is and a row as it is kept, and knows no part and no file.

use std::ops::Range;

use super::{part_grid, to_u64, to_usize};
use crate::arithmetic::code_bytes;
use crate::{Code, Error, IntegerEncoding, Kept, Part, QuantizedTensor, Role, Storage, ZeroPoint};

/// Quads that one word of positions covers.
const QUADS_PER_WORD: usize = 4;

/// How the codes of a sparse tensor are kept.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    kept: Kept,
    /// Entries of a row as it is.
    columns: usize,
    /// Bytes of an entry.
    width: usize,
    /// Every byte of an entry that is not stored.
    fill: u8,
    /// Rows of the matrix, and entries stored of all of them.
    rows: usize,
    n_stored: u64,
    /// Whether the mask part holds positions ([`crate::Role::Mask`] in tiles) instead of bits.
    form: MaskForm,
}

/// What the mask part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MaskForm {
    Bits,
    Positions,
}

impl Sparse {
    /// `None` for a tensor all of whose entries are stored.
    pub(crate) fn new(tensor: &QuantizedTensor) -> Result<Option<Self>, Error> {
        let Some(codes) = tensor.part(Role::Codes) else {
            return Ok(None);
        };
        let Storage::Sparse { kept } = codes.storage else {
            return Ok(None);
        };
        let mask = tensor
            .part(Role::Mask)
            .ok_or_else(|| missing(tensor, "the mask"))?;
        let fill = match (tensor.scheme.code, tensor.scheme.zero_point) {
            (
                Code::Integer {
                    encoding: IntegerEncoding::Unsigned,
                    ..
                },
                ZeroPoint::Fixed(zero),
            ) => u8::try_from(zero).ok(),
            (
                Code::Integer {
                    encoding: IntegerEncoding::Unsigned,
                    ..
                },
                ZeroPoint::Stored(_) | ZeroPoint::Offset { .. },
            ) => None,
            _ => Some(0),
        };
        let grid = super::grid_of(tensor, Role::Codes)?;
        let stored = part_grid(tensor, codes)?;
        Ok(Some(Self {
            kept,
            columns: grid.columns,
            width: code_bytes(tensor.scheme.code),
            fill: fill.ok_or_else(|| missing(tensor, "the zero of entries that are not stored"))?,
            rows: grid.rows,
            n_stored: to_u64(stored.rows).saturating_mul(to_u64(stored.columns)),
            form: if matches!(mask.storage, Storage::Tiled { .. }) {
                MaskForm::Positions
            } else {
                MaskForm::Bits
            },
        }))
    }

    /// Entries of a row as it is.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the part with [`Role::RowStart`] is needed.
    pub(crate) fn has_starts(&self) -> bool {
        self.kept == Kept::Ragged
    }

    /// Rows of the part with the starts that rows `rows` need: one more than they are, where there is one.
    pub(crate) fn start_rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start..self.rows.min(rows.end.saturating_add(1))
    }

    /// One byte per entry, 1 for those that are stored, from the entries of the mask part.
    pub(crate) fn marks(
        &self,
        tensor: &QuantizedTensor,
        rows: &Range<usize>,
        mask: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        if self.form == MaskForm::Bits {
            return Ok(mask);
        }
        let mut marks = vec![0; rows.len() * self.columns];
        let quads = marks.as_chunks_mut::<4>().0;
        for (at, (quad, positions)) in quads.iter_mut().zip(nibbles(&mask)).enumerate() {
            let (first, second) = (usize::from(positions & 3), usize::from(positions >> 2));
            if first >= second {
                let row = rows.start + at * 4 / self.columns.max(1);
                let problem = format!("has the positions {first} and {second}, not in order");
                return Err(wrong(tensor, row, problem));
            }
            quad[first] = 1;
            quad[second] = 1;
        }
        Ok(marks)
    }

    /// The entries of the mask part for rows with these marks.
    pub(crate) fn mask(
        &self,
        tensor: &QuantizedTensor,
        rows: &Range<usize>,
        marks: &[u8],
    ) -> Result<Vec<u8>, Error> {
        if self.form == MaskForm::Bits {
            return Ok(marks.to_vec());
        }
        let mut bytes = vec![0; marks.len() / 8];
        for (at, quad) in marks.as_chunks::<4>().0.iter().enumerate() {
            let mut set = (0..4_u8).filter(|&i| quad[usize::from(i)] == 1);
            let (Some(first), Some(second), None) = (set.next(), set.next(), set.next()) else {
                let row = rows.start + at * 4 / self.columns.max(1);
                let problem = "does not keep two entries of every four".to_owned();
                return Err(wrong(tensor, row, problem));
            };
            bytes[at / 2] |= (first | second << 2) << (at % 2 * 4);
        }
        Ok(bytes)
    }

    /// The rows of the kept grid that hold rows `rows`, checked against the marks. `starts` as [`Sparse::start_rows`]
    /// says.
    pub(crate) fn kept_rows(
        &self,
        tensor: &QuantizedTensor,
        rows: &Range<usize>,
        marks: &[u8],
        starts: &[u64],
    ) -> Result<Range<usize>, Error> {
        let per_row = match self.kept {
            Kept::Rows { per_row } | Kept::Tiles { per_row, .. } => Some(per_row),
            Kept::Ragged => None,
        };
        for (i, row) in rows.clone().enumerate() {
            let marks = &marks[i * self.columns..(i + 1) * self.columns];
            let marked: u64 = marks.iter().map(|&mark| u64::from(mark)).sum();
            let stored = per_row.or_else(|| {
                let end = starts.get(i + 1).copied().unwrap_or(self.n_stored);
                end.checked_sub(*starts.get(i)?)
            });
            if stored != Some(marked) {
                let stored = stored.map_or_else(|| "no number of".to_owned(), |n| n.to_string());
                let problem = format!("marks {marked} entries, and {stored} are stored");
                return Err(wrong(tensor, row, problem));
            }
        }
        if per_row.is_some() {
            return Ok(rows.clone());
        }
        let Some(&first) = starts.first() else {
            return Ok(0..0);
        };
        let last = starts.get(rows.len()).copied().unwrap_or(self.n_stored);
        let in_order = first <= last && last <= self.n_stored && (rows.start > 0 || first == 0);
        if !in_order {
            let problem = format!("begins at {first} of {} stored entries", self.n_stored);
            return Err(wrong(tensor, rows.start, problem));
        }
        Ok(to_usize(&tensor.module, "a row", first)?..to_usize(&tensor.module, "a row", last)?)
    }

    /// Rows as they are from rows as they are kept.
    pub(crate) fn spread(&self, kept: &[u8], marks: &[u8]) -> Vec<u8> {
        let mut out = vec![self.fill; marks.len() * self.width];
        let mut kept = kept.chunks_exact(self.width);
        for (entry, &mark) in out.chunks_exact_mut(self.width).zip(marks) {
            if mark == 1
                && let Some(stored) = kept.next()
            {
                entry.copy_from_slice(stored);
            }
        }
        out
    }

    /// Rows as they are kept from rows as they are.
    pub(crate) fn gather(&self, entries: &[u8], marks: &[u8]) -> Vec<u8> {
        let entries = entries.chunks_exact(self.width).zip(marks);
        let marked = entries.filter(|&(_, &mark)| mark == 1);
        marked.flat_map(|(entry, _)| entry).copied().collect()
    }

    /// Upper bound of the bytes that reading `n_rows` rows takes beside the kept entries.
    pub(crate) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let entries = n_rows.saturating_mul(to_u64(self.columns));
        // Marks, and once more as the part gives them; the row spread; starts.
        entries
            .saturating_mul(2 + to_u64(self.width))
            .saturating_add(n_rows.saturating_mul(16))
            .saturating_add(64)
    }
}

/// The halves of each byte, low one first: positions of one quad each.
fn nibbles(words: &[u8]) -> impl Iterator<Item = u8> {
    words.iter().flat_map(|&byte| [byte & 15, byte >> 4])
}

/// Columns of a matrix that one word of positions covers.
pub(crate) const COLUMNS_PER_WORD: usize = 4 * QUADS_PER_WORD;

fn missing(tensor: &QuantizedTensor, part: &str) -> Error {
    Error::MissingPart {
        module: tensor.module.clone(),
        part: part.to_owned(),
    }
}

fn wrong(tensor: &QuantizedTensor, row: usize, problem: String) -> Error {
    Error::SparseRow {
        module: tensor.module.clone(),
        row: to_u64(row),
        problem,
    }
}

/// The grid of a part of a sparse tensor, where it is not that of its role: codes as they are kept, masks in words.
pub(crate) fn kept_grid(
    tensor: &QuantizedTensor,
    part: &Part,
    [rows, columns]: [usize; 2],
) -> Result<[usize; 2], Error> {
    let n_elements = || {
        let n = part.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
        to_usize(&tensor.module, "the grid", n.unwrap_or(u64::MAX))
    };
    let per_row = |n| to_usize(&tensor.module, "a row", n);
    Ok(match (part.role, part.storage) {
        (_, Storage::Sparse { kept }) => match kept {
            Kept::Rows { per_row: n } | Kept::Tiles { per_row: n, .. } => [rows, per_row(n)?],
            Kept::Ragged => [n_elements()?, 1],
        },
        (Role::Mask, Storage::Tiled { .. }) => [rows, columns.div_ceil(COLUMNS_PER_WORD)],
        _ => [rows, columns],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(kept: Kept, form: MaskForm) -> Sparse {
        Sparse {
            kept,
            columns: 8,
            width: 1,
            fill: 0,
            rows: 2,
            n_stored: 8,
            form,
        }
    }

    fn tensor() -> QuantizedTensor {
        QuantizedTensor {
            module: "m".into(),
            weight: "m.weight".into(),
            convention: "test",
            shape: vec![2, 8],
            scheme: crate::Scheme::plain(
                Code::Dense(safequant_kernels::Float::Bf16),
                crate::Granularity::Tensor,
                crate::ScaleCoding::One,
            ),
            reference_dtype: safequant_kernels::Float::Bf16,
            parts: Vec::new(),
        }
    }

    #[test]
    fn spreading_what_was_gathered_is_the_identity() {
        let s = sparse(Kept::Rows { per_row: 4 }, MaskForm::Bits);
        let row = [1, 0, 3, 2, 0, 3, 0, 5];
        let marks = [1, 0, 1, 0, 0, 1, 0, 1];
        let kept = s.gather(&row, &marks);
        assert_eq!(kept, [1, 3, 3, 5]);
        assert_eq!(s.spread(&kept, &marks), [1, 0, 3, 0, 0, 3, 0, 5]);
    }

    #[test]
    fn positions_are_two_ascending_places_of_each_quad() {
        let s = sparse(Kept::Rows { per_row: 4 }, MaskForm::Positions);
        let marks = [1, 0, 1, 0, 0, 1, 0, 1];
        let bytes = s.mask(&tensor(), &(0..1), &marks).unwrap();
        assert_eq!(bytes, [0b1101_1000]);
        assert_eq!(s.marks(&tensor(), &(0..1), bytes).unwrap(), marks);
        assert!(s.marks(&tensor(), &(0..1), vec![0b1101_0010]).is_err());
        assert!(s.mask(&tensor(), &(0..1), &[1; 8]).is_err());
    }

    #[test]
    fn rows_must_hold_what_the_mask_marks() {
        let s = sparse(Kept::Ragged, MaskForm::Bits);
        let t = tensor();
        let mut marks = [0; 16];
        marks[0] = 1;
        marks[8..15].fill(1);
        assert_eq!(s.kept_rows(&t, &(0..2), &marks, &[0, 1]).unwrap(), 0..8);
        assert_eq!(s.kept_rows(&t, &(1..2), &marks[8..], &[1]).unwrap(), 1..8);
        for starts in [[0, 2], [1, 1], [2, 1], [0, u64::MAX], [u64::MAX, 0]] {
            assert!(
                s.kept_rows(&t, &(0..2), &marks, &starts).is_err(),
                "{starts:?}"
            );
        }
    }
}
