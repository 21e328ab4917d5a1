//! SC010: a scale is NaN or infinite.

use safequant_schemes::QuantizedTensor;

use crate::measure::{Occurrences, ScaleStatistics};
use crate::{Check, Findings, Place, Rule, Severity};

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
Every stored scale, second-level scale, and float zero point is a finite number.

## Why it matters
One such scale makes its whole group NaN, and from there everything the model says: answers of `!!!!`, NaN logits, often only for prompts
that touch one row of the vocabulary or one expert.

## What to do
Quantize the module again. All-zero groups are what most often becomes 0/0: their scale should be any positive number.

## References
- vllm-project/compressed-tensors#832, intel/auto-round#1908, ModelCloud/GPTQModel#1531
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    for (what, floats) in [
        ("scale", &scales.scales),
        ("second-level scale", &scales.supers),
        ("offset", &scales.offsets),
    ] {
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
                    Place::module(&*tensor.module).entry(first),
                    format!("{count} of {} {what}s are {kind}", floats.n),
                )
                .instead("finite numbers", kind)
                .help(
                    "quantize this module again; a group of zeros needs a scale that is not zero",
                );
        }
    }
}
