//! Recipes of both forms: what they mean, and what is refused.

use safequant_quantize::Order;
use safequant_schemes::PresetGranularity;

use super::*;

fn parse(text: &str) -> Result<Recipe, String> {
    Recipe::parse("r.yaml", text, None).map_err(|error| error.message)
}

fn schemes(recipe: &Recipe) -> Vec<(&str, &str, Vec<&str>)> {
    let groups = recipe.groups.iter();
    assert!(groups.len() > 0);
    groups
        .map(|g| {
            (
                g.preset.name,
                g.method,
                g.targets.iter().map(String::as_str).collect(),
            )
        })
        .collect()
}

/// From the documentation and the examples of llm-compressor: keys and values as they stand there.
const GPTQ: &str = "
quant_stage:
  quant_modifiers:
    GPTQModifier:
      sequential_update: false
      ignore: [\"lm_head\", \"re:.*mlp.gate$\"]
      dampening_frac: 0.05
      block_size: 128
      config_groups:
        group_0:
          weights:
            num_bits: 4
            type: \"int\"
            symmetric: true
            strategy: \"group\"
            group_size: 64
            actorder: \"static\"
          targets: [\"Linear\"]
        group_1:
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, dynamic: true, strategy: token}
          targets: ['re:.*down_proj$']
";

#[test]
fn recipes_of_llm_compressor_mean_what_they_mean_there() {
    let recipe = parse(GPTQ).unwrap();
    assert_eq!(recipe.convention, Some("compressed-tensors"));
    assert_eq!(
        schemes(&recipe),
        [
            ("W4A16", "gptq", vec!["*"]),
            ("W8A8", "gptq", vec!["re:.*down_proj$"])
        ]
    );
    let group = &recipe.groups[0];
    assert_eq!(
        group.preset.granularity,
        PresetGranularity::Group { size: 64 }
    );
    assert_eq!(group.settings.order, Some(Order::Activation));
    assert_eq!(group.settings.damping, Some(0.05));
    assert_eq!(group.ignore, ["lm_head", "re:.*mlp.gate$"]);

    for (scheme, expected) in [
        ("W4A16", "W4A16"),
        ("W8A8", "W8A8"),
        ("FP8_DYNAMIC", "FP8_DYNAMIC"),
        ("FP8_BLOCK", "FP8_BLOCK"),
        ("NVFP4A16", "NVFP4A16"),
    ] {
        let text = format!(
            "DEFAULT_stage:\n  DEFAULT_modifiers:\n    QuantizationModifier:\n      targets: [Linear]\n      ignore: [lm_head]\n      scheme: {scheme}\n"
        );
        let recipe = parse(&text).unwrap();
        assert_eq!(schemes(&recipe), [(expected, "rtn", vec!["*"])]);
    }
    let several = "s_stage: {m_modifiers: {QuantizationModifier: {scheme: {W4A16: ['re:.*mlp.*'], W8A16: [Linear]}}}}";
    let expected = [
        ("W4A16", "rtn", vec!["re:.*mlp.*"]),
        ("W8A16", "rtn", vec!["*"]),
    ];
    assert_eq!(schemes(&parse(several).unwrap()), expected);
}

#[test]
fn every_scheme_of_compressed_tensors_is_told_from_its_arguments() {
    let weights = |args: &str| {
        parse(&format!(
            "s_stage: {{m_modifiers: {{QuantizationModifier: {{config_groups: {{g: {{targets: [Linear], {args}}}}}}}}}}}"
        ))
    };
    for (args, name) in [
        ("weights: {num_bits: 4, group_size: 128}", "W4A16"),
        (
            "weights: {num_bits: 4, group_size: 128, symmetric: false, strategy: group}",
            "W4A16_ASYM",
        ),
        ("weights: {num_bits: 8, strategy: channel}", "W8A16"),
        (
            "weights: {num_bits: 8, type: float, strategy: channel}, input_activations: {num_bits: 8, type: float, dynamic: true, strategy: token}",
            "FP8_DYNAMIC",
        ),
        (
            "weights: {num_bits: 8, type: float, strategy: block, block_structure: [128, 128]}, input_activations: {num_bits: 8, type: float, dynamic: true, strategy: group, group_size: 128}",
            "FP8_BLOCK",
        ),
        (
            "weights: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16}",
            "NVFP4A16",
        ),
    ] {
        let recipe = weights(args).unwrap_or_else(|error| panic!("{args}: {error}"));
        assert_eq!(recipe.groups[0].preset.name, name, "{args}");
    }
    for (args, expected) in [
        (
            "weights: {num_bits: 5, group_size: 128}",
            "no scheme has 5 bits",
        ),
        (
            "weights: {num_bits: 4, group_size: 128, observer: imatrix}",
            "observer imatrix",
        ),
        (
            "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8}",
            "static scales",
        ),
        ("weights: {num_bits: 8, bits: 4}", "bits is not known"),
        (
            "output_activations: {num_bits: 8}, weights: {num_bits: 8}",
            "output_activations is not covered",
        ),
    ] {
        let error = weights(args).unwrap_err();
        assert!(error.contains(expected), "{args}: {error}");
    }
}

#[test]
fn what_is_not_covered_is_refused_by_name() {
    for (text, expected) in [
        (
            "s_stage: {m_modifiers: {SmoothQuantModifier: {}}}",
            "SmoothQuantModifier is not covered",
        ),
        (
            "s_stage: {m_modifiers: {AWQModifier: {scheme: W4A16}}}",
            "AWQModifier is not covered",
        ),
        (
            "s_stage: {m_modifiers: {GPTQModifier: {scheme: W4A16, kv_cache_scheme: {num_bits: 8}}}}",
            "kv_cache_scheme",
        ),
        (
            "s_stage: {m_modifiers: {GPTQModifier: {scheme: W4A16, targets: [Embedding]}}}",
            "Embedding",
        ),
        (
            "s_stage: {m_modifiers: {GPTQModifier: {scheme: W5A16}}}",
            "W5A16",
        ),
        (
            "s_stage: {m_modifiers: {GPTQModifier: {ignore: [x]}}}",
            "one of scheme and config_groups",
        ),
        (
            "s_stage: {m_modifiers: {GPTQModifier: {scheme: W4A16, dampening_frac: -1}}}",
            "damping",
        ),
        ("safequant_recipe: 2\ngroups: []", "expected 1"),
        ("safequant_recipe: 1\ngroups: []", "no group"),
        (
            "safequant_recipe: 1\ngroups: [{scheme: W4A16, bits: 4}]",
            "bits is not known",
        ),
        (
            "safequant_recipe: 1\ngroups: [{scheme: W4A16, targets: ['re:(']}]",
            "pattern `(`",
        ),
        (
            "safequant_recipe: 1\ngroups: [{scheme: W4A16, method: best}]",
            "unknown method best",
        ),
        (
            "safequant_recipe: 1\ngroups: [{scheme: W8A8, group_size: 1.5}]",
            "whole number",
        ),
        ("- 1", "expected members"),
        ("x: *y", "r.yaml"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            error.starts_with("r.yaml: ") && error.contains(expected),
            "{text}: {error}"
        );
    }
}

#[test]
fn what_is_saved_is_read_again() {
    let text = "
safequant_recipe: 1
convention: gptq
ignore: [lm_head, '*.router']
groups:
  - {scheme: W8A16, targets: ['*.down_proj'], method: mse, effort: high}
  - {scheme: W4A16, group_size: 32, ignore: ['re:.*x$']}
  - {scheme: W3A16, group_size: -1, targets: [a.b]}
";
    let recipe = parse(text).unwrap();
    assert_eq!(
        recipe.groups[1].preset.granularity,
        PresetGranularity::Group { size: 32 }
    );
    assert_eq!(
        recipe.groups[2].preset.granularity,
        PresetGranularity::Channel
    );
    assert_eq!(parse(&recipe.to_json()).unwrap(), recipe);
}

#[test]
fn biases_are_corrected_where_a_group_says_so_and_statistics_are_there() {
    let text = |value: &str| {
        format!(
            "safequant_recipe: 1\ngroups: [{{scheme: W4A16, method: mse, bias_correction: {value}}}]"
        )
    };
    assert!(
        parse(&text("true"))
            .unwrap_err()
            .contains("the mean of inputs")
    );
    assert!(parse(&text("3")).unwrap_err().contains("true or false"));
    let mut recipe = parse(&text("false")).unwrap();
    assert_eq!(recipe.groups[0].settings.biases, Biases::Kept);
    assert!(!recipe.to_json().contains("bias_correction"));
    recipe.groups[0].settings.biases = Biases::Corrected;
    assert!(recipe.to_json().contains("\"bias_correction\": true"));
}
