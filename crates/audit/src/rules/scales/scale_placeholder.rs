//! SC015: scales were never filled in.

use safequant_schemes::Role;

use super::common::{has_float_scale, has_global_scale, place};
use crate::measure::{FloatStatistics, Measured};
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC015",
    name: "scale-placeholder",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "all scales of a weight are exactly 1",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
The scales of a weight, sixteen or more, are not all exactly 1 while its codes vary (full depth knows the codes; a weight of zeros may
have such scales), nor is the global scale of NVFP4.

## Why it matters
`torch.ones` is what a module's scales are before anything is loaded into them. Saved that way, codes are read as weights many times too
large: `capital capital capital`, perplexity in the millions.

## What to do
Quantize the module again, or take the scales from the checkpoint that this one was made from.

## References
- vllm-project/vllm#54722, vllm-project/vllm#45212
";

/// Fewer may be 1 by chance, or by design: one scale for a whole matrix often is.
const LEAST: u64 = 16;

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    for tensor in &subject.model.quantized {
        let Some(weight) = measured.get(&tensor.module) else {
            continue;
        };
        let is_constant = weight.codes.as_ref().is_some_and(|c| c.n_used() < 2);
        let is_one = |floats: &FloatStatistics| {
            floats.only() == Some(1.0) && floats.negative.count == 0 && !is_constant
        };
        let (scales, supers) = (&weight.scales.scales, &weight.scales.supers);
        let (role, what) = if has_global_scale(tensor) && is_one(supers) {
            (Role::SuperScale, "the global scale is exactly 1".to_owned())
        } else if has_float_scale(tensor) && scales.n >= LEAST && is_one(scales) {
            (
                Role::Scale,
                format!("all {} scales are exactly 1", scales.n),
            )
        } else {
            continue;
        };
        findings
            .add(place(tensor, role, None), what)
            .instead("scales of this weight", "1 everywhere")
            .help("quantize this module again, or take its scales from the source");
    }
}
