//! Stored codes to rows of floats in one go, beside a copy of the same bytes in and out with the same kind of stores, and
//! beside portable: `4096 x 14336` from memory to memory, and a piece that stays in L2.
//!
//! `cargo bench -p safequant-benches --bench decode_rows -- 'DRAM/Bf16'` measures a part.

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{bytes, group, kernel, twin, weights};
use safequant_kernels::rows::{
    CodeLayout, CodeMeaning, CodedRows, Formula, ScaleGrid, StoredCodes, Zeros,
};
use safequant_kernels::{
    Backend, Codebook, Float, FloatsMut, Minifloat, PORTABLE, Packing, Stores,
};

/// Name, rows, columns. In L2: codes, scales and F32 results in 400 KiB at most.
const PLACES: &[(&str, usize, usize)] = &[("L2", 16, 4096), ("DRAM", 4096, 14336)];

const LSB4: CodeLayout = CodeLayout::Rows(Packing::LsbFirst { bits: 4 });
const BYTES: CodeLayout = CodeLayout::Rows(Packing::Bytes);
const E4M3: CodeMeaning<'_> = CodeMeaning::Minifloat(Minifloat::E4M3);
const INT4: CodeMeaning<'_> = CodeMeaning::Integer {
    flip: 0,
    zero: Zeros::Fixed(8),
};
const INT8: CodeMeaning<'_> = CodeMeaning::Integer {
    flip: 0x80,
    zero: Zeros::Fixed(128),
};

/// A format: name, layout, meaning of a code, rows and columns that share a scale.
type Case = (
    &'static str,
    CodeLayout,
    CodeMeaning<'static>,
    (usize, usize),
);

fn cases() -> Vec<Case> {
    let whole = usize::MAX;
    let lsb = |bits| CodeLayout::Rows(Packing::LsbFirst { bits });
    let nf4 = CodeMeaning::Table16(Codebook::Nf4.values());
    let e2m1 = CodeMeaning::Minifloat(Minifloat::E2M1);
    let high_first = CodeLayout::Rows(Packing::NibblesHighFirst);
    let gptq = CodeLayout::WordsOfRows(Packing::LsbFirst { bits: 4 });
    let awq = CodeLayout::Columns(Packing::AwqInterleaved);
    vec![
        ("fp8_tensor", BYTES, E4M3, (whole, whole)),
        ("fp8_channel", BYTES, E4M3, (1, whole)),
        ("fp8_block", BYTES, E4M3, (128, 128)),
        ("int8_channel", BYTES, INT8, (1, whole)),
        ("int4_g128", LSB4, INT4, (1, 128)),
        ("int4_g64", LSB4, INT4, (1, 64)),
        ("int4_g32", LSB4, INT4, (1, 32)),
        ("gptq4_g128", gptq, INT4, (1, 128)),
        ("awq4_g128", awq, INT4, (1, 128)),
        ("nf4_g64", high_first, nf4, (1, 64)),
        ("mxfp4", LSB4, e2m1, (1, 32)),
        ("nvfp4", LSB4, e2m1, (1, 16)),
        ("int2_g64", lsb(2), INT4, (1, 64)),
        ("int3_g128", lsb(3), INT4, (1, 128)),
        ("int6_g64", lsb(6), INT4, (1, 64)),
    ]
}

fn benches(criterion: &mut Criterion) {
    for &(place, n_rows, n_columns) in PLACES {
        let n = n_rows * n_columns;
        // No byte is a NaN of E4M3.
        let stored: Vec<u8> = bytes(n).iter().map(|b| b & 0xbe).collect();
        let scales: Vec<f32> = weights(n / 16).iter().map(|w| w * 0.01 + 0.02).collect();
        for &float in Float::ALL {
            let mut group = group(criterion, &format!("decode_rows/{place}/{float:?}"));
            let mut out = vec![0; n * float.size_bytes()];
            let stores = Stores::for_len(out.len());
            for (case, layout, value, (rows, columns)) in cases() {
                let stored = &stored[..n * layout.packing().bits() as usize / 8];
                let rows = CodedRows {
                    n_rows,
                    n_columns,
                    codes: StoredCodes {
                        bytes: stored,
                        stride: stride(layout, n_rows, n_columns),
                        layout,
                    },
                    value,
                    grid: ScaleGrid {
                        scales: &scales,
                        rows,
                        rows_before: 0,
                        columns,
                    },
                    formula: Formula::Product,
                    first_rounded_to: Float::F32,
                };
                twin(&mut group, (case, place), (stored.len(), out.len()), stores);
                let mut expected = vec![0; out.len()];
                let to = FloatsMut::Bytes(float, &mut expected);
                (PORTABLE.decode_rows)(&rows, to, stores);
                for backend in Backend::available() {
                    // From memory portable takes a second and is known from L2.
                    if place == "DRAM" && backend.name == PORTABLE.name {
                        continue;
                    }
                    let id = (backend.name, case, place);
                    kernel(&mut group, id, stored, &mut out, |stored, out| {
                        let codes = StoredCodes {
                            bytes: stored,
                            ..rows.codes
                        };
                        let rows = CodedRows { codes, ..rows };
                        (backend.decode_rows)(&rows, FloatsMut::Bytes(float, out), stores);
                    });
                    assert!(out == expected, "{} {case} {place} {float:?}", backend.name);
                }
            }
        }
    }
}

/// Bytes from one stored line to the next.
fn stride(layout: CodeLayout, n_rows: usize, n_columns: usize) -> usize {
    match layout {
        CodeLayout::Rows(packing) => packing.packed_len_bytes(n_columns, 1),
        CodeLayout::WordsOfRows(_) => 4 * n_rows,
        CodeLayout::Columns(packing) => packing.packed_len_bytes(n_rows, 1),
    }
}

criterion_group!(decode_rows, benches);
criterion_main!(decode_rows);
