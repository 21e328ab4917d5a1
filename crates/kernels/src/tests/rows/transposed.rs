//! Layouts that store the transpose of the rows.

use super::super::cases::{self, Rows};
use super::{check, packings, report};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Formula, StoredCodes, Zeros};
use crate::{Float, Minifloat, Packing};

/// Layouts that store the transpose, around the blocks of 8, 16, 32 and 64 rows and columns and the tiles of 128 rows
/// (words) and of 256 bytes of a line (columns). Lines are longer than the rows need, and begin at an odd address.
#[test]
fn transposed() {
    let mut visited = 0;
    for (n_rows, n_columns, group) in [
        (1, 1, 1),
        (8, 64, 32),
        (33, 130, 64),
        (40, 96, 16),
        (31, 2100, 2100),
        (67, 300, 128),
        (32, 2240, 64),
        (72, 256, 128),
        (41, 192, 32),
        (64, 320, 320),
        (130, 64, 64),
        (1100, 64, 64),
    ] {
        let numbers = Rows::new(n_rows, n_columns, group);
        for packing in packings() {
            let words = packing.packed_len_bytes(n_columns, 4) / 4;
            let (across, along) = (packing.packed_len_bytes(n_rows, 1) + 5, 4 * n_rows + 7);
            for (layout, n_lines, stride) in [
                (CodeLayout::WordsOfRows(packing), words, along),
                (CodeLayout::Columns(packing), n_columns, across),
            ] {
                let bytes = cases::bytes(stride * n_lines + 1);
                let codes = StoredCodes {
                    bytes: &bytes[1..],
                    stride,
                    layout,
                };
                for value in [
                    CodeMeaning::Integer {
                        flip: 0,
                        zero: Zeros::Each(&numbers.zeros),
                    },
                    CodeMeaning::Minifloat(Minifloat::E4M3),
                ] {
                    let rows = CodedRows {
                        n_rows,
                        n_columns,
                        codes,
                        value,
                        grid: numbers.grid(),
                        formula: Formula::Product,
                        first_rounded_to: Float::F32,
                    };
                    let case = format!("{n_rows} x {n_columns} / {group} {layout:?}");
                    visited += check(&rows, &case);
                }
            }
        }
    }
    report("transposed", visited);
}

/// Tiles beside each other, and rows that are decoded in parts: with groups, within one, and with a last tile of a few columns.
#[test]
fn transposed_and_wide() {
    let mut visited = 0;
    let (words, columns) = (CodeLayout::WordsOfRows, CodeLayout::Columns);
    for (layout, n_rows, n_columns, group) in [
        (words(Packing::LsbFirst { bits: 8 }), 131, 8200, 8),
        (words(Packing::LsbFirst { bits: 3 }), 9, 8288, 32),
        (words(Packing::LsbFirst { bits: 4 }), 17, 4500, 4500),
        (words(Packing::LsbFirst { bits: 4 }), 3, 10_000, 5000),
        (columns(Packing::AwqInterleaved), 520, 4160, 64),
        (columns(Packing::NibblesHighFirst), 600, 6000, 6000),
        (columns(Packing::Bytes), 300, 4100, 100),
    ] {
        let packing = layout.packing();
        let (n_lines, stride) = match layout {
            CodeLayout::Rows(_) | CodeLayout::WordsOfRows(_) => {
                (packing.packed_len_bytes(n_columns, 4) / 4, 4 * n_rows)
            }
            CodeLayout::Columns(_) => (n_columns, packing.packed_len_bytes(n_rows, 1)),
        };
        let numbers = Rows::new(n_rows, n_columns, group);
        let bytes = cases::bytes(stride * n_lines);
        let rows = CodedRows {
            n_rows,
            n_columns,
            codes: StoredCodes {
                bytes: &bytes,
                stride,
                layout,
            },
            value: CodeMeaning::Integer {
                flip: 0,
                zero: Zeros::Each(&numbers.zeros),
            },
            grid: numbers.grid(),
            formula: Formula::Product,
            first_rounded_to: Float::F32,
        };
        visited += check(
            &rows,
            &format!("{n_rows} x {n_columns} / {group} {layout:?}"),
        );
    }
    report("transposed and wide", visited);
}
