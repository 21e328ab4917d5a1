//! SC051: a power of two that is none.

use safequant_schemes::{E8M0Rule, QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC051",
    name: "e8m0-not-a-number",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a scale in E8M0 is the byte 255, which is NaN",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
No scale in E8M0 is the byte 255.

## Why it matters
By OCP's specification it is NaN, so the whole group is. Readers disagree: torch makes NaN of it, `exp2` infinity, gpt-oss' `ldexp` a
finite number of 2^128. What one runtime hides makes `!!!!` in the next.

## What to do
Quantize the module again; all tools write 0 for a group of zeros.

## References
- sgl-project/sglang#26701
- formats: nvfp4-mxfp4, sections 5 and 9
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let ScaleCoding::E8M0(rule) = tensor.scheme.scale else {
        return;
    };
    let floats = &scales.scales;
    let (count, first) = match rule {
        E8M0Rule::Ocp | E8M0Rule::TopIsInfinity | E8M0Rule::ExponentField => (
            floats.nan.count + floats.infinite.count,
            floats.nan.first.or(floats.infinite.first),
        ),
        // There 255 is a number, and the largest.
        E8M0Rule::Half => {
            let top = floats
                .largest
                .filter(|&largest| largest >= rule.decode(255));
            (
                u64::from(top.is_some()),
                floats.largest_at.filter(|_| top.is_some()),
            )
        }
    };
    if count > 0 {
        findings
            .add(
                place(tensor, Role::Scale, first),
                format!("{count} of {} scales are the byte 255", floats.n),
            )
            .instead("an exponent of 0 to 254", "255, which is NaN")
            .help("quantize this module again");
    }
}
