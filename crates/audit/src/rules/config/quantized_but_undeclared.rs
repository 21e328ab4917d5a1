//! QC005: weights are quantized, and no document says so.

use crate::inventory::companion;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC005",
    name: "quantized-but-undeclared",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "weights are quantized, but no document says so",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where weights are quantized in a format whose readers go by a configuration, `config.json` has one, or one of the documents that hold
nothing else. Formats that explain themselves (ComfyUI, Nunchaku, quanto, GGUF) need none.

## Why it matters
Without the configuration, readers take the model for a dense one: `KeyError: 'model.layers.0.mlp.down_proj.qweight'`,
`Some weights of the model checkpoint were not used`, and random weights in their place.

## What to do
Put the configuration back: copy `quantization_config` from the original checkpoint.

## References
- vllm-project/vllm#45132, vllm-project/vllm#25706, unslothai/unsloth#6200
";

/// Conventions whose files say themselves how they are to be read.
const EXPLAIN_THEMSELVES: [&str; 3] = ["nunchaku", "quanto", "gguf"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let model = &subject.model;
    // FP8 weights with a scale are ComfyUI's as well, but a model of transformers is none of its files.
    let is_of_transformers = subject.config.contains_key("architectures");
    let is_known =
        |id: &str| EXPLAIN_THEMSELVES.contains(&id) || (id == "comfyui" && !is_of_transformers);
    let explains_itself = model.conventions.iter().any(|(id, _)| is_known(id));
    let is_read = !subject.config.is_empty() && subject.settings.is_empty();
    let is_marked = subject.headers.metadata("_quantization_metadata").is_some();
    if !is_read || explains_itself || is_marked {
        return;
    }
    let bound = model
        .quantized
        .first()
        .map(|t| (t.module.clone(), t.convention));
    // Dense models have scales and biases too.
    let is_telling =
        |ending: &str| ending.contains("weight") || ["qzeros", "g_idx", "SCB"].contains(&ending);
    let mut left = model.plain.iter().filter_map(|name| companion(name));
    let left = left.find(|(_, ending)| is_telling(ending));
    let left = left.map(|(module, _)| (module.to_owned(), "a format that needs a configuration"));
    if let Some((module, format)) = bound.or(left) {
        findings
            .add(
                Place::file("config.json"),
                format!("no quantization_config, but {module} is quantized ({format})"),
            )
            .instead("quantization_config", "none")
            .help("copy quantization_config from the original checkpoint");
    }
}
