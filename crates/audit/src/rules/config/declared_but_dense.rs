//! QC003: the configuration says that the model is quantized, and no weight is.

use safequant_schemes::Settings;
use serde_json::Value;

use crate::ignore::method_of;
use crate::inventory::dense_matrices;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC003",
    name: "declared-but-dense",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the configuration says that the model is quantized, but no weight is",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where a document states a quantization method, at least one weight is quantized. Checkpoints of compressed-tensors whose status says
that they were decompressed, or whose format is dense, are dense rightly.

## Why it matters
An export that silently left all weights as they were still writes its configuration. Runtimes then build quantized layers and find no
tensors for them: `KeyError: 'model.layers.0.mlp.down_proj.weight_scale'`,
`ValueError: There is no module or parameter named '...weight'`.

## What to do
Remove the quantization configuration, or quantize the model.

## References
- NVIDIA/Model-Optimizer#2203, vllm-project/vllm#45132
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let model = &subject.model;
    let is_explained = !subject.problems.is_empty();
    if is_explained || !model.quantized.is_empty() {
        return;
    }
    let n_dense = dense_matrices(subject).count();
    if n_dense == 0 {
        return;
    }
    for settings in subject.settings.iter().filter(|s| declares(s)) {
        let file = settings.place.split(':').next().unwrap_or_default();
        findings
            .add(
                Place::file(file),
                format!("{} says that the model is quantized", settings.place),
            )
            .instead(
                format!("weights of {}", method_of(settings)),
                format!("{n_dense} dense matrices and no quantized weight"),
            )
            .help("remove the quantization configuration, or quantize the model");
    }
}

/// Whether the settings say that stored weights are quantized.
fn declares(settings: &Settings) -> bool {
    let text = |key: &str| settings.map.get(key).and_then(Value::as_str);
    let is_dense = matches!(
        text("quantization_status"),
        Some("decompressed" | "initialized" | "calibration")
    ) || text("format") == Some("dense");
    // A cache can be quantized alone.
    let has_weights = match settings.map.get("config_groups").and_then(Value::as_object) {
        Some(groups) => !groups.is_empty(),
        None => method_of(settings) != "compressed-tensors",
    };
    !method_of(settings).is_empty() && has_weights && !is_dense
}
