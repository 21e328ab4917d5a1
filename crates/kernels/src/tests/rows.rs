//! [`crate::Backend::decode_rows`] of each backend against portable.

mod transposed;

use super::cases::{self, Rows};
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Formula, StoredCodes, Zeros};
use crate::{Backend, Codebook, Float, FloatsMut, Minifloat, PORTABLE, Packing, Stores};

/// `(rows, columns, columns of a group)`: around the blocks of 32 and 64 codes and the segments of 2048, groups cut short,
/// groups that straddle bytes, one group for all.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (3, 31, 64),
    (2, 64, 16),
    (3, 96, 32),
    (2, 130, 64),
    (2, 200, 40),
    (5, 257, 128),
    (2, 2048, 128),
    (2, 4100, 4100),
    (2, 4224, 64),
    (1, 4500, 3000),
    (2, 4500, 1500),
    (3, 77, 7),
    (2, 6200, 100),
];

/// Every packing of 8 bits and less that a meaning may have.
fn packings() -> impl Iterator<Item = Packing> {
    Packing::all().filter(|packing| packing.bits() > 1)
}

fn formulas(offsets: &[f32]) -> Vec<Formula<'_>> {
    let mut formulas = vec![
        Formula::Product,
        Formula::Quotient,
        Formula::ProductTimes(1.0 / 127.0),
    ];
    for &step in Float::ALL {
        formulas.extend([
            Formula::PlusOffset { offsets, step },
            Formula::MinusOffset { offsets, step },
            Formula::OffsetFirst { offsets, step },
        ]);
    }
    formulas
}

/// Decodes with every backend and compares, for each output and kind of store; returns the number of comparisons. Outputs
/// begin at an odd address, those that are streamed also on a line of cache and 16 bytes behind one; nothing around them
/// may change.
fn check(rows: &CodedRows<'_>, case: &str) -> usize {
    let n = rows.n_rows * rows.n_columns;
    let mut visited = 0;
    for stores in [Stores::Ordinary, Stores::Streaming] {
        for &float in Float::ALL {
            if !cases::is_chosen() {
                continue;
            }
            let len = n * float.size_bytes();
            let reference = reference(rows, float);
            let mut expected = vec![0; len];
            let out = FloatsMut::Bytes(float, &mut expected);
            (reference.decode_rows)(rows, out, stores);
            let skews: &[usize] = match stores {
                Stores::Ordinary => &[1],
                Stores::Streaming => &[1, 0, 16],
            };
            for backend in compared(reference) {
                for &skew in skews {
                    let mut found = vec![0xa5; len + 130];
                    let first = found.as_ptr().align_offset(64) + skew;
                    let out = FloatsMut::Bytes(float, &mut found[first..first + len]);
                    (backend.decode_rows)(rows, out, stores);
                    let around = found[..first].iter().chain(&found[first + len..]);
                    let name = backend.name;
                    assert!(around.copied().all(|byte| byte == 0xa5), "{name} {case}");
                    let results = &found[first..first + len];
                    let at = results.iter().zip(&expected).position(|(a, b)| a != b);
                    assert_eq!(at, None, "{name} {case} {float:?} {stores:?} {skew}");
                    visited += 1;
                }
            }
        }
        if !cases::is_chosen() {
            continue;
        }
        let mut expected = vec![0.0; n];
        let out = FloatsMut::F32(&mut expected);
        let reference = reference(rows, Float::F32);
        (reference.decode_rows)(rows, out, stores);
        for backend in compared(reference) {
            let mut found = vec![0.0f32; n];
            (backend.decode_rows)(rows, FloatsMut::F32(&mut found), stores);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{} {case}", backend.name);
            visited += 1;
        }
    }
    visited
}

/// Portable. Bochs 2.7 rounds ties wrongly when it converts to F16, in both backends: where a part of the cases is run, as on
/// that emulator, results with such a rounding are compared with those of AVX2, which equal portable where a processor runs
/// these tests.
fn reference(rows: &CodedRows<'_>, float: Float) -> &'static Backend {
    let step = match rows.formula {
        Formula::Product | Formula::Quotient | Formula::ProductTimes(_) => Float::F32,
        Formula::PlusOffset { step, offsets: _ }
        | Formula::MinusOffset { step, offsets: _ }
        | Formula::OffsetFirst { step, offsets: _ } => step,
    };
    let has_f16 = [step, rows.first_rounded_to, float].contains(&Float::F16);
    if has_f16 && !cases::share().is_empty() {
        Backend::by_name("avx2").unwrap_or(&PORTABLE)
    } else {
        &PORTABLE
    }
}

/// All backends, or, with another reference than portable, all but portable.
fn compared(reference: &Backend) -> impl Iterator<Item = &'static Backend> {
    let is_portable = reference.name == PORTABLE.name;
    Backend::available().filter(move |backend| is_portable || backend.name != PORTABLE.name)
}

/// Calls `f` with rows of each shape in each packing that `wants`; the meaning is still to be set.
fn each_shape(wants: impl Fn(Packing) -> bool, mut f: impl FnMut(CodedRows<'_>, &Rows, &str)) {
    for &(n_rows, n_columns, group) in SHAPES {
        let numbers = Rows::new(n_rows, n_columns, group);
        for packing in packings().filter(|&packing| wants(packing)) {
            let stride = packing.packed_len_bytes(n_columns, 4) + 3;
            let bytes = cases::bytes(stride * n_rows + 1);
            let rows = CodedRows {
                n_rows,
                n_columns,
                codes: StoredCodes {
                    bytes: &bytes[1..],
                    stride,
                    layout: CodeLayout::Rows(packing),
                },
                value: CodeMeaning::Minifloat(Minifloat::E4M3),
                grid: numbers.grid(),
                formula: Formula::Product,
                first_rounded_to: Float::F32,
            };
            let case = format!("{n_rows} x {n_columns} / {group} {packing:?}");
            f(rows, &numbers, &case);
        }
    }
}

/// Prints what ran; a list of backends that shrank is seen in CI's log, one that is empty fails.
fn report(what: &str, visited: usize) {
    let names: Vec<&str> = Backend::available().map(|b| b.name).collect();
    // Where a part of the cases is run, that of a short list may be a single one.
    let least = if cases::share().is_empty() { 8 } else { 1 };
    assert!(visited >= least * names.len(), "{what}: {visited}");
    println!(
        "{what}: {names:?} equal portable in {visited} cases{}",
        cases::share()
    );
}

#[test]
fn integers() {
    let mut visited = 0;
    each_shape(
        |_| true,
        |rows, numbers, case| {
            let half = 1 << (rows.codes.layout.packing().bits() - 1);
            for (flip, zero) in [
                (0, Zeros::Each(&numbers.zeros)),
                (half, Zeros::Fixed(half.into())),
                (0, Zeros::Fixed(i32::MIN)),
            ] {
                let value = CodeMeaning::Integer { flip, zero };
                let case = format!("{case} {value:?}");
                visited += check(&CodedRows { value, ..rows }, &case);
            }
        },
    );
    report("integers", visited);
}

#[test]
fn formulas_and_roundings() {
    let mut visited = 0;
    let some = |packing: Packing| {
        matches!(
            packing,
            Packing::Bytes | Packing::LsbFirst { bits: 3 | 4 | 6 } | Packing::AwqInterleaved
        )
    };
    each_shape(some, |rows, numbers, case| {
        let zero = Zeros::Each(&numbers.zeros);
        for formula in formulas(&numbers.offsets) {
            for &first_rounded_to in Float::ALL {
                let rows = CodedRows {
                    value: CodeMeaning::Integer { flip: 0, zero },
                    formula,
                    first_rounded_to,
                    ..rows
                };
                visited += check(&rows, &format!("{case} {formula:?} {first_rounded_to:?}"));
            }
        }
    });
    report("formulas", visited);
}

#[test]
fn tables() {
    let mut visited = 0;
    each_shape(
        |packing| packing.bits() == 4 || packing == Packing::Bytes,
        |rows, _, case| {
            for book in Codebook::ALL {
                let value = CodeMeaning::Table16(book.values());
                visited += check(&CodedRows { value, ..rows }, &format!("{case} {book:?}"));
            }
        },
    );
    report("tables", visited);
}

/// All 256 codes (every shape from 257 columns on has them), scales from zero over subnormal to infinite.
#[test]
fn minifloats() {
    let mut visited = 0;
    let scales = [
        1.0,
        -0.0123,
        0.0,
        1e-45,
        3e-39,
        1e-32,
        1.1e-30,
        7e-38,
        1e30,
        1.3e30,
        3e38,
        1.0 / 3.0,
    ];
    for &format in Minifloat::ALL {
        each_shape(
            |packing| packing.bits() == 8 || packing.bits() == format.bits(),
            |rows, numbers, case| {
                let value = CodeMeaning::Minifloat(format);
                let case = format!("{case} {format:?}");
                visited += check(&CodedRows { value, ..rows }, &case);
                for scale in scales {
                    let scales = vec![scale; numbers.scales.len()];
                    let mut grid = rows.grid;
                    grid.scales = &scales;
                    let rows = CodedRows {
                        value,
                        grid,
                        ..rows
                    };
                    visited += check(&rows, &format!("{case} {scale:e}"));
                }
                for first_rounded_to in [Float::Bf16, Float::F16] {
                    let rows = CodedRows {
                        value,
                        first_rounded_to,
                        ..rows
                    };
                    visited += check(&rows, &format!("{case} {first_rounded_to:?}"));
                }
                let rows = CodedRows {
                    value,
                    formula: Formula::Quotient,
                    ..rows
                };
                visited += check(&rows, &format!("{case} quotient"));
            },
        );
    }
    report("minifloats", visited);
}

/// Scales that some fast path must not take: none, negative, subnormal, at the edges of what stays normal in BF16 and F16,
/// not finite.
const SPECIAL: &[f32] = &[
    0.0,
    -0.0,
    -0.0123,
    f32::from_bits(1),
    f32::from_bits(0x8000_0003),
    3e-39,
    f32::MIN_POSITIVE,
    7e-31,
    8.2e-25,
    2e-5,
    1.0 / 16384.0,
    1.0 / 8192.0,
    1500.3,
    2047.9,
    2048.1,
    4097.0,
    60000.0,
    1e30,
    1.3e30,
    3e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Ordinary scales, every other one with as many bits as BF16 has: products with those are ties as often as not.
fn ordinary_scale(i: usize) -> f32 {
    let scale = 0.01 + (i * 7919 % 2003) as f32 / 50_000.0;
    match i % 2 {
        0 => scale,
        _ => f32::from_bits(scale.to_bits() & 0xffff_0000),
    }
}

/// Each special scale among ordinary ones, at changing places of a batch of groups, in rows that end in mid-batch; with one
/// zero point, with zero points and with offsets that differ (one of them special, too).
#[test]
fn special_scales_among_ordinary_ones() {
    let mut visited = 0;
    let packings = packings().filter(|packing| {
        let bits = packing.bits();
        !matches!(packing, Packing::Planar { .. }) && matches!(bits, 2..=6 | 8)
    });
    for (at, packing) in packings.enumerate() {
        for (shape, group) in [16, 32, 64, 96, 128].into_iter().enumerate() {
            let (n_rows, n_columns) = (2, 10 * group + 8 * shape);
            let stride = packing.packed_len_bytes(n_columns, 4) + 3;
            let bytes = cases::bytes(stride * n_rows + 1);
            let n = n_rows * n_columns.div_ceil(group);
            let half = 1 << (packing.bits() - 1);
            for (turn, &special) in SPECIAL.iter().enumerate() {
                let among = |i: usize| (i + turn + at).is_multiple_of(13);
                let number = |i| {
                    if among(i) {
                        special
                    } else {
                        ordinary_scale(i + turn)
                    }
                };
                let scales: Vec<f32> = (0..n).map(number).collect();
                let zeros: Vec<i32> = (0..n).map(|i| (i % 19) as i32 - 1).collect();
                let offsets: Vec<f32> = (0..n).map(|i| -number(i + 3)).collect();
                let each = CodeMeaning::Integer {
                    flip: 0,
                    zero: Zeros::Each(&zeros),
                };
                let fixed = |flip, zero| CodeMeaning::Integer {
                    flip,
                    zero: Zeros::Fixed(zero),
                };
                let plus = Formula::PlusOffset {
                    offsets: &offsets,
                    step: Float::F32,
                };
                let mut cases = vec![
                    (each, Formula::Product),
                    (fixed(0, half.into()), Formula::Product),
                    (fixed(half, half.into()), Formula::Product),
                    (fixed(0, 1), Formula::Product),
                    (fixed(0, 0), plus),
                ];
                if packing.bits() == 4 {
                    cases.push((CodeMeaning::Minifloat(Minifloat::E2M1), Formula::Product));
                }
                for (value, formula) in cases {
                    let rows = CodedRows {
                        n_rows,
                        n_columns,
                        codes: StoredCodes {
                            bytes: &bytes[1..],
                            stride,
                            layout: CodeLayout::Rows(packing),
                        },
                        value,
                        grid: crate::rows::ScaleGrid {
                            scales: &scales,
                            rows: 1,
                            rows_before: 0,
                            columns: group,
                        },
                        formula,
                        first_rounded_to: Float::F32,
                    };
                    let case = format!("{special:e} {packing:?} / {group} {value:?} {formula:?}");
                    visited += check(&rows, &case);
                }
            }
        }
    }
    report("special scales", visited);
}

/// Rows of every length up to two blocks and a bit, and groups of blocks: what is left behind the last whole one.
#[test]
fn every_length() {
    let mut visited = 0;
    for packing in packings() {
        for n_columns in 1..=150 {
            for group in [16, 32, 64, n_columns] {
                let stride = packing.packed_len_bytes(n_columns, 1);
                let bytes = cases::bytes(stride * 2);
                let n = 2 * n_columns.div_ceil(group);
                let scales: Vec<f32> = (0..n).map(ordinary_scale).collect();
                let half: u8 = 1 << (packing.bits() - 1);
                let rows = CodedRows {
                    n_rows: 2,
                    n_columns,
                    codes: StoredCodes {
                        bytes: &bytes,
                        stride,
                        layout: CodeLayout::Rows(packing),
                    },
                    value: CodeMeaning::Integer {
                        flip: 0,
                        zero: Zeros::Fixed(half.into()),
                    },
                    grid: crate::rows::ScaleGrid {
                        scales: &scales,
                        rows: 1,
                        rows_before: 0,
                        columns: group,
                    },
                    formula: Formula::Product,
                    first_rounded_to: Float::F32,
                };
                visited += check(&rows, &format!("{n_columns} / {group} {packing:?}"));
            }
        }
    }
    report("lengths", visited);
}

/// Grids with lines for several rows, from the middle of a line on, and none at all.
#[test]
fn grids() {
    let bytes = cases::bytes(9 * 300);
    let numbers = Rows::new(9, 300, 128);
    for (rows_per_line, rows_before) in [(1, 0), (4, 0), (4, 3), (128, 127), (usize::MAX, 7)] {
        let rows = CodedRows {
            n_rows: 7,
            n_columns: 300,
            codes: StoredCodes {
                bytes: &bytes,
                stride: 300,
                layout: CodeLayout::Rows(Packing::Bytes),
            },
            value: CodeMeaning::Minifloat(Minifloat::E4M3),
            grid: crate::rows::ScaleGrid {
                rows: rows_per_line,
                rows_before,
                ..numbers.grid()
            },
            formula: Formula::Product,
            first_rounded_to: Float::F32,
        };
        check(&rows, &format!("{rows_per_line} {rows_before}"));
        // What line a row uses, said once more without a grid.
        let mut out = vec![0.0; 7 * 300];
        (PORTABLE.decode_rows)(&rows, FloatsMut::F32(&mut out), Stores::Ordinary);
        for (row, line) in out.chunks(300).enumerate() {
            let at = (row.saturating_add(rows_before) / rows_per_line) * 3 + 1;
            let code = bytes[300 * row + 200];
            let expected = Minifloat::E4M3.decode(code) * numbers.scales[at];
            assert!(line[200] == expected || expected.is_nan(), "row {row}");
        }
        let mut none = rows;
        none.grid.scales = &[];
        check(&none, "no scales");
    }
}

#[test]
fn copies() {
    for backend in Backend::available() {
        for len in [0, 1, 31, 32, 33, 64, 100, 4099] {
            for offset in 0..40 {
                let from = cases::bytes(len + offset);
                for stores in [Stores::Ordinary, Stores::Streaming] {
                    let mut to = vec![0xa5; len + offset + 1];
                    (backend.copy)(&from[offset..], &mut to[offset..offset + len], stores);
                    assert_eq!(to[offset..offset + len], from[offset..], "{len} {offset}");
                    assert!(to[..offset].iter().all(|&b| b == 0xa5) && to[offset + len] == 0xa5);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "3 entries, 4 needed")]
fn a_grid_that_is_too_small_panics() {
    let rows = CodedRows {
        n_rows: 2,
        n_columns: 64,
        codes: StoredCodes {
            bytes: &[0; 64],
            stride: 32,
            layout: CodeLayout::Rows(Packing::LsbFirst { bits: 4 }),
        },
        value: CodeMeaning::Table16(Codebook::Nf4.values()),
        grid: crate::rows::ScaleGrid {
            scales: &[1.0; 3],
            rows: 1,
            rows_before: 0,
            columns: 32,
        },
        formula: Formula::Product,
        first_rounded_to: Float::F32,
    };
    let out = &mut [0.0; 128];
    (Backend::detect().decode_rows)(&rows, FloatsMut::F32(out), Stores::Ordinary);
}
