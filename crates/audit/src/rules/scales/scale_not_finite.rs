//! SC010: a scale is NaN or infinite.

use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::measure::{FloatStatistics, Occurrences, ScaleStatistics};
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC010",
    name: "scale-not-finite",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a scale is NaN or infinite",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Every stored scale, second-level scale, float zero point, and factor per input feature is a finite number; at full depth low-rank
factors as well. (Powers of two in a byte are another rule's.)

## Why it matters
One such scale makes its whole group NaN, and from there everything the model says: answers of `!!!!`, NaN logits, often only for
prompts that touch one row of the vocabulary or one expert.

## What to do
Quantize the module again. All-zero groups are what most often becomes 0/0: their scale should be any positive number.

## References
- vllm-project/compressed-tensors#832, intel/auto-round#1908 (17 NaN scales of 2.9 million), ModelCloud/GPTQModel#1531
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let is_power = matches!(tensor.scheme.scale, ScaleCoding::E8M0(_));
    let own = Some(&scales.scales).filter(|_| !is_power);
    let all: [(&str, Role, Option<&FloatStatistics>); 4] = [
        ("scale", Role::Scale, own),
        ("second-level scale", Role::SuperScale, Some(&scales.supers)),
        ("offset", Role::Offset, Some(&scales.offsets)),
        ("factor", Role::ColumnFactor, Some(&scales.factors)),
    ];
    for (what, role, floats) in all {
        let Some(floats) = floats else {
            continue;
        };
        for (kind, places) in [("NaN", floats.nan), ("infinite", floats.infinite)] {
            let Occurrences {
                count,
                first: Some(first),
            } = places
            else {
                continue;
            };
            findings
                .add(
                    place(tensor, role, Some(first)),
                    format!("{count} of {} {what}s are {kind}", floats.n),
                )
                .instead("finite numbers", kind)
                .help(
                    "quantize this module again; a group of zeros needs a scale that is not zero",
                );
        }
    }
}
