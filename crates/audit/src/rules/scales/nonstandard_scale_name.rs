//! SC002: a scale has a name that loaders do not know.

use std::cell::LazyCell;

use safequant_container::TensorInfo;
use safequant_schemes::{Granularity, Role};

use super::common::{ScalesBeside, place, unbound_fp8};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC002",
    name: "nonstandard-scale-name",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a scale has a name that most loaders do not know",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The scale of an FP8 weight is called as the loaders of its format look for it: `weight_scale_inv` beside blocks, `weight_scale` or
`weight_scale_inv` otherwise. A scale that only some loaders rename (`.scale`, `.qscale_weight`, `weight_scale` beside blocks) is a
warning; an FP8 weight whose only scale has a name that no convention knows is an error.

## Why it matters
A loader that does not know the name drops the tensor without a word, and the weights are some 200 times too large; or it stops with
`KeyError: '...weight_scale_inv'` or `There is no module or parameter named '...scale_inv'`.

## What to do
Rename the tensor. `safequant convert` writes the names of the convention that is asked for.

## References
- vllm-project/vllm#32101, amd/Quark#44, ModelCloud/GPTQModel#2827, ggml-org/llama.cpp#23124
- formats: fp8, sections 3 and 4
";

/// Endings that conventions of ours bind: where such a scale stands unbound, something else is wrong.
const KNOWN: [&str; 7] = [
    "weight_scale_inv",
    "weight_scale",
    "weight_scale_2",
    "scale_weight",
    "scale",
    "qscale_weight",
    "weight_global_scale",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    check_unbound(subject, findings);
    check_bound(subject, findings);
}

/// FP8 weights whose scale no convention found.
fn check_unbound(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let scales = LazyCell::new(|| ScalesBeside::new(subject));
    for (module, info) in unbound_fp8(subject) {
        // `<module>_scale_inv` is that of fused experts, `<module>.scale_inv` nobody's.
        let is_fused = info.name == module;
        let is_known = |scale: &&TensorInfo| {
            let ending = scale.name.get(module.len() + 1..).unwrap_or_default();
            KNOWN.contains(&ending) || (is_fused && ending == "scale_inv")
        };
        let beside = scales.of(module);
        let Some(first) = beside.first().filter(|_| !beside.iter().any(is_known)) else {
            continue;
        };
        let finding = findings.add(
            Place::module(module).tensor(&*first.name),
            "the only scale of FP8 codes, under a name that no loader looks for",
        );
        finding.severity = Severity::Error;
        finding
            .instead(
                format!("{module}.weight_scale_inv or {module}.weight_scale"),
                &*first.name,
            )
            .help("rename the tensor as the configuration's format calls it");
    }
}

/// FP8 weights whose scale was found under a name that not everyone knows.
fn check_bound(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for tensor in subject
        .model
        .quantized
        .iter()
        .filter(|t| t.convention == "fp8")
    {
        let Some(part) = tensor.part(Role::Scale) else {
            continue;
        };
        let is_block = matches!(tensor.scheme.granularity, Granularity::Block { .. });
        let ending = part.name.rsplit('.').next().unwrap_or_default();
        let expected = match ending {
            "scale" | "qscale_weight" | "weight_scale" if is_block => "weight_scale_inv",
            "scale" | "qscale_weight" => "weight_scale",
            _ => continue,
        };
        findings
            .add(
                place(tensor, Role::Scale, None),
                format!("the scale is called `{ending}`, which not every loader renames"),
            )
            .instead(format!("{}.{expected}", tensor.module), &*part.name)
            .help("rename the tensor, or load it with a runtime that knows the name");
    }
}
