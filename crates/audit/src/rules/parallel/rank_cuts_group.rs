//! TP001: a group of input features straddles two tensor-parallel ranks.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP001",
    name: "rank-cuts-group",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a group of input features straddles two tensor-parallel ranks",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): where a weight is cut along its input features (o, down), a rank's share is a whole number of groups.

## Why it matters
Scales belong to groups; a rank that begins inside one has no scale of its own for it. Runtimes find out after minutes of loading: `The input size is
not aligned with the quantized weight shape. This can be caused by too large tensor parallel size.`, `Weight input_size_per_partition = 1792 is not
divisible by group_size = 128`, or a bare `AssertionError` in Marlin MoE.

## What to do
Use a smaller degree, quantize in smaller groups, pad the features, or keep the module on every rank. `safequant tp-plan SRC --tp 1,2,4,8,16`
shows which degrees work.

## References
- vllm-project/vllm#5675, vllm-project/vllm#11671, QwenLM/Qwen3#1485
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Group);
}
