//! Properties of every method over every preset and every convention that writes it: what is true whatever the numbers are.
//! That codes equal those of the plain algorithm is in `tests/quantize/feedback.rs`.

use std::sync::Arc;

use safequant_kernels::{Backend, Float, Floats};
use safequant_schemes::{CONVENTIONS, Code, CodeTile, PRESETS, QuantizedTensor, SuperScale};

use crate::report::dequantize_tile;
use crate::{
    Division, Effort, Error, Inputs, NonFinite, Order, Quantizer, RoundToNearest, Rows, Searched,
    SecondMoment, Settings, Statistics, Target, scale_sums,
};

const IN_FEATURES: usize = 256;
const ROWS: usize = 130;

/// Numbers in a fixed sequence, like weights: most small, some large.
fn weights(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / 16_777_216.0 - 0.5
    };
    let normal = |next: &mut dyn FnMut() -> f64| (0..6).map(|_| next()).sum::<f64>() * 0.05;
    let value = |next: &mut dyn FnMut() -> f64| Float::Bf16.nearest(narrow(normal(next)));
    (0..n).map(|_| value(&mut next)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// `X^T X / n` of inputs that hang together, some features larger than others.
fn inputs(n: usize) -> Arc<Inputs> {
    let tokens = 96;
    let noise = weights(tokens * n, 99);
    let common = weights(tokens * 4, 5);
    let x: Vec<f32> = (0..tokens * n)
        .map(|at| {
            let (t, j) = (at / n, at % n);
            let size = if j % 37 == 0 { 8.0 } else { 1.0 };
            size * (noise[at] + 2.0 * common[t * 4 + j % 4])
        })
        .collect();
    let mut moment = vec![0.0_f64; n * n];
    for row in x.chunks_exact(n) {
        for (i, a) in row.iter().enumerate() {
            for (sum, b) in moment[i * n..(i + 1) * n].iter_mut().zip(row) {
                *sum += f64::from(*a) * f64::from(*b) / 96.0;
            }
        }
    }
    Arc::new(Inputs {
        in_features: n,
        // What sweeps add to the diagonal is part of their objective: of so many tokens it is little.
        token_count: Some(1_000_000),
        second_moment: SecondMoment::Full(moment.into_iter().map(narrow).collect()),
        mean: None,
        cross: None,
    })
}

/// Every preset in every convention that writes it.
fn layouts(n_rows: usize, in_features: usize) -> Vec<(String, QuantizedTensor, Target)> {
    let mut all = Vec::new();
    for convention in CONVENTIONS {
        let Some(writer) = convention.writer() else {
            continue;
        };
        for preset in PRESETS {
            let shape = [n_rows as u64, in_features as u64];
            let is_written = writer.presets().contains(&preset.name);
            if let Ok(layout) = writer.lay_out("m", &shape, preset, Float::Bf16)
                && is_written
            {
                let target = Target {
                    scheme: layout.scheme.clone(),
                    rule: writer.scale_rule(),
                    division: Division::SourceDtype,
                    nonfinite: NonFinite::Refuse,
                };
                all.push((
                    format!("{} {}", convention.id(), preset.name),
                    layout,
                    target,
                ));
            }
        }
    }
    all
}

fn rows(values: &[f32], in_features: usize) -> Rows<'_> {
    Rows {
        values: Floats::F32(values),
        in_features,
        first_row: 0,
        out_features: (values.len() / in_features) as u64,
        source: Float::Bf16,
    }
}

/// Sets what is added to scales that are quantized themselves: the mean over these rows, which are all.
fn see(layout: &mut QuantizedTensor, target: &mut Target, rows: Rows<'_>) {
    let SuperScale::Nested { size, offset: _ } = target.scheme.super_scale else {
        return;
    };
    let sums = scale_sums(target, rows, Backend::detect()).unwrap();
    let n = u32::try_from(rows.values.len().div_ceil(64)).unwrap();
    let offset = narrow(sums.iter().sum::<f64>() / f64::from(n));
    target.scheme.super_scale = SuperScale::Nested { size, offset };
    layout.scheme = target.scheme.clone();
}

fn quantize(
    method: &dyn Quantizer,
    target: &Target,
    rows: Rows<'_>,
    inputs: Option<&Arc<Inputs>>,
    settings: &Settings,
) -> Result<CodeTile, Error> {
    let backend = Backend::detect();
    let mut statistics = Statistics::default();
    if method.needs_statistics(target) {
        statistics = RoundToNearest.observe(target, rows, backend)?;
    }
    statistics.prepared = method.prepare(target, rows.in_features, inputs, settings, backend)?;
    method.quantize(target, rows, Some(&statistics), backend)
}

/// `(w - q) (H + r I) (w - q)^T`, summed over rows, with the `r` of error feedback and of sweeps; squares without inputs.
fn loss(values: &[f32], found: &[f32], inputs: Option<&Inputs>) -> f64 {
    let error: Vec<f64> = values
        .iter()
        .zip(found)
        .map(|(a, b)| f64::from(*a) - f64::from(*b))
        .collect();
    let Some(inputs) = inputs else {
        return error.iter().map(|e| e * e).sum();
    };
    let n = inputs.in_features;
    let SecondMoment::Full(moment) = &inputs.second_moment else {
        return f64::NAN;
    };
    let trace = moment
        .iter()
        .step_by(n + 1)
        .map(|d| f64::from(*d))
        .sum::<f64>();
    let mean = trace / f64::from(u32::try_from(n).unwrap());
    let squares = error.iter().map(|e| e * e).sum::<f64>();
    let sum: f64 = error
        .chunks_exact(n)
        .map(|e| {
            let products = e.iter().zip(moment.chunks_exact(n));
            let row = |line: &[f32]| {
                line.iter()
                    .zip(e)
                    .map(|(h, e)| f64::from(*h) * e)
                    .sum::<f64>()
            };
            products.map(|(e, line)| e * row(line)).sum::<f64>()
        })
        .sum();
    sum + 0.01 * mean * squares
}

#[test]
fn no_method_does_worse_than_rounding_to_nearest_by_its_own_objective() {
    let values = weights(ROWS * IN_FEATURES, 1);
    let inputs = inputs(IN_FEATURES);
    let settings = Settings::default();
    let (mut visited, mut refused) = (0, Vec::new());
    for (name, mut layout, mut target) in layouts(ROWS, IN_FEATURES) {
        let rows = rows(&values, IN_FEATURES);
        see(&mut layout, &mut target, rows);
        let losses = |method: &dyn Quantizer, inputs: Option<&Arc<Inputs>>| {
            let tile = quantize(method, &target, rows, inputs, &settings)?;
            let found = dequantize_tile(&layout, &tile, Backend::detect())?;
            Ok::<_, Error>((
                loss(&values, &found, None),
                loss(&values, &found, inputs.map(|i| &**i)),
            ))
        };
        let (nearest, nearest_outputs) = losses(&RoundToNearest, Some(&inputs)).unwrap();
        match losses(&Searched::MeanSquares, None) {
            Ok((found, _)) => {
                // The reader rounds once more than the search counts.
                assert!(
                    found <= nearest * 1.0005,
                    "{name}: mse {found} after {nearest}"
                );
            }
            Err(error) => {
                refused.push(format!("{name}: {error}"));
                continue;
            }
        }
        let (_, feedback) = losses(&Searched::Feedback, Some(&inputs)).unwrap();
        assert!(
            feedback < nearest_outputs,
            "{name}: gptq {feedback} after {nearest_outputs}"
        );
        let (_, refined) = losses(&Searched::Refine, Some(&inputs)).unwrap();
        // At 8 bits what a reader rounds to BF16 is a fair part of the loss, and no search counts it.
        let is_fine = matches!(layout.scheme.code, Code::Integer { bits: 8, .. });
        let slack = if is_fine { 1.05 } else { 1.01 };
        assert!(
            refined <= feedback * slack,
            "{name}: refine {refined} after {feedback}"
        );
        visited += 1;
    }
    assert!(visited > 60, "{visited} layouts; refused: {refused:#?}");
    assert!(refused.len() < 8, "{refused:#?}");
}

/// The weight at a place.
type Value = fn(usize) -> f32;

#[test]
fn groups_of_nothing_of_one_value_and_with_one_outlier_are_kept() {
    let n = 256;
    let outlier: Value = |at| if at % 97 == 5 { 60.0 } else { 0.001 };
    let kinds: [(&str, Value); 5] = [
        ("zeros", |_| 0.0),
        ("ones", |_| 1.0),
        ("negative ones", |_| -1.0),
        ("outliers", outlier),
        ("denormals", |at| f32::from_bits(1 + u32::from(at % 5 == 0))),
    ];
    let inputs = inputs(n);
    let mut visited = 0;
    for (kind, value) in kinds {
        let values: Vec<f32> = (0..32 * n).map(value).collect();
        for (name, mut layout, mut target) in layouts(32, n) {
            see(&mut layout, &mut target, rows(&values, n));
            // The search of a lattice takes its time, and rows are alike here.
            let values = if name.starts_with("gguf IQ") {
                &values[..2 * n]
            } else {
                &values[..]
            };
            for method in [
                Searched::MeanSquares,
                Searched::HalfQuadratic,
                Searched::Feedback,
                Searched::Refine,
            ] {
                let found = quantize(
                    &method,
                    &target,
                    rows(values, n),
                    Some(&inputs),
                    &Settings::default(),
                );
                let Ok(tile) = found else { continue };
                let numbers = [
                    &tile.scales,
                    &tile.offsets,
                    &tile.supers,
                    &tile.offset_supers,
                ];
                let is_finite = numbers
                    .iter()
                    .all(|list| list.iter().all(|v| v.is_finite()));
                assert!(is_finite, "{name}, {kind}, {method:?}");
                let found = dequantize_tile(&layout, &tile, Backend::detect()).unwrap();
                if kind == "zeros" || kind == "denormals" {
                    assert!(
                        found.iter().all(|v| v.abs() < 1e-30),
                        "{name}, {kind}, {method:?}"
                    );
                }
                visited += 1;
            }
        }
    }
    assert!(visited > 1000, "{visited}");
}

#[test]
fn a_row_does_not_depend_on_the_rows_it_is_given_with() {
    let values = weights(72 * 256, 3);
    let inputs = inputs(256);
    let settings = Settings {
        effort: Effort::Fast,
        ..Settings::default()
    };
    let backend = Backend::detect();
    let mut visited = 0;
    for (name, _, target) in layouts(40, 256) {
        if matches!(
            target.scheme.granularity,
            safequant_schemes::Granularity::Block { .. }
        ) {
            continue;
        }
        // Tiles begin where blocks of scales do.
        let parts: &[(usize, usize)] = match target.scheme.super_scale {
            SuperScale::Nested { .. } => &[(0, 64), (64, 72)],
            SuperScale::None
            | SuperScale::Multiply
            | SuperScale::Divide
            | SuperScale::Grouped { .. }
            | SuperScale::Channel => &[(0, 7), (7, 32), (32, 40)],
        };
        let n_rows = parts.last().map_or(0, |part| part.1);
        for method in [Searched::MeanSquares, Searched::Refine] {
            let whole = rows(&values[..n_rows * 256], 256);
            let Ok(prepared) = method.prepare(&target, 256, Some(&inputs), &settings, backend)
            else {
                continue;
            };
            let mut statistics = RoundToNearest.observe(&target, whole, backend).unwrap();
            statistics.prepared = prepared;
            let Ok(all) = method.quantize(&target, whole, Some(&statistics), backend) else {
                continue;
            };
            let mut codes = Vec::new();
            for &(start, end) in parts {
                let part = Rows {
                    values: Floats::F32(&values[start * 256..end * 256]),
                    first_row: start as u64,
                    ..whole
                };
                codes.extend(
                    method
                        .quantize(&target, part, Some(&statistics), backend)
                        .unwrap()
                        .codes,
                );
            }
            assert_eq!(all.codes, codes, "{name} {method:?}");
            visited += 1;
        }
    }
    assert!(visited > 100, "{visited}");
}

#[test]
fn every_backend_gives_the_same_and_every_order_beats_the_natural_one() {
    let values = weights(20 * 256, 4);
    let inputs = inputs(256);
    let (_, layout, target) = layouts(20, 256)
        .into_iter()
        .find(|(name, ..)| name == "compressed-tensors W4A16")
        .unwrap();
    let of = |order| {
        let settings = Settings {
            order,
            ..Settings::default()
        };
        let tile = quantize(
            &Searched::Feedback,
            &target,
            rows(&values, 256),
            Some(&inputs),
            &settings,
        )
        .unwrap();
        loss(
            &values,
            &dequantize_tile(&layout, &tile, Backend::detect()).unwrap(),
            Some(&inputs),
        )
    };
    let natural = of(Some(Order::Natural));
    for order in [Order::Activation, Order::GroupAware, Order::MinPivot] {
        assert!(of(Some(order)) < natural, "{order}");
    }
    assert_eq!(of(None).to_bits(), of(Some(Order::MinPivot)).to_bits());
    let highest = Settings {
        effort: Effort::Max,
        ..Settings::default()
    };
    // Integers, small floats, a code book, and blocks of ggml with two levels of scales.
    for wanted in [
        "compressed-tensors W4A16",
        "compressed-tensors FP8_DYNAMIC",
        "bitsandbytes NF4",
        "bitsandbytes NF4_DQ",
        "hqq W4A16_ASYM",
        "gguf Q4_K",
        "gguf IQ3_XXS",
    ] {
        let found = layouts(20, 256)
            .into_iter()
            .find(|(name, ..)| name == wanted);
        let (_, _, target) = found.unwrap();
        let tiles = Backend::available().map(|backend| {
            let prepared = Searched::Refine.prepare(&target, 256, Some(&inputs), &highest, backend);
            let statistics = Statistics {
                prepared: prepared.unwrap(),
                ..Statistics::default()
            };
            let rows = rows(&values, 256);
            let tile = Searched::Refine.quantize(&target, rows, Some(&statistics), backend);
            tile.unwrap()
        });
        let tiles: Vec<CodeTile> = tiles.collect();
        assert!(tiles.len() > 1, "more than the portable backend");
        let are_equal = tiles.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(are_equal, "{wanted}: every backend to the last bit");
    }
}

#[test]
fn what_is_no_second_moment_is_refused() {
    let (_, _, target) = layouts(4, 256)
        .into_iter()
        .find(|(name, ..)| name == "gptq W4A16")
        .unwrap();
    let with = |change: &dyn Fn(&mut Inputs)| {
        let mut changed = (*inputs(256)).clone();
        change(&mut changed);
        let found = Searched::Refine.prepare(
            &target,
            256,
            Some(&Arc::new(changed)),
            &Settings::default(),
            Backend::detect(),
        );
        found
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let entry = |at: usize, value: f32| {
        move |inputs: &mut Inputs| {
            if let SecondMoment::Full(moment) = &mut inputs.second_moment {
                moment[at] = value;
            }
        }
    };
    assert_eq!(with(&|_| ()), "");
    assert!(with(&entry(3 * 256 + 1, f32::NAN)).contains("row 3, column 1"));
    assert!(with(&entry(256, 9.0)).contains("not finite and symmetric at row 1, column 0"));
    assert!(with(&|inputs| inputs.in_features = 255).contains("255 input features"));
    let diagonal =
        |inputs: &mut Inputs| inputs.second_moment = SecondMoment::Diagonal(vec![1.0; 256]);
    assert!(with(&diagonal).contains("only its diagonal"));
    let nothing =
        |inputs: &mut Inputs| inputs.second_moment = SecondMoment::Full(vec![0.0; 256 * 256]);
    assert!(with(&nothing).contains("no input was seen"));
    let missing =
        Searched::Feedback.prepare(&target, 256, None, &Settings::default(), Backend::detect());
    assert!(missing.unwrap_err().to_string().contains("there are none"));
}

/// `X`, `[n, K]`.
type Tokens<'a> = &'a [f32];

/// `A^T B / n`.
fn product(a: Tokens<'_>, b: Tokens<'_>, n: usize) -> Vec<f32> {
    let tokens = a.len() / n;
    let mut sums = vec![0.0_f64; n * n];
    for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
        for (i, a) in a.iter().enumerate() {
            for (sum, b) in sums[i * n..(i + 1) * n].iter_mut().zip(b) {
                *sum += f64::from(*a) * f64::from(*b);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "few tokens")]
    let mean = |sum: f64| narrow(sum / tokens as f64);
    sums.into_iter().map(mean).collect()
}

#[test]
fn a_target_for_shifted_inputs_gives_outputs_nearer_to_the_original() {
    let (n, n_rows, tokens) = (128, 24, 600);
    let original = weights(tokens * n, 11);
    // What a quantized model puts out: something of its own added, and a little lost.
    let noise = weights(tokens * n, 12);
    let shifted: Vec<f32> = original
        .iter()
        .zip(&noise)
        .map(|(x, e)| 0.8 * x + 0.3 * e)
        .collect();
    let values = weights(n_rows * n, 13);
    let (_, layout, target) = layouts(n_rows, n)
        .into_iter()
        .find(|(name, ..)| name == "compressed-tensors W4A16")
        .unwrap();
    let off_by = |cross: Option<Vec<f32>>| {
        let inputs = Arc::new(Inputs {
            in_features: n,
            token_count: Some(tokens as u64),
            second_moment: SecondMoment::Full(product(&shifted, &shifted, n)),
            mean: None,
            cross,
        });
        let rows = rows(&values, n);
        let tile = quantize(
            &Searched::Refine,
            &target,
            rows,
            Some(&inputs),
            &Settings::default(),
        );
        let found = dequantize_tile(&layout, &tile.unwrap(), Backend::detect()).unwrap();
        let outputs = |x: Tokens<'_>, w: &[f32]| -> Vec<f64> {
            let dot = |x: &[f32], w: &[f32]| {
                x.iter()
                    .zip(w)
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum()
            };
            x.chunks_exact(n)
                .flat_map(|x| w.chunks_exact(n).map(move |w| dot(x, w)))
                .collect()
        };
        let wanted = outputs(&original, &values);
        let got = outputs(&shifted, &found);
        wanted
            .iter()
            .zip(got)
            .map(|(a, b)| (a - b) * (a - b))
            .sum::<f64>()
    };
    let (without, with) = (off_by(None), off_by(Some(product(&shifted, &original, n))));
    assert!(with < 0.9 * without, "{with} instead of {without}");
}
