//! QC061: activations are quantized with static scales, and a module has none.

use safequant_schemes::{QuantizedTensor, Settings};
use serde_json::Value;

use crate::ignore::{Groups, method_of};
use crate::{Check, Findings, ModuleName, Part, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC061",
    name: "activation-scales",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "activations are quantized with static scales, but a module has none",
    doc: DOC,
    check: Check::Headers(check),
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

/// What the scales of a method may be called.
type Endings = &'static [&'static str];

const STATIC: Endings = &["input_scale", "activation_scale", "act_scale"];
const LOCAL: Endings = &["input_global_scale", "input_scale"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for settings in &subject.settings {
        let groups = Groups::of(settings);
        let method = method_of(settings);
        // Embeddings have no activations.
        let is_layer = |t: &QuantizedTensor| ModuleName::parse(&t.module).part != Part::Embedding;
        for tensor in &subject.model.quantized {
            if let Some((place, endings)) = wanted(settings, &method, groups.as_ref(), tensor)
                && is_layer(tensor)
            {
                check_module(subject, tensor, (&place, endings), findings);
            }
        }
    }
}

fn check_module(
    subject: &Subject<'_>,
    tensor: &QuantizedTensor,
    (place, endings): (&str, Endings),
    findings: &mut Findings<'_>,
) {
    let has = |ending: &&str| {
        let stacked = format!("{}_{ending}", tensor.module);
        let own = format!("{}.{ending}", tensor.module);
        subject.headers.tensor(&own).is_some() || subject.headers.tensor(&stacked).is_some()
    };
    if endings.iter().any(has) {
        return;
    }
    let name = |ending: &&str| format!("{}.{ending}", tensor.module);
    let names: Vec<String> = endings.iter().map(name).collect();
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
    method: &str,
    groups: Option<&Groups<'_>>,
    tensor: &QuantizedTensor,
) -> Option<(String, Endings)> {
    let place = |key: &str| format!("{}.{key}", settings.place);
    if method == "fp8" {
        let scheme = settings
            .map
            .get("activation_scheme")
            .and_then(Value::as_str);
        return (scheme == Some("static")).then(|| (place("activation_scheme"), STATIC));
    }
    let is_ours = match method {
        "compressed-tensors" => tensor.convention == "compressed-tensors",
        name => name.starts_with("modelopt") && tensor.convention == "modelopt",
    };
    let (name, group) = groups.filter(|_| is_ours)?.group(&tensor.module)?;
    let activations = group.get("input_activations").filter(|v| !v.is_null())?;
    let place = place(&format!("config_groups.{name}"));
    match activations.get("dynamic") {
        Some(Value::Bool(false)) => Some((place, STATIC)),
        Some(Value::String(text)) if text == "local" => Some((place, LOCAL)),
        _ => None,
    }
}
