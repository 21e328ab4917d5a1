//! What is true of recoded rows in every preset of every convention that is written. Spec: specs/quantizers/searched.md, clauses 25 to 27.

use std::sync::Arc;

use safequant_kernels::{Backend, Float, Floats};
use safequant_schemes::{CONVENTIONS, CodeTile, Extras, PRESETS, QuantizedTensor};

use super::*;
use crate::{
    Division, Inputs, NonFinite, Quantizer, RoundToNearest, Rows, Searched, SecondMoment, Settings,
    Statistics, Target,
};

const IN_FEATURES: usize = 256;
const ROWS: usize = 24;

/// Numbers in a fixed sequence, like weights.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / 16_777_216.0 - 0.5
    };
    (0..n)
        .map(|_| narrow((0..6).map(|_| next()).sum::<f64>() * 0.05))
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// `X^T X / n` of inputs that hang together, some features larger than others.
fn inputs() -> Arc<Inputs> {
    const TOKENS: usize = 96;
    let n = IN_FEATURES;
    let (noise, common) = (numbers(TOKENS * n, 99), numbers(TOKENS * 4, 5));
    let x: Vec<f32> = (0..TOKENS * n)
        .map(|at| {
            let (t, j) = (at / n, at % n);
            let size = if j % 37 == 0 { 8.0 } else { 1.0 };
            size * (noise[at] + 2.0 * common[t * 4 + j % 4])
        })
        .collect();
    let mut moment = vec![0.0_f64; n * n];
    for row in x.chunks_exact(n) {
        for (sums, a) in moment.chunks_exact_mut(n).zip(row) {
            for (sum, b) in sums.iter_mut().zip(row) {
                *sum += f64::from(*a) * f64::from(*b) / 96.0;
            }
        }
    }
    Arc::new(Inputs {
        in_features: n,
        token_count: Some(96),
        second_moment: SecondMoment::Full(moment.into_iter().map(narrow).collect()),
        mean: None,
        cross: None,
    })
}

/// What an F64 loop says that each row loses, with what a reader in F32 makes of the tile.
fn reference(
    layout: &QuantizedTensor,
    values: &[f32],
    tile: &CodeTile,
    inputs: &Inputs,
) -> Vec<f64> {
    let SecondMoment::Full(moment) = &inputs.second_moment else {
        panic!("a whole second moment");
    };
    let reader = Dequantizer::new(layout, Extras::default(), Backend::detect()).unwrap();
    let mut back = vec![0.0; tile.codes.len()];
    reader.tile(tile, RowsOut::F32(&mut back)).unwrap();
    let rows = values.chunks(IN_FEATURES).zip(back.chunks(IN_FEATURES));
    rows.map(|(row, back)| {
        let error: Vec<f64> = row
            .iter()
            .zip(back)
            .map(|(w, q)| f64::from(*q) - f64::from(*w))
            .collect();
        let lines = moment.chunks(IN_FEATURES).zip(&error);
        lines
            .map(|(line, a)| {
                let dot = line.iter().zip(&error);
                a * dot.map(|(h, b)| f64::from(*h) * b).sum::<f64>()
            })
            .sum()
    })
    .collect()
}

struct Case {
    name: String,
    layout: QuantizedTensor,
    target: Target,
}

/// Every preset in every convention that writes it, and whether its codes can be chosen anew.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for convention in CONVENTIONS {
        let Some(writer) = convention.writer() else {
            continue;
        };
        for preset in PRESETS
            .iter()
            .filter(|p| writer.presets().contains(&p.name))
        {
            let shape = [ROWS as u64, IN_FEATURES as u64];
            let Ok(layout) = writer.lay_out("m", &shape, preset, Float::F32) else {
                continue;
            };
            let target = Target {
                scheme: layout.scheme.clone(),
                rule: writer.scale_rule(),
                division: Division::SourceDtype,
                nonfinite: NonFinite::Refuse,
            };
            all.push(Case {
                name: format!("{} {}", convention.id(), preset.name),
                layout,
                target,
            });
        }
    }
    all
}

/// As a tool that rounds to nearest would leave it.
fn rounded(case: &Case, values: &[f32]) -> CodeTile {
    let rows = Rows {
        values: Floats::F32(values),
        in_features: IN_FEATURES,
        first_row: 0,
        out_features: ROWS as u64,
        source: Float::F32,
    };
    let backend = Backend::detect();
    let seen = RoundToNearest.observe(&case.target, rows, backend).unwrap();
    let known: Option<&Statistics> = Some(&seen);
    RoundToNearest
        .quantize(&case.target, rows, known, backend)
        .unwrap()
}

fn prepared(case: &Case, inputs: &Arc<Inputs>, effort: Effort) -> Arc<Prepared> {
    let settings = Settings {
        effort,
        ..Settings::default()
    };
    let backend = Backend::detect();
    let found =
        Searched::Refine.prepare(&case.target, IN_FEATURES, Some(inputs), &settings, backend);
    found.unwrap().unwrap()
}

#[test]
fn no_row_loses_more_and_nothing_but_codes_changes() {
    let (inputs, values) = (inputs(), numbers(ROWS * IN_FEATURES, 3));
    let mut n_recoded = 0;
    for case in cases() {
        if can_recode(&case.layout.scheme).is_err() {
            continue;
        }
        let start = rounded(&case, &values);
        let was = reference(&case.layout, &values, &start, &inputs);
        let reader = Dequantizer::new(&case.layout, Extras::default(), Backend::detect()).unwrap();
        let mut sums = Vec::new();
        for effort in Effort::ALL {
            let recoder = Recoder::new(&case.layout.scheme, &reader, Backend::detect()).unwrap();
            let mut tile = start.clone();
            let prepared = prepared(&case, &inputs, effort);
            let recoded = recoder.recode(&values, &mut tile, &prepared).unwrap();
            let is = reference(&case.layout, &values, &tile, &inputs);
            assert_eq!(recoded.len(), ROWS, "{}", case.name);
            for (row, (was, is)) in recoded.iter().zip(was.iter().zip(&is)) {
                assert!(
                    row.after.noise <= row.before.noise,
                    "{}: {row:?}",
                    case.name
                );
                approx::assert_relative_eq!(row.before.noise, *was, max_relative = 1e-3);
                approx::assert_relative_eq!(row.after.noise, *is, max_relative = 1e-3);
            }
            let codes = std::mem::take(&mut tile.codes);
            assert_eq!(
                tile,
                CodeTile {
                    codes: Vec::new(),
                    ..start.clone()
                },
                "{}",
                case.name
            );
            let bits = case.layout.scheme.code.bits();
            assert!(
                codes.iter().all(|c| u32::from(*c) < 1 << bits),
                "{}",
                case.name
            );
            sums.push(is.iter().sum::<f64>());
        }
        let before: f64 = was.iter().sum();
        assert!(sums[0] < 0.8 * before, "{}: {before:e} {sums:?}", case.name);
        assert!(
            sums[1..].iter().all(|sum| *sum < 1.05 * sums[0]),
            "{}: {sums:?}",
            case.name
        );
        n_recoded += 1;
    }
    assert!(n_recoded >= 30, "{n_recoded} layouts");
}

#[test]
fn rows_that_are_no_numbers_stay_as_they_are() {
    let (inputs, mut values) = (inputs(), numbers(ROWS * IN_FEATURES, 3));
    let case = cases()
        .into_iter()
        .find(|case| case.name == "compressed-tensors W4A16")
        .unwrap();
    let mut tile = rounded(&case, &values);
    let per_row = tile.scales.len() / ROWS;
    tile.scales[per_row] = f32::NAN;
    tile.scales[2 * per_row] = f32::INFINITY;
    values[3 * IN_FEATURES] = f32::NAN;
    let start = tile.codes.clone();
    let reader = Dequantizer::new(&case.layout, Extras::default(), Backend::detect()).unwrap();
    let recoder = Recoder::new(&case.layout.scheme, &reader, Backend::detect()).unwrap();
    let prepared = prepared(&case, &inputs, Effort::Default);
    let recoded = recoder.recode(&values, &mut tile, &prepared).unwrap();
    let row = |codes: &[u8], row: usize| codes[row * IN_FEATURES..(row + 1) * IN_FEATURES].to_vec();
    for same in 1..4 {
        assert_eq!(row(&tile.codes, same), row(&start, same), "row {same}");
    }
    for other in [0, 4, 5] {
        assert_ne!(row(&tile.codes, other), row(&start, other), "row {other}");
        assert!(recoded[other].after.noise < recoded[other].before.noise);
    }
}

#[test]
fn a_level_that_stays_keeps_its_code() {
    // Two codes of E4M3 are zero; neither is exchanged for the other where a weight stays zero.
    let case = cases()
        .into_iter()
        .find(|case| case.name == "compressed-tensors FP8_DYNAMIC")
        .unwrap();
    let mut values = numbers(ROWS * IN_FEATURES, 3);
    let mut diagonal = vec![0.0; IN_FEATURES * IN_FEATURES];
    diagonal
        .iter_mut()
        .step_by(IN_FEATURES + 1)
        .for_each(|d| *d = 1.0);
    let inputs = Arc::new(Inputs {
        second_moment: SecondMoment::Full(diagonal),
        ..(*inputs()).clone()
    });
    values[..64].fill(0.0);
    let mut tile = rounded(&case, &values);
    tile.codes[..32].fill(0x80);
    let start = tile.codes.clone();
    let reader = Dequantizer::new(&case.layout, Extras::default(), Backend::detect()).unwrap();
    let recoder = Recoder::new(&case.layout.scheme, &reader, Backend::detect()).unwrap();
    let prepared = prepared(&case, &inputs, Effort::Default);
    recoder.recode(&values, &mut tile, &prepared).unwrap();
    assert_eq!(tile.codes[..64], start[..64]);
}
