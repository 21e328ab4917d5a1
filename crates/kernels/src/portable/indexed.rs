//! Rows whose columns name their entry of the grid: the reference of [`crate::Backend::decode_indexed`].

use super::rows::{group, read_row, round, to_unsigned, transposed};
use crate::rows::{CodedRows, FloatsMut, Stores};

/// As [`super::rows::decode`], where column `k` has entry `index[k]` of its row's line of the grid, in place of
/// `k / grid.columns`: activation order.
///
/// # Panics
/// If a length does not fit, or an entry lies outside the line.
pub fn decode(rows: &CodedRows<'_>, index: &[u32], out: FloatsMut<'_>, _stores: Stores) {
    rows.check_index(index, &out);
    if out.is_empty() {
        return;
    }
    let columns = rows.n_columns;
    let all = transposed(rows);
    let mut row = Row::new(rows, index);
    match out {
        FloatsMut::F32(values) => {
            for (at, out) in values.chunks_exact_mut(columns).enumerate() {
                row.decode(at, &all, out);
            }
        }
        FloatsMut::Bytes(float, bytes) => {
            let mut values = vec![0.0; columns];
            let lines = bytes.chunks_exact_mut(columns * float.size_bytes());
            for (at, out) in lines.enumerate() {
                row.decode(at, &all, &mut values);
                round(rows.first_rounded_to, float, &mut values, out);
            }
        }
    }
}

/// The columns sorted by their entries, so that an entry is one call, and memory for a row.
struct Row<'a> {
    rows: &'a CodedRows<'a>,
    /// Columns by entry, ascending within one.
    order: Vec<usize>,
    /// Columns of each entry.
    lens: Vec<usize>,
    codes: Vec<u8>,
    sorted: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Row<'a> {
    fn new(rows: &'a CodedRows<'a>, index: &[u32]) -> Self {
        let columns = rows.n_columns;
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by_key(|&column| index[column]);
        let mut lens = vec![0; rows.grid.width(columns)];
        for &entry in index {
            lens[entry as usize] += 1;
        }
        Self {
            rows,
            order,
            lens,
            codes: vec![0; columns],
            sorted: vec![0; columns],
            values: vec![0.0; columns],
        }
    }

    fn decode(&mut self, row: usize, transposed: &[u8], out: &mut [f32]) {
        let rows = self.rows;
        read_row(rows, row, transposed, &mut self.codes);
        to_unsigned(rows, &mut self.codes);
        for (sorted, &column) in self.sorted.iter_mut().zip(&self.order) {
            *sorted = self.codes[column];
        }
        let first = rows.grid.line(row) * self.lens.len();
        let mut start = 0;
        for (entry, &len) in self.lens.iter().enumerate() {
            let cut = start..start + len;
            start = cut.end;
            let (codes, values) = (&self.sorted[cut.clone()], &mut self.values[cut]);
            group(rows, rows.entry(first + entry), codes, values);
        }
        for (&value, &column) in self.values.iter().zip(&self.order) {
            out[column] = value;
        }
    }
}
