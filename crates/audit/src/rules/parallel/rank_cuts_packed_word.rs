//! TP003: a tensor-parallel rank begins inside a packed word.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP003",
    name: "rank-cuts-packed-word",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a tensor-parallel rank begins inside a packed word",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): where codes or zero points are packed along the axis that is cut, a rank's share is a whole number of words.

## Why it matters
Runtimes cut stored tensors, not codes: `The output size is not aligned with the quantized weight shape. This can be caused by too large tensor
parallel size.`

## What to do
Use a smaller degree, pad the features to a multiple of the pack factor times the degree, or keep the module on every rank.

## References
- vllm-project/vllm#1816, vllm-project/vllm#5675
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Word);
}
