//! SC032: an activation scale is zero, negative or no number.

use super::common::{INPUTS, split};
use crate::measure::Measured;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC032",
    name: "activation-scale-not-positive",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "an activation scale is zero, negative, infinite or NaN",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Every scale of a module's inputs (`input_scale`, `input_global_scale`, `activation_scale`) is a positive, finite number.

## Why it matters
Activations are divided by it: zero makes infinity of them, NaN makes NaN. Typical of experts that no token reached during calibration,
so that it shows for some prompts only: pad tokens, `!!!!`. Some stop with `activation scaling factor not positive`.

## What to do
Calibrate again with samples that reach the module, or use dynamic activation scales, which need none.

## References
- NVIDIA/Model-Optimizer#1265, #1382, vllm-project/vllm#45212, vllm-project/llm-compressor#2826
- formats: fp8, section 3; nvfp4-mxfp4, section 9, clause 5
";

fn check(_: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    for (name, floats) in &measured.small {
        let Some((module, _)) = split(name, &INPUTS) else {
            continue;
        };
        let kinds = [
            ("NaN", floats.nan),
            ("infinite", floats.infinite),
            ("zero", floats.zero),
            ("negative", floats.negative),
        ];
        for (kind, places) in kinds {
            if let Some(first) = places.first {
                findings
                    .add(
                        Place::module(module).tensor(&**name).entry(first),
                        format!(
                            "{} of {} activation scales are {kind}",
                            places.count, floats.n
                        ),
                    )
                    .instead("a positive number", kind)
                    .help("calibrate again with samples that reach this module");
            }
        }
    }
}
