//! ggml's blocks, and rows whose columns name their group (activation order), to rows of floats in one go: beside a copy of
//! the same bytes in and out with the same kind of stores, and beside portable; `4096 x 14336` from memory to memory, and a
//! piece that stays in L2.
//!
//! `cargo bench -p safequant-benches --bench decode_blocks -- 'DRAM/Bf16'` measures a part.

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{bytes, group, kernel, twin, weights};
use safequant_kernels::rows::{
    CodeLayout, CodeMeaning, CodedRows, Formula, ScaleGrid, StoredCodes, Zeros,
};
use safequant_kernels::samples::{BLOCKS, BlockWork};
use safequant_kernels::{Backend, Float, FloatsMut, PORTABLE, Packing, Stores};

/// Name, rows, columns. In L2: codes and F32 results in 400 KiB at most.
const PLACES: &[(&str, usize, usize)] = &[("L2", 32, 2048), ("DRAM", 4096, 14336)];

/// Columns of a group of activation order.
const GROUP: usize = 128;

fn benches(criterion: &mut Criterion) {
    for &(place, n_rows, n_columns) in PLACES {
        let n = n_rows * n_columns;
        for &float in Float::ALL {
            let mut group = group(criterion, &format!("decode_blocks/{place}/{float:?}"));
            let mut out = vec![0; n * float.size_bytes()];
            let stores = Stores::for_len(out.len());
            for &format in BLOCKS {
                let case = format.name();
                let work = BlockWork::new(format, n_rows, n_columns);
                let stored = work.stored();
                twin(&mut group, (case, place), (stored.len(), out.len()), stores);
                let mut expected = vec![0; out.len()];
                let to = FloatsMut::Bytes(float, &mut expected);
                (PORTABLE.decode_blocks)(format, stored, to, stores);
                for backend in Backend::available() {
                    // From memory portable takes a second and is known from L2.
                    if place == "DRAM" && backend.name == PORTABLE.name {
                        continue;
                    }
                    let id = (backend.name, case, place);
                    kernel(&mut group, id, stored, &mut out, |stored, out| {
                        let out = FloatsMut::Bytes(float, out);
                        (backend.decode_blocks)(format, stored, out, stores);
                    });
                    assert!(out == expected, "{} {case} {place} {float:?}", backend.name);
                }
            }
        }
    }
}

fn indexed(criterion: &mut Criterion) {
    let lsb4 = Packing::LsbFirst { bits: 4 };
    for &(place, n_rows, n_columns) in PLACES {
        let n = n_rows * n_columns;
        let codes = bytes(n / 2);
        let scales: Vec<f32> = weights(n / GROUP).iter().map(|w| w * 0.01 + 0.02).collect();
        let zeros: Vec<i32> = bytes(n / GROUP).iter().map(|b| i32::from(b % 16)).collect();
        let order = index(n_columns);
        for &float in Float::ALL {
            let mut group = group(criterion, &format!("decode_indexed/{place}/{float:?}"));
            let mut out = vec![0; n * float.size_bytes()];
            let stores = Stores::for_len(out.len());
            for (case, layout, stride) in [
                ("gptq4_g128", CodeLayout::WordsOfRows(lsb4), 4 * n_rows),
                ("int4_g128", CodeLayout::Rows(lsb4), n_columns / 2),
            ] {
                let rows = CodedRows {
                    n_rows,
                    n_columns,
                    codes: StoredCodes {
                        bytes: &codes,
                        stride,
                        layout,
                    },
                    value: CodeMeaning::Integer {
                        flip: 0,
                        zero: Zeros::Each(&zeros),
                    },
                    grid: ScaleGrid {
                        scales: &scales,
                        rows: 1,
                        rows_before: 0,
                        columns: GROUP,
                    },
                    formula: Formula::Product,
                    first_rounded_to: Float::F32,
                };
                twin(&mut group, (case, place), (codes.len(), out.len()), stores);
                let mut expected = vec![0; out.len()];
                let to = FloatsMut::Bytes(float, &mut expected);
                (PORTABLE.decode_indexed)(&rows, &order, to, stores);
                for backend in Backend::available() {
                    if place == "DRAM" && backend.name == PORTABLE.name {
                        continue;
                    }
                    let id = (backend.name, case, place);
                    kernel(&mut group, id, &codes, &mut out, |codes, out| {
                        let codes = StoredCodes {
                            bytes: codes,
                            ..rows.codes
                        };
                        let rows = CodedRows { codes, ..rows };
                        let out = FloatsMut::Bytes(float, out);
                        (backend.decode_indexed)(&rows, &order, out, stores);
                    });
                    assert!(out == expected, "{} {case} {place} {float:?}", backend.name);
                }
            }
        }
    }
}

/// The group of each column, as if columns had been sorted by something that has no order.
fn index(n_columns: usize) -> Vec<u32> {
    (0..n_columns)
        .map(|column| u32::try_from(column * 7919 % n_columns / GROUP).unwrap_or_default())
        .collect()
}

criterion_group!(decode_blocks, benches, indexed);
criterion_main!(decode_blocks);
