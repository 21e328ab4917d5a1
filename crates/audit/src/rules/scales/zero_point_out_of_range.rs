//! SC095: a zero point lies outside the codes.

use safequant_schemes::{Code, QuantizedTensor, Role};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC095",
    name: "zero-point-out-of-range",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a zero point is no code",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Every stored zero point is one of the codes, 0 to 2^bits - 1 in their unsigned form.

## Why it matters
Writers clamp zero points to the codes, so another number comes from a lane that wrapped: GPTQ's first version stores the zero minus one, so that 0 becomes the largest lane and is
read as 2^bits by some (`57,276 zeros turned from 0 to 15`), as 0 by others. One reader's answers are fine, the other's are one repeated token.

## What to do
Convert to GPTQ v2, AWQ or compressed-tensors, which store the zero as it is, from a reader that had it right.

## References
- ModelCloud/GPTQModel#2350, #2281, vllm-project/vllm#38966, intel/auto-round#1434
- formats: gptq, section 4; awq, section 9; compressed-tensors, section 11, clause 3
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let Code::Integer { bits, .. } = tensor.scheme.code else {
        return;
    };
    let outside: Vec<_> = scales.zeros.outside(bits).collect();
    let Some((zero, first)) = outside.first() else {
        return;
    };
    let count: u64 = outside.iter().map(|(_, places)| places.count).sum();
    findings
        .add(
            place(tensor, Role::ZeroPoint, first.first),
            format!(
                "{count} of {} zero points are no {bits}-bit codes",
                scales.zeros.n
            ),
        )
        .instead(
            format!("0 to {}", (1_u64 << bits.min(32)) - 1),
            zero.to_string(),
        )
        .help("convert to a format that stores zero points as they are");
}
