//! SC002: a scale has a name that loaders do not know.

use safequant_schemes::{Granularity, Role};

use super::common::{place, scales_beside, unbound_fp8};
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
`weight_scale_inv` otherwise. A scale that only some loaders rename (`.scale`, `.qscale_weight`, `weight_scale` beside blocks) is a warning; an
FP8 weight whose only scale has a name that no convention knows is an error.

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
const KNOWN: [&str; 9] = [
    "weight_scale_inv",
    "weight_scale",
    "weight_scale_2",
    "scale_weight",
    "scale",
    "qscale_weight",
    "scale_inv",
    "_scale",
    "weight_global_scale",
];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for (module, info) in unbound_fp8(subject) {
        let is_fused = info.name == module;
        let ending = |name: &str| name[module.len()..].trim_start_matches('.').to_owned();
        let is_known = |name: &str| {
            let ending = ending(name);
            let ending = ending
                .strip_prefix('_')
                .filter(|_| is_fused)
                .unwrap_or(&ending);
            // `<module>.scale_inv` is nobody's; `<module>_scale_inv` is that of fused experts.
            KNOWN.contains(&ending) && (is_fused || ending != "scale_inv")
        };
        let mut beside = scales_beside(subject, module).peekable();
        if beside.peek().is_none() {
            continue;
        }
        let unknown: Vec<&str> = beside.map(|scale| scale.name.as_str()).collect();
        if unknown.iter().any(|name| is_known(name)) {
            continue;
        }
        let Some(first) = unknown.first() else {
            continue;
        };
        let place = Place::module(module).tensor(*first);
        let finding = findings.add(
            place,
            "the only scale of FP8 codes, under a name that no loader looks for",
        );
        finding.severity = Severity::Error;
        finding
            .instead(
                format!("{module}.weight_scale_inv or {module}.weight_scale"),
                *first,
            )
            .help("rename the tensor as the configuration's format calls it");
    }
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
