//! SC001: an FP8 weight has no scale.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use safequant_schemes::{Code, Role, ScaleCoding};

use super::common::{ScalesBeside, place, tree, unbound_fp8};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC001",
    name: "fp8-weight-without-scale",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "an FP8 weight has no scale beside it",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every matrix of FP8 codes has a scale, unless the model is a plain cast: all of its FP8 tensors are without one, and no document says
that it is quantized. A plain cast is a note; a bare weight among weights with scales, or under a configuration that promises them, is
an error. (A text encoder that is a plain cast may stand beside a quantized transformer in one file: models are told apart by their
prefix.)

## Why it matters
FP8 codes fill the range up to 448. Without their scale they are read as weights some 200 times too large: perplexity about 2 million,
white images, a draft model whose acceptance falls from 90 % to 1 %. Runtimes leave an absent scale at what memory held, or at 1, and
say nothing; others stop with `KeyError: '...weight_scale_inv'`.

## What to do
Take the scale from the checkpoint that the file was made from. If the codes are meant as they are, say so: a plain cast has no
`quantization_config`, and ComfyUI's has no `scaled_fp8` marker.

## References
- unslothai/unsloth#6200, sgl-project/sglang#30234, vllm-project/vllm#32859, leejet/stable-diffusion.cpp#1898
- formats: fp8, sections 10 and 11
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let beside = LazyCell::new(|| ScalesBeside::new(subject));
    for (module, info) in unbound_fp8(subject) {
        // A scale under another name is another rule's; a scale under a known one stands there, whatever else is wrong.
        if !beside.of(module).is_empty() {
            continue;
        }
        let place = Place::module(module).tensor(&*info.name);
        findings
            .add(place, format!("{} codes without a scale", info.dtype))
            .instead(format!("a scale of {module}"), "none")
            .help("take the scale from the checkpoint that this file was made from");
    }
    let is_code = |tensor: &&safequant_schemes::QuantizedTensor| {
        let is_fp8 = matches!(tensor.scheme.code, Code::Minifloat(format) if format.bits() == 8);
        is_fp8 && tensor.shape.len() > 1
    };
    let fp8 = || subject.model.quantized.iter().filter(is_code);
    let scaled = LazyCell::new(|| {
        let scaled = fp8().filter(|tensor| tensor.scheme.scale != ScaleCoding::One);
        let trees = scaled.map(|tensor| tree(&tensor.module));
        trees.collect::<BTreeSet<&str>>()
    });
    for tensor in fp8().filter(|tensor| tensor.scheme.scale == ScaleCoding::One) {
        let is_scaled = scaled.contains(tree(&tensor.module));
        let place = place(tensor, Role::Codes, None);
        if is_scaled || !subject.settings.is_empty() {
            findings
                .add(
                    place,
                    "FP8 codes without a scale, among weights that have one",
                )
                .instead(format!("a scale of {}", tensor.module), "none")
                .help("take the scale from the checkpoint that this file was made from");
        } else {
            let finding = findings.add(place, "a plain cast to FP8: there is no scale");
            finding.severity = Severity::Note;
            finding.help("runtimes that expect scaled FP8 need to be told so");
        }
    }
}
