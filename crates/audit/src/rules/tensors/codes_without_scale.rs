//! QT007: codes of a weight are there, and nothing says how to read them.

use safequant_container::{Dtype, TensorInfo};
use safequant_schemes::Error;

use crate::inventory::{broken_modules, is_partial};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT007",
    name: "codes-without-scale",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a weight is stored in a dtype of codes, and no scale says how to read it",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
In a quantized checkpoint, every matrix in a dtype that dense models do not use (FP8, bytes, packed words) is a weight of a known format,
with what its format needs.

## Why it matters
Where the scale was lost, some readers take the codes for numbers: weights 200 times too large, a perplexity of two million, white images.
Others stop: `KeyError: 'model.layers.0.mlp.down_proj.scales'`, `KeyError: 'U32'`.

## What to do
Fetch or quantize the module again.

## References
- unslothai/unsloth#6200, sgl-project/sglang#30234, vllm-project/vllm#32859, amd/Quark#44
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let model = &subject.model;
    let is_declared = !subject.settings.is_empty() || !model.quantized.is_empty();
    let is_unread = |error: &Error| matches!(error, Error::Unsupported { .. });
    // A convention that failed as a whole leaves everything.
    let has_failed = model.quantized.is_empty() && !subject.problems.iter().all(is_unread);
    if !is_declared || has_failed || is_partial(subject) {
        return;
    }
    let broken = broken_modules(subject);
    for info in subject.plain.iter().filter(|info| is_codes(info)) {
        let name = info.name.as_str();
        let Some(module) = name.strip_suffix(".weight") else {
            continue;
        };
        if !broken.contains(module) {
            findings
                .add(
                    Place::module(module).tensor(name),
                    format!("{module} has codes of {}, and no scale", info.dtype),
                )
                .instead("the tensors of a whole quantized weight", name)
                .help("fetch or quantize the module again");
        }
    }
}

/// Whether a matrix has a dtype that only codes have.
fn is_codes(info: &TensorInfo) -> bool {
    let is_code = match info.dtype {
        Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::F8E5M2
        | Dtype::F8E4M3
        | Dtype::F8E8M0
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz
        | Dtype::U8
        | Dtype::I8
        | Dtype::I32
        | Dtype::U32 => true,
        Dtype::Bool
        | Dtype::I16
        | Dtype::U16
        | Dtype::F16
        | Dtype::BF16
        | Dtype::F32
        | Dtype::C64
        | Dtype::F64
        | Dtype::I64
        | Dtype::U64 => false,
    };
    is_code && info.shape.len() > 1
}
