//! llm-compressor's recipes, for the modifiers that we cover: `QuantizationModifier` and `GPTQModifier`.
//!
//! Source: llm-compressor 0.9, `modifiers/quantization/{quantization/mixin.py, gptq/base.py}`, and compressed-tensors 0.12,
//! `quantization/quant_args.py`.

use safequant_quantize::{Order, Settings};
use safequant_rewrite::SchemeGroup;
use safequant_schemes::Preset;
use safequant_schemes::preset::{Activations, PRESETS, PresetGranularity, WeightCode};
use serde_json::{Map, Value};

use super::{Members, Problem, Recipe, patterns};
use crate::options;

/// What every key of a recipe that holds a modifier ends in.
const MODIFIER: &str = "Modifier";

/// A modifier that we cover.
#[derive(Clone, Copy, PartialEq)]
enum Modifier {
    Quantization,
    Gptq,
}

/// Whether a document is a recipe of llm-compressor: a modifier is named in it.
pub(super) fn is_one(value: &Value) -> bool {
    match value {
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| key.ends_with(MODIFIER) || is_one(value)),
        Value::Array(items) => items.iter().any(is_one),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The groups of all modifiers.
pub(super) fn read(value: &Value) -> Result<Recipe, Problem> {
    let mut recipe = Recipe {
        convention: Some("compressed-tensors"),
        ..Recipe::default()
    };
    stages(value, "the recipe", &mut recipe)?;
    Ok(recipe)
}

/// Stages and lists of modifiers, whatever they are called.
fn stages(value: &Value, at: &str, recipe: &mut Recipe) -> Result<(), Problem> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| stages(item, at, recipe)),
        Value::Object(members) => {
            for (key, value) in members {
                match key.as_str() {
                    "QuantizationModifier" => modifier(Modifier::Quantization, value, recipe)?,
                    "GPTQModifier" => modifier(Modifier::Gptq, value, recipe)?,
                    name if name.ends_with(MODIFIER) => {
                        return Err(Problem::new(format!(
                            "{name} is not covered: there are QuantizationModifier and GPTQModifier"
                        )));
                    }
                    name if name.ends_with("stage") || name.ends_with("modifiers") => {
                        stages(value, name, recipe)?;
                    }
                    // Arguments for placeholders in the text, of which there are none left.
                    "recipe_args" | "args" if value.as_object().is_none_or(Map::is_empty) => {}
                    name => return Err(Problem::unknown(at, name)),
                }
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Err(Problem::new(
            format!("{at}: expected modifiers by name, found {value}"),
        )),
    }
}

fn modifier(kind: Modifier, value: &Value, recipe: &mut Recipe) -> Result<(), Problem> {
    let name = match kind {
        Modifier::Quantization => "QuantizationModifier",
        Modifier::Gptq => "GPTQModifier",
    };
    let mut members = Members::of(name, value)?;
    let targets = members.texts("targets")?;
    let ignore = patterns(members.texts("ignore")?.unwrap_or_default(), name)?;
    let settings = match kind {
        Modifier::Quantization => Settings::default(),
        Modifier::Gptq => gptq_settings(&mut members, recipe)?,
    };
    for key in [
        "kv_cache_scheme",
        "weight_observer",
        "input_observer",
        "output_observer",
        "observer",
    ] {
        members.only_null(key)?;
    }
    for key in [
        "sequential_targets",
        "sequential_update",
        "offload_hessians",
        "bypass_divisibility_checks",
        "block_size",
    ] {
        members.without_effect(key);
    }
    let groups = match (members.take("scheme"), members.take("config_groups")) {
        (Some(scheme), None) => schemes(&scheme, targets, name)?,
        (None, Some(groups)) => {
            if targets.is_some_and(|targets| targets != ["Linear"]) {
                recipe.notes.push(format!(
                    "{name}: targets stand in config_groups; those beside it have no effect"
                ));
            }
            config_groups(&groups, name)?
        }
        (None, None) | (Some(_), Some(_)) => {
            return Err(Problem::new(format!(
                "{name}: expected one of scheme and config_groups"
            )));
        }
    };
    members.done()?;
    for group in groups {
        recipe.groups.push(SchemeGroup {
            method: match kind {
                Modifier::Gptq => options::method("gptq").map_err(Problem::from)?,
                Modifier::Quantization => group.method,
            },
            preset: group.preset,
            settings,
            targets: patterns(group.targets, name)?,
            ignore: ignore.clone(),
        });
    }
    Ok(())
}

/// One scheme and what it is for.
struct Group {
    preset: Preset,
    method: &'static str,
    targets: Vec<String>,
}

fn gptq_settings(members: &mut Members, recipe: &mut Recipe) -> Result<Settings, Problem> {
    // `actorder` may stand in `weights`, too; here it is the modifier's, which is "static" unless it says otherwise.
    let order = match members.take("actorder") {
        None | Some(Value::Bool(true)) => Order::Activation,
        Some(Value::Null | Value::Bool(false)) => Order::Natural,
        Some(Value::String(word)) if word == "static" || word == "weight" => Order::Activation,
        Some(Value::String(word)) if word == "group" => {
            recipe.notes.push(
                "GPTQModifier: actorder group is done without a group index: columns are rounded in that order, and groups are those of \
                 the stored one"
                    .to_owned(),
            );
            Order::Activation
        }
        Some(other) => {
            return Err(Problem::new(format!(
                "GPTQModifier: actorder: expected static, weight, group or null, found {other}"
            )));
        }
    };
    let damping = members.number("dampening_frac")?.unwrap_or(0.01);
    Ok(Settings {
        order: Some(order),
        damping: Some(options::damping(damping)?),
        ..Settings::default()
    })
}

/// `scheme: W4A16`, or schemes with their targets.
fn schemes(value: &Value, targets: Option<Vec<String>>, at: &str) -> Result<Vec<Group>, Problem> {
    let named = |name: &str, targets| {
        // compressed-tensors, `quant_scheme.py`: of these names what stands for something else there.
        let size = match name.to_ascii_uppercase().as_str() {
            "W8A16" => Some(-1),
            "FP8" => {
                return Err(Problem::new(format!(
                    "{at}: FP8 has static scales of activations there, which are not covered: FP8_DYNAMIC has none"
                )));
            }
            _ => None,
        };
        let preset = options::preset(name, size).map_err(Problem::from)?;
        Ok(Group {
            preset,
            method: "rtn",
            targets,
        })
    };
    match value {
        Value::String(name) => {
            let targets = targets.unwrap_or_else(|| vec!["Linear".to_owned()]);
            Ok(vec![named(name, targets)?])
        }
        Value::Object(members) => {
            let each = members.iter().map(|(name, targets)| {
                let targets = super::texts(targets).ok_or_else(|| {
                    Problem::new(format!("{at}: scheme {name}: expected a list of targets"))
                })?;
                named(name, targets)
            });
            each.collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Err(Problem::new(
            format!("{at}: scheme: expected a name, or targets by name, found {value}"),
        )),
    }
}

fn config_groups(value: &Value, at: &str) -> Result<Vec<Group>, Problem> {
    let Value::Object(groups) = value else {
        return Err(Problem::new(format!(
            "{at}: config_groups: expected groups by name"
        )));
    };
    let each = groups.iter().map(|(name, group)| {
        let at = format!("{at}: {name}");
        let mut members = Members::of(&at, group)?;
        let targets = members.texts("targets")?;
        let targets = targets.ok_or_else(|| Problem::new(format!("{at}: targets are missing")))?;
        let weights = members.take("weights").unwrap_or(Value::Null);
        let inputs = members.take("input_activations").unwrap_or(Value::Null);
        members.only_null("output_activations")?;
        members.without_effect("format");
        members.done()?;
        let (preset, method) = preset_of(&weights, &inputs, &at)?;
        Ok(Group {
            preset,
            method,
            targets,
        })
    });
    each.collect()
}

/// The preset that `QuantizationArgs` of weights and inputs stand for, and the method that the observer is.
fn preset_of(weights: &Value, inputs: &Value, at: &str) -> Result<(Preset, &'static str), Problem> {
    let at = format!("{at}: weights");
    let mut args = Members::of(&at, weights)?;
    let bits = args.number("num_bits")?.unwrap_or(8.0);
    let kind = args.text("type")?.unwrap_or_else(|| "int".to_owned());
    let is_symmetric = args.flag("symmetric")?.unwrap_or(true);
    let group = args.number("group_size")?;
    let strategy = args.text("strategy")?.unwrap_or_else(|| {
        match group {
            Some(size) if size > 0.0 => "group",
            Some(_) => "channel",
            None => "tensor",
        }
        .to_owned()
    });
    let block = args.take("block_structure").unwrap_or(Value::Null);
    let method = match args.text("observer")?.as_deref() {
        None | Some("minmax" | "memoryless_minmax" | "static_minmax") => "rtn",
        Some("mse" | "memoryless_mse") => "mse",
        Some(other) => {
            return Err(Problem::new(format!(
                "{at}: the observer {other} is not covered: there are minmax and mse"
            )));
        }
    };
    if args.flag("dynamic")?.unwrap_or(false) {
        return Err(Problem::new(format!(
            "{at}: weights are not quantized dynamically"
        )));
    }
    for key in ["observer_kwargs", "actorder", "scale_dtype", "zp_dtype"] {
        args.without_effect(key);
    }
    args.done()?;
    let activations = activations_of(inputs, &at)?;
    let is_it = |preset: &&Preset| {
        let integer = WeightCode::SymmetricInteger {
            bits: preset.bits(),
        };
        let is_code = match preset.weights {
            WeightCode::SymmetricInteger { .. } => kind == "int" && is_symmetric,
            WeightCode::AsymmetricInteger { .. } => kind == "int" && !is_symmetric,
            WeightCode::Minifloat(_) => {
                kind == "float" && strategy != "group" && strategy != "tensor_group"
            }
            WeightCode::Nvfp4 => kind == "float" && strategy == "tensor_group",
            WeightCode::Mx(_) => kind == "float" && strategy == "group",
            WeightCode::Codebook(_) | WeightCode::NestedCodebook(_) | WeightCode::Block(_) => false,
        };
        let is_cut = match preset.granularity {
            PresetGranularity::Tensor => strategy == "tensor",
            // Whole rows are groups of -1.
            PresetGranularity::Channel => strategy == "channel",
            PresetGranularity::Group { .. } => {
                matches!(strategy.as_str(), "group" | "tensor_group")
                    || (strategy == "channel" && preset.weights == integer)
            }
            PresetGranularity::Block { rows, columns } => {
                strategy == "block" && block == serde_json::json!([rows, columns])
            }
        };
        let is_ours = preset.default_convention == "compressed-tensors";
        let is_wide = (bits - f64::from(preset.bits())).abs() < 0.5;
        is_ours && is_code && is_cut && is_wide && preset.activations == activations
    };
    let found = PRESETS.iter().find(is_it).ok_or_else(|| {
        Problem::new(format!(
            "{at}: no scheme has {bits} bits of {kind}, {}, by {strategy}, with these input_activations",
            if is_symmetric { "symmetric" } else { "asymmetric" }
        ))
    })?;
    let size = match (found.granularity, strategy.as_str()) {
        (PresetGranularity::Group { .. }, "channel") => Some(-1),
        (PresetGranularity::Group { size: named }, _) => group
            .filter(|asked| {
                // What the format fixes need not be said, and may.
                (asked - f64::from(u32::try_from(named).unwrap_or(u32::MAX))).abs() > 0.5
            })
            .map(whole),
        _ => None,
    };
    let preset = found.clone().with_group_size(size);
    let preset = preset.map_err(|error| Problem::new(format!("{at}: {error}")))?;
    Ok((preset, method))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a size out of range is refused as one"
)]
fn whole(number: f64) -> i64 {
    number as i64
}

/// What is said of inputs, where a runtime quantizes them as it goes.
fn activations_of(value: &Value, at: &str) -> Result<Activations, Problem> {
    if value.is_null() {
        return Ok(Activations::Dense);
    }
    let at = format!("{at}: input_activations");
    let mut args = Members::of(&at, value)?;
    let bits = args.number("num_bits")?.unwrap_or(8.0);
    let kind = args.text("type")?.unwrap_or_else(|| "int".to_owned());
    let strategy = args.text("strategy")?.unwrap_or_else(|| "token".to_owned());
    let size = args.number("group_size")?.unwrap_or(0.0);
    let dynamic = args.take("dynamic").unwrap_or(Value::Bool(false));
    let is_dynamic = dynamic == Value::Bool(true) || dynamic == "local";
    for key in [
        "symmetric",
        "observer",
        "observer_kwargs",
        "actorder",
        "block_structure",
        "scale_dtype",
        "zp_dtype",
    ] {
        args.without_effect(key);
    }
    args.done()?;
    if !is_dynamic {
        return Err(Problem::new(format!(
            "{at}: static scales of activations are not covered: dynamic ones are"
        )));
    }
    let is = |n: f64| (bits - n).abs() < 0.5;
    let size = u64::try_from(whole(size)).unwrap_or(0);
    match (kind.as_str(), strategy.as_str()) {
        ("int", "token") if is(8.0) => Ok(Activations::DynamicInt8PerToken),
        ("float", "token" | "tensor") if is(8.0) => Ok(Activations::DynamicFp8PerToken),
        ("float", "group") if is(8.0) => Ok(Activations::DynamicFp8PerGroup { size }),
        ("float", "group" | "tensor_group") if is(4.0) => {
            Ok(Activations::DynamicFp4PerGroup { size })
        }
        _ => Err(Problem::new(format!(
            "{at}: no scheme has {bits} bits of {kind} by {strategy}"
        ))),
    }
}
