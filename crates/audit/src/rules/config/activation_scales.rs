//! QC061: activations are quantized with static scales, and a module has none.

use safequant_schemes::{Pattern, QuantizedTensor, Settings};
use serde_json::{Map, Value};

use crate::ignore::{method_of, spellings};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC061",
    name: "activation-scales",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "activations are quantized with static scales, but a module has none",
    doc: DOC,
    check: Check::Module(check),
};

const DOC: &str = "\
## What it checks
Where the configuration quantizes activations statically (`activation_scheme: static` of fp8, `dynamic: false` in `input_activations` of
compressed-tensors and ModelOpt, `dynamic: local` with a global scale), every module that it is about has an `input_scale`
(`input_global_scale`).

## Why it matters
The scale's parameter exists and keeps what was in memory: NaN for some prompts only, `activation scaling factor not positive`. It is what
becomes of experts that calibration never reached.

## What to do
Calibrate the module again, with data that reaches it.

## References
- vllm-project/vllm#45212, vllm-project/vllm#45320, NVIDIA/Model-Optimizer#1265, vllm-project/llm-compressor#2826
";

fn check(subject: &Subject<'_>, tensor: &QuantizedTensor, findings: &mut Findings<'_>) {
    let mut wanted = subject
        .settings
        .iter()
        .filter_map(|settings| wanted(settings, tensor));
    let Some((place, endings)) = wanted.next() else {
        return;
    };
    let has = |ending: &&str| {
        let stacked = format!("{}_{ending}", tensor.module);
        let own = format!("{}.{ending}", tensor.module);
        subject.headers.tensor(&own).is_some() || subject.headers.tensor(&stacked).is_some()
    };
    if endings.iter().any(has) {
        return;
    }
    let names: Vec<String> = endings
        .iter()
        .map(|e| format!("{}.{e}", tensor.module))
        .collect();
    findings
        .add(
            Place::module(&*tensor.module),
            format!("{place} quantizes activations statically, but there is no scale for them"),
        )
        .instead(names.join(" or "), "nothing")
        .help("calibrate the module again, with data that reaches it");
}

/// Where the settings ask for a scale of this module's activations, and what it may be called.
fn wanted(
    settings: &Settings,
    tensor: &QuantizedTensor,
) -> Option<(String, &'static [&'static str])> {
    const STATIC: &[&str] = &["input_scale", "activation_scale"];
    const LOCAL: &[&str] = &["input_global_scale", "input_scale"];
    let method = method_of(settings);
    let place = |key: &str| format!("{}.{key}", settings.place);
    if method == "fp8" {
        let scheme = settings
            .map
            .get("activation_scheme")
            .and_then(Value::as_str);
        return (scheme == Some("static")).then(|| (place("activation_scheme"), STATIC));
    }
    let is_ours = match method.as_str() {
        "compressed-tensors" => tensor.convention == "compressed-tensors",
        name => name.starts_with("modelopt") && tensor.convention == "modelopt",
    };
    if !is_ours {
        return None;
    }
    let groups = settings.map.get("config_groups")?.as_object()?;
    let (name, group) = group_of(groups, &tensor.module)?;
    let activations = group.get("input_activations").filter(|v| !v.is_null())?;
    let place = place(&format!("config_groups.{name}"));
    match activations.get("dynamic") {
        Some(Value::Bool(false)) => Some((place, STATIC)),
        Some(Value::String(text)) if text == "local" => Some((place, LOCAL)),
        _ => None,
    }
}

/// The group that a module belongs to: by its name, else by its class.
fn group_of<'m>(groups: &'m Map<String, Value>, module: &str) -> Option<(&'m str, &'m Value)> {
    let names = spellings(module);
    let is_named = |target: &str| match target.strip_prefix("re:") {
        Some(regex) => Pattern::regex(regex)
            .is_ok_and(|p| names.iter().any(|n| p.is_match(n).unwrap_or(false))),
        None => names.iter().any(|name| name == target),
    };
    let targets = |group: &'m Value| {
        let list = group.get("targets").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    };
    let mut all = groups.iter();
    let by_name = all.find(|(_, group)| targets(group).any(is_named));
    let mut all = groups.iter();
    let found = by_name.or_else(|| all.find(|(_, group)| targets(group).any(|t| t == "Linear")));
    found.map(|(name, group)| (name.as_str(), group))
}
