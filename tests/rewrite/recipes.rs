//! Jobs with several schemes: every module reads back as the scheme that its group of the recipe names, or the convention's writer
//! refuses the mixture.

use std::collections::BTreeMap;

use safequant::options::{Choosing, Quantizing};
use safequant::quantize::Division;
use safequant::quantize::quantizer::NonFinite;
use safequant::rewrite::{self, Action, ErrorGroup, QuantizeRecipe, SchemeGroup, Verb};
use safequant::schemes::{CONVENTIONS, Model, Preset};

use super::tiny::{Bench, group, options, quantize};

fn mixed(convention: &'static str, groups: Vec<SchemeGroup>) -> Verb {
    let Verb::Quantize(recipe) = quantize("W4A16", convention) else {
        panic!("a quantize verb");
    };
    Verb::Quantize(QuantizeRecipe { groups, ..recipe })
}

fn of(scheme: &str, targets: &[&str]) -> SchemeGroup {
    SchemeGroup {
        targets: targets.iter().map(|t| (*t).to_owned()).collect(),
        ..group(scheme)
    }
}

/// What modules of a checkpoint are, by module.
fn schemes(bench: &Bench, name: &str) -> BTreeMap<String, String> {
    let checkpoint = bench.open(name);
    let model = Model::bind(&checkpoint).unwrap();
    let scheme =
        |t: &safequant::schemes::QuantizedTensor| (t.module.clone(), format!("{:?}", t.scheme));
    model.quantized.iter().map(scheme).collect()
}

#[test]
fn every_convention_holds_two_schemes_or_refuses_them() {
    let bench = Bench::new();
    let (mut n_held, mut n_refused) = (0, Vec::new());
    for convention in CONVENTIONS {
        let Some(writer) = convention.writer() else {
            continue;
        };
        // GGUF names modules in its own way: its test stands with those of its writer.
        let is_own_format = convention.id() == "gguf";
        let names = writer.presets().iter().filter(|_| !is_own_format);
        let names: Vec<&str> = names.copied().collect();
        for pair in names.windows(2) {
            let case = format!("{}: {} and {}", convention.id(), pair[0], pair[1]);
            let one = mixed(convention.id(), vec![of(pair[0], &[])]);
            let other = mixed(convention.id(), vec![of(pair[1], &[])]);
            let both = [of(pair[0], &[]), of(pair[1], &["*.down_proj"])];
            let both = mixed(convention.id(), both.to_vec());
            let mut alone = Vec::new();
            for verb in [&one, &other] {
                if bench.run(verb, "alone", &options()).is_ok() {
                    alone.push(schemes(&bench, "alone"));
                    std::fs::remove_dir_all(bench.path("alone")).unwrap();
                }
            }
            let [a, b] = alone.as_slice() else {
                continue;
            };
            if let Err(error) = bench.run(&both, "both", &options()) {
                assert_eq!(error.group(), ErrorGroup::Refused, "{case}: {error}");
                n_refused.push(case);
                continue;
            }
            let found = schemes(&bench, "both");
            assert_eq!(found.len(), a.len(), "{case}");
            for (module, scheme) in &found {
                let expected = if module.contains("down_proj") { b } else { a };
                assert_eq!(Some(scheme), expected.get(module), "{case}: {module}");
            }
            n_held += 1;
            std::fs::remove_dir_all(bench.path("both")).unwrap();
        }
    }
    assert!(n_held >= 15, "{n_held} held; refused: {n_refused:#?}");
}

#[test]
fn the_target_that_says_most_wins() {
    let bench = Bench::new();
    let mut groups = vec![
        of("W8A16", &["*.self_attn.*"]),
        of("W4A16", &[]),
        of(
            "W3A16",
            &[
                "model.layers.0.self_attn.q_proj",
                "model.layers.1.mlp.up_proj",
            ],
        ),
        of("W2A16", &["*.v_proj"]),
    ];
    groups[0].ignore = vec!["*.k_proj".to_owned()];
    let verb = mixed("compressed-tensors", groups);
    let checkpoint = bench.open("src");
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    let found: BTreeMap<&str, &str> = plan
        .modules
        .iter()
        .filter_map(|m| match &m.action {
            Action::Quantize(scheme) => Some((m.name.as_str(), *scheme)),
            Action::Copy
            | Action::Dequantize(_)
            | Action::Convert(_)
            | Action::Respell
            | Action::Drop
            | Action::Fold
            | Action::Refine => None,
        })
        .collect();
    assert_eq!(found.len(), 14);
    for (module, scheme) in [
        ("model.layers.0.self_attn.q_proj", "W3A16"),
        ("model.layers.1.self_attn.q_proj", "W8A16"),
        ("model.layers.0.self_attn.k_proj", "W4A16"),
        ("model.layers.0.self_attn.v_proj", "W8A16"),
        ("model.layers.0.self_attn.o_proj", "W8A16"),
        ("model.layers.0.mlp.up_proj", "W4A16"),
        ("model.layers.1.mlp.up_proj", "W3A16"),
    ] {
        assert_eq!(found[module], scheme, "{module}");
    }
    assert!(
        plan.notes.iter().all(|note| !note.contains("v_proj")),
        "{:?}",
        plan.notes
    );
}

fn asked<'a>(recipe: Option<(&'a str, &'a str)>, scheme: Option<&'a str>) -> Quantizing<'a> {
    Quantizing {
        scheme,
        schemes: &[],
        group_size: None,
        choosing: Choosing::default(),
        targets: &[],
        ignore: &[],
        convention: None,
        recipe,
        calibration: None,
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
    }
}

#[test]
fn a_recipe_of_llm_compressor_is_carried_out() {
    let bench = Bench::new();
    let text = "
DEFAULT_stage:
  DEFAULT_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: ['re:.*self_attn.(q|k|v)_proj$']
          weights: {num_bits: 8, type: float, symmetric: true, strategy: channel, dynamic: false}
          input_activations: {num_bits: 8, type: float, symmetric: true, strategy: token, dynamic: true}
        group_1:
          targets: [Linear]
          weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 64}
";
    let recipe = asked(Some(("recipe.yaml", text)), None).resolve().unwrap();
    assert_eq!(recipe.convention, "compressed-tensors");
    bench
        .run(&Verb::Quantize(recipe), "dst", &options())
        .unwrap();
    let config = std::fs::read(bench.path("dst").join("config.json")).unwrap();
    let config = String::from_utf8(config).unwrap().replace("Infinity", "1");
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let groups = config["quantization_config"]["config_groups"]
        .as_object()
        .unwrap();
    assert_eq!(groups.len(), 2, "{groups:?}");
    let with_inputs = groups
        .values()
        .filter(|g| g["input_activations"]["num_bits"] == 8);
    assert_eq!(with_inputs.count(), 1, "{groups:?}");
    assert_eq!(config["quantization_config"]["format"], "mixed-precision");
    assert_eq!(schemes(&bench, "dst").len(), 14);
}

#[test]
fn a_scheme_and_a_recipe_exclude_each_other() {
    let text = "safequant_recipe: 1\ngroups: [{scheme: NVFP4A16}, {scheme: Q4_K, targets: [a]}]";
    let error = asked(Some(("r", text)), None).resolve().unwrap_err();
    assert!(error.message.contains("Q4_K"), "{error}");
    assert!(asked(Some(("r", text)), Some("W4A16")).resolve().is_err());
    assert!(asked(None, None).resolve().is_err());
    let one = asked(None, Some("NF4")).resolve().unwrap();
    assert_eq!(
        one.convention,
        Preset::by_name("NF4").unwrap().default_convention
    );
}
