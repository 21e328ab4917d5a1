//! SC011: a scale is zero.

use safequant_schemes::QuantizedTensor;

use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Place, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC011",
    name: "scale-zero",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a scale is zero: all weights of its group are",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
No stored scale is zero. (E8M0 and tables of scales cannot be.)

## Why it matters
Where the group's weights were not zero, they are now: a scale too small for F16 or E4M3 was flushed. Runtimes that divide by the scale
say `unsupported scale value (0.000000)` or make NaN of it.

## What to do
Quantize with a wider dtype of scales, or with a second-level scale; a group of zeros should have any positive scale.

## References
- NVIDIA/Model-Optimizer#1382, vllm-project/vllm#52501
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let floats = &scales.scales;
    if let Some(first) = floats.zero.first {
        findings
            .add(
                Place::module(&*tensor.module).entry(first),
                format!("{} of {} scales are zero", floats.zero.count, floats.n),
            )
            .instead("positive numbers", "0")
            .help("quantize this module again with scales of a wider dtype");
    }
}
