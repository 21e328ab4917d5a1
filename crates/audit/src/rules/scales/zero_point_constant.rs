//! SC096: zero points are stored, and are all those of symmetric codes.

use safequant_schemes::{Code, QuantizedTensor, Role};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC096",
    name: "zero-point-constant",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "all zero points are the middle of the range: the weight is symmetric",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Stored zero points of a weight, sixteen or more, are not all 2^(bits - 1).

## Why it matters
They say nothing, and cost bytes and speed: runtimes choose slower kernels, or none (`Unsupported quant: sym=False`), for a weight that is symmetric
after all.

## What to do
Declare the weight symmetric, and leave the zero points out where the format allows it.

## References
- vllm-project/vllm#33200, #17862
- formats: gptq, section 11, clause 5; awq, section 9
";

/// Fewer may agree by chance.
const LEAST: u64 = 16;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let Code::Integer { bits, .. } = tensor.scheme.code else {
        return;
    };
    let middle = 1_i32 << bits.saturating_sub(1).min(30);
    if scales.zeros.n >= LEAST && scales.zeros.only() == Some(middle) {
        findings
            .add(
                place(tensor, Role::ZeroPoint, None),
                format!("all {} zero points are {middle}", scales.zeros.n),
            )
            .instead(
                "a symmetric weight without zero points",
                format!("{middle} everywhere"),
            )
            .help("declare the weight symmetric: more kernels take it");
    }
}
