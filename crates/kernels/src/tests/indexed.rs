//! [`crate::Backend::decode_indexed`] of each backend against portable, and portable against its definition.

use super::cases::{self, Rows};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Formula, ScaleGrid, StoredCodes, Zeros};
use crate::{Backend, Codebook, Float, FloatsMut, Minifloat, PORTABLE, Packing, Stores};

/// `(rows, columns, columns of a group)`: around tiles of 8, 32 and 128 rows, blocks of 8 columns, strips of 256 and
/// 512.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (5, 31, 7),
    (33, 64, 16),
    (40, 130, 32),
    (70, 300, 128),
    (32, 600, 64),
    (64, 257, 300),
    (161, 40, 16),
];

/// An entry for each column, in no order; some entries are used by none.
fn index(n_columns: usize, group: usize) -> Vec<u32> {
    let width = n_columns.div_ceil(group);
    let entry = |column: usize| (column * 7919 % 2003 * 31 % 997 % width) as u32;
    (0..n_columns).map(entry).collect()
}

/// Bytes and `f32` bits of the results of every output and kind of store, at an odd address and at one of 16.
fn results(backend: &Backend, rows: &CodedRows<'_>, index: &[u32]) -> Vec<Vec<u8>> {
    let n = rows.n_rows * rows.n_columns;
    let mut results = Vec::new();
    for (stores, offsets) in [
        (Stores::Ordinary, &[1][..]),
        (Stores::Streaming, &[0, 1, 16]),
    ] {
        for &float in Float::ALL {
            let len = n * float.size_bytes();
            for offset in offsets {
                let mut found = vec![0xa5; len + 96];
                let at = found.as_ptr().align_offset(32) + offset;
                let out = FloatsMut::Bytes(float, &mut found[at..at + len]);
                (backend.decode_indexed)(rows, index, out, stores);
                let around = found[..at].iter().chain(&found[at + len..]);
                assert!(around.clone().all(|&byte| byte == 0xa5), "{}", backend.name);
                results.push(found[at..at + len].to_vec());
            }
        }
        let mut found = vec![0.0_f32; n];
        (backend.decode_indexed)(rows, index, FloatsMut::F32(&mut found), stores);
        results.push(found.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    results
}

/// Calls `f` with rows of each shape, packing and layout.
fn each_case(mut f: impl FnMut(CodedRows<'_>, &Rows, &[u32], &str)) {
    for &(n_rows, n_columns, group) in SHAPES {
        let numbers = Rows::new(n_rows, n_columns, group);
        let index = index(n_columns, group);
        for packing in Packing::all().filter(|packing| packing.bits() > 1) {
            let words = packing.packed_len_bytes(n_columns, 4) / 4;
            for (layout, n_lines, stride) in [
                (CodeLayout::Rows(packing), n_rows, 4 * words + 3),
                (CodeLayout::WordsOfRows(packing), words, 4 * n_rows + 7),
                (
                    CodeLayout::Columns(packing),
                    n_columns,
                    packing.packed_len_bytes(n_rows, 1) + 5,
                ),
            ] {
                let bytes = cases::bytes(stride * n_lines + 1);
                let rows = CodedRows {
                    n_rows,
                    n_columns,
                    codes: StoredCodes {
                        bytes: &bytes[1..],
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
                let case = format!("{n_rows} x {n_columns} / {group} {layout:?}");
                f(rows, &numbers, &index, &case);
            }
        }
    }
}

#[test]
fn backends_equal_portable() {
    let mut visited = 0;
    each_case(|rows, numbers, index, case| {
        let half = 1 << (rows.codes.layout.packing().bits() - 1);
        let finite: Vec<f32> = numbers.scales.iter().map(|s| s.min(1e30)).collect();
        let grid = ScaleGrid {
            scales: &finite,
            ..rows.grid
        };
        let zero = Zeros::Fixed(half.into());
        let offsets = &numbers.offsets;
        let step = Float::F16;
        let has_tables = rows.codes.layout.packing().bits() == 4;
        let variants = [
            // With infinite scales, and without.
            rows,
            CodedRows { grid, ..rows },
            CodedRows {
                grid,
                value: CodeMeaning::Integer { flip: half, zero },
                ..rows
            },
            CodedRows {
                value: CodeMeaning::Table16(Codebook::Nf4.values()),
                ..rows
            },
            CodedRows {
                grid,
                formula: Formula::PlusOffset { offsets, step },
                first_rounded_to: Float::Bf16,
                ..rows
            },
        ];
        for rows in &variants[..if has_tables { 5 } else { 3 }] {
            let expected = results(&PORTABLE, rows, index);
            for backend in Backend::available() {
                let found = results(backend, rows, index);
                let same = found.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(same, None, "{} {case} {:?}", backend.name, rows.value);
                visited += 1;
            }
        }
    });
    let names: Vec<&str> = Backend::available().map(|b| b.name).collect();
    assert!(visited >= 5 * 9 * SHAPES.len() * names.len());
    println!("indexed: {names:?} equal portable in {visited} cases");
}

/// What an index means, said without one: a grid with an entry for every code.
#[test]
fn an_index_chooses_entries() {
    let mut visited = 0;
    each_case(|rows, numbers, index, case| {
        let (n_rows, n_columns) = (rows.n_rows, rows.n_columns);
        let width = rows.grid.width(n_columns);
        let at = |i: usize| i / n_columns * width + index[i % n_columns] as usize;
        let n = n_rows * n_columns;
        let scales: Vec<f32> = (0..n).map(|i| numbers.scales[at(i)]).collect();
        let zeros: Vec<i32> = (0..n).map(|i| numbers.zeros[at(i)]).collect();
        let spread = CodedRows {
            grid: ScaleGrid {
                scales: &scales,
                columns: 1,
                ..rows.grid
            },
            value: CodeMeaning::Integer {
                flip: 0,
                zero: Zeros::Each(&zeros),
            },
            ..rows
        };
        let (mut found, mut expected) = (vec![1.0; n], vec![2.0; n]);
        (PORTABLE.decode_indexed)(&rows, index, FloatsMut::F32(&mut found), Stores::Ordinary);
        (PORTABLE.decode_rows)(&spread, FloatsMut::F32(&mut expected), Stores::Ordinary);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "{case}");
        visited += 1;
    });
    assert!(visited >= 3 * SHAPES.len());
}

#[test]
#[should_panic(expected = "a line has 2 entries")]
fn an_entry_outside_of_the_grid_panics() {
    let rows = CodedRows {
        n_rows: 1,
        n_columns: 64,
        codes: StoredCodes {
            bytes: &[0; 64],
            stride: 64,
            layout: CodeLayout::Rows(Packing::Bytes),
        },
        value: CodeMeaning::Minifloat(Minifloat::E4M3),
        grid: ScaleGrid {
            scales: &[1.0; 2],
            rows: 1,
            rows_before: 0,
            columns: 32,
        },
        formula: Formula::Product,
        first_rounded_to: Float::F32,
    };
    let mut index = [0; 64];
    index[63] = 2;
    let out = &mut [0.0; 64];
    (Backend::detect().decode_indexed)(&rows, &index, FloatsMut::F32(out), Stores::Ordinary);
}
