//! TP011: a weight cannot be cut along the axis that runtimes cut.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP011",
    name: "weight-cannot-be-cut",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a weight cannot be cut along the axis that runtimes cut",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): no weight that runtimes cut has blocks that straddle rows, groups that run down columns, nested scales, a rotation
or a sparse layout in the way.

## Why it matters
There is no slice of such a weight that means the same numbers: `TP with quantization is not supported`, or shapes that do not match.

## What to do
Keep the module on every rank, or convert to a convention whose groups lie in rows.

## References
- huggingface/diffusers#14544, vllm-project/vllm#29701
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Whole);
}
