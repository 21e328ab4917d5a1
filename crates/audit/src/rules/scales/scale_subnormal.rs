//! SC013: a scale has lost bits.

use safequant_schemes::{QuantizedTensor, Role};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC013",
    name: "scale-subnormal",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "a scale is so small that its dtype holds fewer bits of it",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
No scale is subnormal in the dtype it is stored in: below 2^-14 in F16, below 2^-6 in E4M3.

## Why it matters
A subnormal number has fewer bits, down to one, so all weights of the group are off by up to a third; kernels that flush subnormals make
zeros of them. Rows of zeros have such scales too, which does no harm: hence a note. Where most scales are subnormal, as E4M3 scales
without a second level can be, the weight has lost accuracy.

## What to do
Store scales in BF16 or F32, or quantize with a scale for the whole matrix (NVFP4).

## References
- ModelCloud/GPTQModel#2722, casper-hansen/AutoAWQ#519
- formats: gptq, section 12
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let floats = &scales.scales;
    if let Some(first) = floats.subnormal.first {
        findings
            .add(
                place(tensor, Role::Scale, Some(first)),
                format!(
                    "{} of {} scales are subnormal",
                    floats.subnormal.count, floats.n
                ),
            )
            .instead(
                "scales that their dtype holds in full",
                floats
                    .smallest
                    .map_or_else(String::new, |s| format!("as little as {s:e}")),
            )
            .help("a wider dtype of scales, or a second-level scale, keeps their bits");
    }
}
