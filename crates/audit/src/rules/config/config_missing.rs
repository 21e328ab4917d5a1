//! QC008: there is no `config.json` beside the weights of a model.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC008",
    name: "config-missing",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a language model has no config.json",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Weights of a language model (embeddings and layers under one name) stand beside a `config.json`. Weights of other models, and files of
GGUF, need none.

## Why it matters
Nothing says which architecture the weights are of, and how they are quantized. Readers say
`OSError: ... does not appear to have a file named config.json`.

## What to do
Fetch the document from where the weights came from.

## References
- huggingface/huggingface_hub#4725, vllm-project/vllm#45132
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let is_there = subject.headers.document("config.json").is_some();
    if is_there || is_of_images(subject) || subject.headers.gguf().is_some() {
        return;
    }
    let Some(trunk) = &subject.trunk else {
        return;
    };
    let word = trunk.name.rsplit('.').next().unwrap_or_default();
    if matches!(word, "layers" | "layer" | "h") {
        findings
            .add(
                Place::file("config.json"),
                format!("no config.json beside the weights of {}", trunk.name),
            )
            .instead("config.json", "none")
            .help("fetch the document from where the weights came from");
    }
}

/// Whether it is a file of `ComfyUI`, which reads language models from single files. FP8 weights with a scale alone do not say so.
fn is_of_images(subject: &Subject<'_>) -> bool {
    let mut conventions = subject.model.conventions.iter();
    let is_read = conventions.any(|(id, _)| matches!(*id, "comfyui" | "nunchaku"));
    let has = |ending: &str| {
        let mut tensors = subject.headers.tensors();
        tensors.any(|info| info.name.ends_with(ending))
    };
    let is_marked = has(".comfy_quant")
        || has("scaled_fp8")
        || subject.headers.metadata("_quantization_metadata").is_some();
    is_read && (is_marked || !(has(".weight_scale") || has("scale_inv")))
}
