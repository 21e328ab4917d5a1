//! Stored codes to rows of floats, step by step: the reference of [`crate::Backend::decode_rows`].

use super::{affine, convert};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Entry, FloatsMut, Formula, Stores};
use crate::{Float, Packing};

/// Copies bytes. Where there are no streaming stores, ordinary ones do the same.
///
/// # Panics
/// If the lengths differ.
pub fn copy(from: &[u8], to: &mut [u8], _stores: Stores) {
    to.copy_from_slice(from);
}

/// Decodes rows: unpack, look up or subtract, scale, round.
///
/// `out`: `[n_rows, n_columns]`, row-major. Where an operation makes a NaN (or meets two), F32 and F16 results are *some*
/// NaN; BF16 results are FFFF.
///
/// # Panics
/// If a length does not fit.
pub fn decode(rows: &CodedRows<'_>, out: FloatsMut<'_>, _stores: Stores) {
    rows.check(&out);
    if out.is_empty() {
        return;
    }
    let columns = rows.n_columns;
    let mut codes = vec![0; columns];
    let transposed = transposed(rows);
    match out {
        FloatsMut::F32(values) => {
            for (row, out) in values.chunks_exact_mut(columns).enumerate() {
                read_row(rows, row, &transposed, &mut codes);
                row_values(rows, row, &mut codes, out);
            }
        }
        FloatsMut::Bytes(float, bytes) => {
            let mut values = vec![0.0; columns];
            let lines = bytes.chunks_exact_mut(columns * float.size_bytes());
            for (row, out) in lines.enumerate() {
                read_row(rows, row, &transposed, &mut codes);
                row_values(rows, row, &mut codes, &mut values);
                round(rows.first_rounded_to, float, &mut values, out);
            }
        }
    }
}

/// The codes of all rows where lines are columns, else nothing.
pub(super) fn transposed(rows: &CodedRows<'_>) -> Vec<u8> {
    match rows.codes.layout {
        CodeLayout::Columns(packing) => from_columns(rows, packing),
        CodeLayout::Rows(_) | CodeLayout::WordsOfRows(_) => Vec::new(),
    }
}

/// One code per byte; `transposed` has all of them where lines are columns.
pub(super) fn read_row(rows: &CodedRows<'_>, row: usize, transposed: &[u8], codes: &mut [u8]) {
    let stored = rows.codes;
    let lines = |at: usize| &stored.bytes[at * stored.stride..];
    match stored.layout {
        CodeLayout::Rows(packing) => packing.unpack(lines(row), codes),
        CodeLayout::WordsOfRows(packing) => {
            let n_words = packing.packed_len_bytes(codes.len(), 4) / 4;
            let words: Vec<u8> = (0..n_words)
                .flat_map(|word| lines(word)[4 * row..4 * row + 4].iter().copied())
                .collect();
            packing.unpack(&words, codes);
        }
        CodeLayout::Columns(_) => {
            codes.copy_from_slice(&transposed[row * codes.len()..(row + 1) * codes.len()]);
        }
    }
}

/// The codes of all rows, row after row, of lines that are columns: each line is unpacked once.
fn from_columns(rows: &CodedRows<'_>, packing: Packing) -> Vec<u8> {
    let columns = rows.n_columns;
    let mut transposed = vec![0; rows.n_rows * columns];
    let mut line = vec![0; rows.n_rows];
    for column in 0..columns {
        packing.unpack(&rows.codes.bytes[column * rows.codes.stride..], &mut line);
        for (row, &code) in line.iter().enumerate() {
            transposed[row * columns + column] = code;
        }
    }
    transposed
}

/// The values of a row. Turns the codes into unsigned form.
fn row_values(rows: &CodedRows<'_>, row: usize, codes: &mut [u8], out: &mut [f32]) {
    to_unsigned(rows, codes);
    let size = rows.grid.columns;
    let first = rows.grid.line(row) * rows.grid.width(codes.len());
    for (at, (codes, out)) in codes.chunks(size).zip(out.chunks_mut(size)).enumerate() {
        group(rows, rows.entry(first + at), codes, out);
    }
}

/// Turns the codes into unsigned form.
pub(super) fn to_unsigned(rows: &CodedRows<'_>, codes: &mut [u8]) {
    if let CodeMeaning::Integer { flip, zero: _ } = rows.value {
        for code in codes {
            *code ^= flip;
        }
    }
}

/// The values of one group.
pub(super) fn group(rows: &CodedRows<'_>, entry: Entry, codes: &[u8], out: &mut [f32]) {
    let Entry {
        scale,
        zero,
        offset,
    } = entry;
    let factor = match rows.formula {
        Formula::Product
        | Formula::ProductTimes(_)
        | Formula::PlusOffset { .. }
        | Formula::MinusOffset { .. } => scale,
        Formula::Quotient | Formula::OffsetFirst { .. } => 1.0,
    };
    match rows.value {
        CodeMeaning::Integer { .. } => affine::dequantize_integer(codes, zero, factor, out),
        CodeMeaning::Minifloat(format) => {
            affine::dequantize_table(codes, format.table(), factor, out);
        }
        CodeMeaning::Table16(table) => {
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = table[usize::from(code & 15)] * factor;
            }
        }
    }
    for value in out {
        *value = match rows.formula {
            Formula::Product => *value,
            Formula::Quotient => *value / scale,
            Formula::ProductTimes(second) => *value * second,
            Formula::PlusOffset { step, offsets: _ } => step.nearest(*value) + offset,
            Formula::MinusOffset { step, offsets: _ } => step.nearest(*value) - offset,
            Formula::OffsetFirst { step, offsets: _ } => step.nearest(*value - offset) * scale,
        };
    }
}

/// Rounds a row, twice where the formula says so.
pub(super) fn round(first: Float, float: Float, values: &mut [f32], out: &mut [u8]) {
    if first != Float::F32 {
        for value in &mut *values {
            *value = first.nearest(*value);
        }
    }
    convert::round(float, values, out);
    if float == Float::Bf16 {
        for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
            if value.is_nan() {
                *bytes = BF16_NAN;
            }
        }
    }
}

/// What torch on a CPU makes of every NaN (specs/dtypes/bf16.md).
const BF16_NAN: [u8; 2] = [0xff, 0xff];
