//! Codes of a whole matrix, flattened row by row and cut in planes that lie over each other in the bits of the same words:
//! HQQ and quanto (formats: hqq-quanto §1.3, §2.3).

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::{Backend, Planes};

use super::{grid_of, part_bytes, to_u64, to_usize, wrong_size};
use crate::encode::EncodedRegion;
use crate::{Error, Part, QuantizedTensor};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct InPlanes {
    planes: Planes,
    rows: usize,
    columns: usize,
    /// Elements of a plane.
    len: usize,
}

impl InPlanes {
    pub(super) fn new(
        tensor: &QuantizedTensor,
        part: &Part,
        planes: Planes,
        len: u64,
    ) -> Result<Self, Error> {
        let grid = grid_of(tensor, part.role)?;
        let needed = len
            .saturating_mul(to_u64(planes.word_bytes()))
            .saturating_mul(tensor.n_matrices());
        let n_codes = to_u64(grid.rows.saturating_mul(grid.columns));
        let holds = len.saturating_mul(to_u64(planes.n_planes())) >= n_codes;
        if part_bytes(part) != Some(needed) || !holds {
            return Err(wrong_size(tensor, part, needed));
        }
        Ok(Self {
            planes,
            rows: grid.rows,
            columns: grid.columns,
            len: to_usize(&tensor.module, "a plane", len)?,
        })
    }

    /// A single plane has its codes in the order of the matrix.
    fn is_in_order(&self) -> bool {
        self.planes.n_planes() == 1 && self.len == self.rows.saturating_mul(self.columns)
    }

    /// Words hold codes of rows far apart: they can only be written all at once, but for a single plane.
    pub(super) fn write_unit(&self) -> usize {
        if self.is_in_order() {
            return 1;
        }
        self.rows.max(1)
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let codes = n_rows.saturating_mul(to_u64(self.columns));
        codes.saturating_mul(1 + to_u64(self.planes.word_bytes()))
    }

    pub(super) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &Backend,
    ) -> Result<Vec<u8>, Error> {
        let word = self.planes.word_bytes();
        let base = matrix * to_u64(self.len * word);
        let first = rows.start * self.columns;
        let mut codes = vec![0; rows.len() * self.columns];
        let mut done = 0;
        while done < codes.len() {
            let (plane, at) = ((first + done) / self.len, (first + done) % self.len);
            let n = (self.len - at).min(codes.len() - done);
            let mut words = vec![0; n * word];
            tensor.read_exact_at(base + to_u64(at * word), &mut words)?;
            let codes = &mut codes[done..done + n];
            (backend.unpack_plane)(self.planes, plane, &words, codes);
            done += n;
        }
        Ok(codes)
    }

    pub(super) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        codes: &[u8],
        backend: &Backend,
    ) -> Vec<EncodedRegion> {
        let word = self.planes.word_bytes();
        if self.is_in_order() {
            let mut bytes = vec![0; codes.len() * word];
            (backend.pack_plane)(self.planes, 0, codes, &mut bytes);
            let base = matrix * to_u64(self.rows);
            let row_len = to_u64(self.columns * word);
            return vec![EncodedRegion {
                part,
                row_len,
                rows: base + to_u64(rows.start)..base + to_u64(rows.end),
                columns: 0..row_len,
                bytes,
            }];
        }
        assert_eq!(*rows, 0..self.rows, "planes are written all at once");
        let mut bytes = vec![0; self.len * word];
        for (plane, codes) in codes.chunks(self.len.max(1)).enumerate() {
            let words = &mut bytes[..codes.len() * word];
            (backend.pack_plane)(self.planes, plane, codes, words);
        }
        let row_len = to_u64(bytes.len());
        vec![EncodedRegion {
            part,
            row_len,
            rows: matrix..matrix + 1,
            columns: 0..row_len,
            bytes,
        }]
    }
}
