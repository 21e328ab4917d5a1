//! What the models compute and their layers give, before and after.

use std::collections::BTreeMap;

use safequant::rewrite::{AWQ, Action};

use super::super::tiny::options;
use super::bench::{Bench, Lack, load};
use super::models::{Kind, LAYERS, Tensors, with_loud_values};

#[test]
fn folding_keeps_what_the_model_computes() {
    let (mut n_norms, mut n_biases) = (0, 0);
    let louder = [2.0, 3.0, 6.0, 12.0].map(|factor| (Kind::Biased, factor));
    let all = Kind::ALL.map(|kind| (kind, 1.0));
    for (kind, factor) in all.into_iter().chain(louder) {
        let bench = Bench::of(kind, with_loud_values(kind, factor));
        bench
            .run(
                "src",
                &bench.verb("W8A16", "mse", Lack::Nothing),
                "mse",
                &options(),
            )
            .unwrap();
        let summary = bench.run(
            "src",
            &bench.verb("W8A16", AWQ, Lack::Nothing),
            "awq",
            &options(),
        );
        let summary = summary.unwrap();
        let folded = bench.dense("awq");
        let (by_mse, by_awq) = (bench.lost(&bench.dense("mse")), bench.lost(&folded));
        assert!(
            by_mse < 5e-3 && by_awq < 3.0 * by_mse,
            "{kind:?}: {by_mse} {by_awq}"
        );
        let original = load(&bench.open("src"));
        let changed: Vec<_> = original
            .iter()
            .filter(|(name, (shape, values))| shape.len() == 1 && folded[*name].1 != *values)
            .map(|(name, _)| name.clone())
            .collect();
        n_norms += changed
            .iter()
            .filter(|name| name.contains("layernorm"))
            .count();
        let steps: Vec<_> = summary
            .modules
            .iter()
            .filter(|m| m.action == Action::Fold)
            .collect();
        assert_eq!(steps.len(), changed.len(), "{kind:?}: {changed:?}");
        // Norms as they were, with weights that were multiplied: not the model.
        let mut unfolded = folded.clone();
        for name in changed.iter().filter(|name| name.contains("layernorm")) {
            unfolded.insert(name.clone(), original[name].clone());
        }
        assert!(bench.lost(&unfolded) > 10.0 * by_awq, "{kind:?}");
        n_biases += changed
            .iter()
            .filter(|name| name.ends_with("v_proj.bias"))
            .count();
        for module in &summary.modules {
            let method = module.method.as_deref();
            assert!(
                method.is_none_or(|m| m == AWQ || m == "mse"),
                "{}",
                module.name
            );
        }
    }
    assert!(n_norms >= 15, "{n_norms} norms are divided");
    assert!(n_biases >= 2, "{n_biases} biases are divided");
}

/// `E H E^T` for errors of a weight of so many columns, summed over rows.
fn noise(errors: &[f64], x: &[Vec<f64>]) -> f64 {
    let outputs = errors.chunks(x[0].len()).flat_map(|row| {
        x.iter()
            .map(move |token| row.iter().zip(token).map(|(e, v)| e * v).sum::<f64>())
    });
    outputs.map(|o| o * o).sum::<f64>() / x.len() as f64
}

/// What columns were multiplied by, and rows divided by, found from the two models alone.
fn scales(layer: usize, before: &Tensors, after: &Tensors) -> BTreeMap<&'static str, Vec<f64>> {
    let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
    let mut found = BTreeMap::new();
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        let pairs = before[&at(norm)].1.iter().zip(&after[&at(norm)].1);
        found.insert(
            norm,
            pairs
                .map(|(a, b)| f64::from(*a) / f64::from(*b))
                .collect::<Vec<_>>(),
        );
    }
    for (source, norm) in [
        ("self_attn.v_proj", "input_layernorm"),
        ("mlp.up_proj", "post_attention_layernorm"),
    ] {
        let (shape, weight) = &before[&at(source)];
        let rows = weight
            .chunks(shape[1])
            .zip(after[&at(source)].1.chunks(shape[1]));
        let columns = &found[norm];
        let ratio = |(a, b): (&[f32], &[f32])| {
            let size = |row: &[f32], by: &[f64]| {
                row.iter()
                    .zip(by)
                    .map(|(w, s)| (f64::from(*w) * s).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            let ones = vec![1.0; columns.len()];
            (size(a, columns) / size(b, &ones)).log2().round().exp2()
        };
        let ratios = rows.map(ratio).collect();
        found.insert(source, ratios);
    }
    found
}

#[test]
fn outputs_never_lose_more_than_by_mse() {
    let (mut n_groups, mut n_better) = (0, 0);
    for (scheme, lack) in [
        ("W4A16", Lack::Nothing),
        ("W4A16", Lack::OffDiagonal),
        ("W8A16", Lack::Nothing),
    ] {
        let bench = Bench::new(Kind::Llama);
        bench
            .run("src", &bench.verb(scheme, "mse", lack), "mse", &options())
            .unwrap();
        bench
            .run("src", &bench.verb(scheme, AWQ, lack), "awq", &options())
            .unwrap();
        let (before, mse, awq) = (
            load(&bench.open("src")),
            bench.dense("mse"),
            bench.dense("awq"),
        );
        for layer in 0..LAYERS {
            let scales = scales(layer, &before, &awq);
            for (source, readers) in [
                (
                    "input_layernorm",
                    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
                ),
                ("self_attn.v_proj", &["self_attn.o_proj"][..]),
                (
                    "post_attention_layernorm",
                    &["mlp.gate_proj", "mlp.up_proj"][..],
                ),
                ("mlp.up_proj", &["mlp.down_proj"][..]),
            ] {
                let (mut by_mse, mut by_awq) = (0.0, 0.0);
                for reader in readers {
                    let module = format!("model.layers.{layer}.{reader}");
                    let name = format!("{module}.weight");
                    let rows = scales.get(reader);
                    let width = before[&name].0[1];
                    let back = |i: usize, value: f32| {
                        let row = rows.map_or(1.0, |rows| rows[i / width]);
                        f64::from(value) * row / scales[source][i % width]
                    };
                    let weight = &before[&name].1;
                    let errors = |of: &[f64]| -> Vec<f64> {
                        of.iter()
                            .zip(weight)
                            .map(|(q, w)| q - f64::from(*w))
                            .collect()
                    };
                    let plain: Vec<f64> = mse[&name].1.iter().map(|v| f64::from(*v)).collect();
                    let scaled = awq[&name].1.iter().enumerate();
                    let scaled: Vec<f64> = scaled.map(|(i, v)| back(i, *v)).collect();
                    let mut x = bench.seen[&module].clone();
                    if lack == Lack::OffDiagonal {
                        // Inputs that have this diagonal and nothing beside it.
                        let n = x.len() as f64;
                        let square = |j: usize| x.iter().map(|t| t[j] * t[j]).sum::<f64>() / n;
                        let root: Vec<f64> = (0..width)
                            .map(|j| (square(j) * width as f64).sqrt())
                            .collect();
                        x = (0..width)
                            .map(|j| {
                                (0..width)
                                    .map(|i| if i == j { root[i] } else { 0.0 })
                                    .collect()
                            })
                            .collect();
                    }
                    by_mse += noise(&errors(&plain), &x);
                    by_awq += noise(&errors(&scaled), &x);
                }
                n_groups += 1;
                n_better += usize::from(by_awq < 0.999 * by_mse);
                assert!(
                    by_awq <= by_mse * (1.0 + 1e-4),
                    "{scheme} {lack:?} {layer} {source}: {by_awq} {by_mse}"
                );
            }
        }
    }
    assert_eq!(n_groups, 24);
    assert!(n_better >= 12, "{n_better} of {n_groups} groups lose less");
}
