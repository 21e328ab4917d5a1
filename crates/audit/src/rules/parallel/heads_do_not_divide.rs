//! TP005: attention heads do not divide among the tensor-parallel ranks.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP005",
    name: "heads-do-not-divide",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "attention heads do not divide among the tensor-parallel ranks",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): it divides `num_attention_heads`, and divides `num_key_value_heads` or is a multiple of it (ranks then hold
copies).

## Why it matters
Runtimes cut attention by heads: `Total number of attention heads (28) must be divisible by tensor parallel size (8).`

## What to do
Use a degree that divides the heads, or combine a smaller one with pipeline parallelism.

## References
- vllm-project/vllm#1816, vllm-project/vllm#52997
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Heads);
}
