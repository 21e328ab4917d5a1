//! TP004: features do not divide among the tensor-parallel ranks.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP004",
    name: "features-do-not-divide",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "features do not divide among the tensor-parallel ranks",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): the features along which a weight is cut divide among the ranks. (Embeddings and head are left out: runtimes
pad the vocabulary.)

## Why it matters
`AssertionError: 4304 is not divisible by 16`, from deep inside a runtime's model code.

## What to do
Use a degree that divides, or keep the module on every rank.

## References
- sgl-project/sglang#10852, QwenLM/Qwen3-VL#831
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Features);
}
