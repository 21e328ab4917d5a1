//! Mixtures of schemes: within the bits asked for, by measured loss, the same for any number of threads.

use std::collections::BTreeMap;

use safequant::recipe::Recipe;
use safequant::rewrite::mixed::{self, Mixture};
use safequant::rewrite::{self, CancelToken, Error, JobOptions, QuantizeRecipe, SchemeGroup, Verb};

use super::statistics::Statistics;
use super::tiny::{Bench, group, options, quantize};

fn asked(schemes: &[&str]) -> QuantizeRecipe {
    let Verb::Quantize(recipe) = quantize("W4A16", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    QuantizeRecipe {
        groups: schemes.iter().map(|scheme| group(scheme)).collect(),
        ..recipe
    }
}

fn mix(bench: &Bench, recipe: &QuantizeRecipe, bits: f64) -> Result<Mixture, Error> {
    mixed::choose(
        &bench.open("src"),
        recipe,
        bits,
        &options(),
        &CancelToken::default(),
    )
}

const SCHEMES: [&str; 4] = ["W8A16", "W2A16", "W4A16", "W3A16"];

fn by_module(found: &Mixture) -> BTreeMap<String, &'static str> {
    let of_group = |group: &SchemeGroup| {
        let name = group.preset.name;
        let targets = group.targets.clone();
        targets.into_iter().map(move |target| (target, name))
    };
    found.recipe.groups.iter().flat_map(of_group).collect()
}

#[test]
fn a_mixture_keeps_to_its_bits_and_to_siblings() {
    let bench = Bench::new();
    let recipe = asked(&SCHEMES);
    let mut before = f64::INFINITY;
    for target in [2.25, 3.0, 4.2, 5.5, 9.0] {
        let found = mix(&bench, &recipe, target).unwrap();
        assert!(
            found.bits_per_weight <= target,
            "{} > {target}",
            found.bits_per_weight
        );
        assert_eq!(found.modules.len(), 14);
        let chosen = by_module(&found);
        assert_eq!(chosen.len(), 14);
        for layer in 0..2 {
            let of = |name: &str| chosen[&format!("model.layers.{layer}.{name}_proj")];
            assert_eq!(of("self_attn.q"), of("self_attn.k"));
            assert_eq!(of("self_attn.q"), of("self_attn.v"));
            assert_eq!(of("mlp.gate"), of("mlp.up"));
        }
        let lost: f64 = found.modules.iter().map(|m| m.candidates[m.chosen].1).sum();
        assert!(lost <= before, "{target} bits lose more than fewer");
        before = lost;

        // What is planned takes what was said.
        let verb = Verb::Quantize(found.recipe.clone());
        let name = format!("dst{target}");
        let summary = bench.run(&verb, &name, &options()).unwrap();
        let quantized = summary.modules.iter().filter(|m| m.method.is_some());
        let (bytes, weights) =
            quantized.fold((0, 0), |(b, w), m| (b + m.output_bytes, w + m.n_weights));
        let number = |n: u64| f64::from(u32::try_from(n).unwrap());
        let bits = 8.0 * number(bytes) / number(weights);
        assert!((found.bits_per_weight - bits).abs() < 1e-9);
        assert!(
            found.note().contains("14 quantized modules"),
            "{}",
            found.note()
        );
    }
    assert!(before > 0.0, "8 bits lose something, too");
    let most = mix(&bench, &recipe, 9.0).unwrap();
    assert!(by_module(&most).values().all(|scheme| *scheme == "W8A16"));
}

#[test]
fn a_mixture_does_not_depend_on_threads() {
    let bench = Bench::new();
    let mut recipe = asked(&SCHEMES);
    recipe.calibration = Some(Statistics::of_tiny("full").write(&bench.path("statistics")));
    let checkpoint = bench.open("src");
    let mut first = None;
    for (threads, memory_bytes) in [(1, 64 << 20), (5, 64 << 20), (2, 4 << 20)] {
        let options = JobOptions {
            memory_bytes,
            threads,
            ..options()
        };
        let found = mixed::choose(&checkpoint, &recipe, 4.0, &options, &CancelToken::default());
        let found = found.unwrap();
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(&found, first, "{threads} threads");
    }
}

#[test]
fn inputs_decide_where_bits_go() {
    let bench = Bench::new();
    let recipe = asked(&SCHEMES);
    let blind = mix(&bench, &recipe, 4.0).unwrap();
    let calibrated = QuantizeRecipe {
        calibration: Some(Statistics::of_tiny("diagonal").write(&bench.path("statistics"))),
        ..recipe
    };
    let seen = mix(&bench, &calibrated, 4.0).unwrap();
    let losses =
        |found: &Mixture| -> Vec<f64> { found.modules.iter().map(|m| m.candidates[0].1).collect() };
    assert_ne!(losses(&blind), losses(&seen));
}

#[test]
fn what_cannot_be_had_is_refused_with_the_least_that_can() {
    let bench = Bench::new();
    let error = mix(&bench, &asked(&["W4A16", "W8A16"]), 3.0).unwrap_err();
    assert_eq!(error.code(), "target_bits");
    assert!(error.to_string().contains("4.1"), "{error}");
    let cancel = CancelToken::default();
    cancel.cancel();
    let ran = mixed::choose(
        &bench.open("src"),
        &asked(&SCHEMES),
        4.0,
        &options(),
        &cancel,
    );
    assert!(matches!(ran, Err(Error::Canceled)));
}

#[test]
fn a_saved_mixture_is_the_same_job() {
    let bench = Bench::new();
    let found = mix(&bench, &asked(&SCHEMES), 3.5).unwrap();
    assert!(found.recipe.groups.len() >= 2, "{}", found.note());
    let text = Recipe::of(&found.recipe).to_json();
    let read = Recipe::parse("saved.json", &text, None).unwrap();
    assert_eq!(read.groups, found.recipe.groups);
    let again = QuantizeRecipe {
        groups: read.groups,
        ..found.recipe.clone()
    };
    let checkpoint = bench.open("src");
    let plan = |recipe: QuantizeRecipe| {
        let verb = Verb::Quantize(recipe);
        rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options())
            .unwrap()
            .to_json()
    };
    assert_eq!(plan(again), plan(found.recipe));
}
