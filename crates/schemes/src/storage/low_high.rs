//! Codes whose low and high bits stand in two runs per row (formats: comfyui §3.6, six bits).

use std::ops::Range;

use safequant_container::TensorRef;
use safequant_kernels::{Backend, Packing};

use super::{grid_of, part_bytes, to_u64, wrong_size};
use crate::encode::EncodedRegion;
use crate::{Error, Part, QuantizedTensor};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct LowHigh {
    low: Packing,
    high: Packing,
    n_low_bits: u32,
    n_rows: usize,
    columns: usize,
    /// Bytes of the two runs of a row.
    lens: [usize; 2],
}

impl LowHigh {
    pub(super) fn new(
        tensor: &QuantizedTensor,
        part: &Part,
        low: u32,
        high: u32,
    ) -> Result<Self, Error> {
        let stored = Self::lengths(tensor, part, low, high)?;
        let needed = stored.len_bytes(tensor.n_matrices());
        if part_bytes(part) != Some(needed) {
            return Err(wrong_size(tensor, part, needed));
        }
        Ok(stored)
    }

    /// Bytes of the stack.
    pub(super) fn bytes(
        tensor: &QuantizedTensor,
        part: &Part,
        low: u32,
        high: u32,
    ) -> Result<u64, Error> {
        let stored = Self::lengths(tensor, part, low, high)?;
        Ok(stored.len_bytes(tensor.n_matrices()))
    }

    fn len_bytes(&self, n_matrices: u64) -> u64 {
        to_u64(self.row_len())
            .saturating_mul(to_u64(self.n_rows))
            .saturating_mul(n_matrices)
    }

    fn lengths(tensor: &QuantizedTensor, part: &Part, low: u32, high: u32) -> Result<Self, Error> {
        let grid = grid_of(tensor, part.role)?;
        let fits = low > 0 && high > 0 && low.saturating_add(high) <= 8;
        if !fits {
            return Err(wrong_size(tensor, part, 0));
        }
        let (first, second) = (
            Packing::LsbFirst { bits: low },
            Packing::LsbFirst { bits: high },
        );
        let lens = [first, second].map(|p| p.packed_len_bytes(grid.columns, 1));
        Ok(Self {
            low: first,
            high: second,
            n_low_bits: low,
            n_rows: grid.rows,
            columns: grid.columns,
            lens,
        })
    }

    fn row_len(&self) -> usize {
        self.lens[0] + self.lens[1]
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        let per_row = to_u64(self.columns).saturating_add(to_u64(self.row_len()));
        n_rows
            .saturating_mul(per_row)
            .saturating_add(to_u64(self.columns))
    }

    fn first_row(&self, matrix: u64) -> u64 {
        matrix * to_u64(self.n_rows)
    }

    pub(super) fn read(
        &self,
        tensor: TensorRef<'_>,
        matrix: u64,
        rows: &Range<usize>,
        backend: &'static Backend,
    ) -> Result<Vec<u8>, Error> {
        if rows.is_empty() || self.columns == 0 {
            return Ok(Vec::new());
        }
        let row_len = self.row_len();
        let mut stored = vec![0; rows.len() * row_len];
        let start = (self.first_row(matrix) + to_u64(rows.start)) * to_u64(row_len);
        tensor.read_exact_at(start, &mut stored)?;
        let mut codes = vec![0; rows.len() * self.columns];
        let mut high = vec![0; self.columns];
        for (row, out) in stored
            .chunks_exact(row_len)
            .zip(codes.chunks_exact_mut(self.columns))
        {
            (backend.unpack)(self.low, &row[..self.lens[0]], out);
            (backend.unpack)(self.high, &row[self.lens[0]..], &mut high);
            for (code, high) in out.iter_mut().zip(&high) {
                *code |= high << self.n_low_bits;
            }
        }
        Ok(codes)
    }

    pub(super) fn write(
        &self,
        part: usize,
        matrix: u64,
        rows: &Range<usize>,
        codes: &[u8],
        backend: &'static Backend,
    ) -> Vec<EncodedRegion> {
        if rows.is_empty() || self.columns == 0 {
            return Vec::new();
        }
        let row_len = self.row_len();
        let mut bytes = vec![0; rows.len() * row_len];
        let mask = (1_u8 << self.n_low_bits) - 1;
        for (row, out) in codes
            .chunks_exact(self.columns)
            .zip(bytes.chunks_exact_mut(row_len))
        {
            let low: Vec<u8> = row.iter().map(|c| c & mask).collect();
            let high: Vec<u8> = row.iter().map(|c| c >> self.n_low_bits).collect();
            let (first, second) = out.split_at_mut(self.lens[0]);
            (backend.pack)(self.low, &low, first);
            (backend.pack)(self.high, &high, second);
        }
        let first = self.first_row(matrix);
        vec![EncodedRegion {
            part,
            row_len: to_u64(row_len),
            rows: first + to_u64(rows.start)..first + to_u64(rows.end),
            columns: 0..to_u64(row_len),
            bytes,
        }]
    }
}
