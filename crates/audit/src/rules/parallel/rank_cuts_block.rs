//! TP002: a block of scales straddles two tensor-parallel ranks.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP002",
    name: "rank-cuts-block",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a block of scales straddles two tensor-parallel ranks",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): a rank's share of output features (q, k, v, gate, up) or input features (o, down) is a whole number of blocks.

## Why it matters
`The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.`, `Weight input_size_per_partition = 192 is
not divisible by weight quantization block_k = 128.`

## What to do
Use a smaller degree, quantize per channel or in smaller blocks, or shard experts by expert instead. `safequant tp-plan SRC --tp 1,2,4,8,16` shows
which degrees work. (vLLM from 0.33 refines the grid of experts' blocks and takes some of these.)

## References
- vllm-project/vllm#25292, vllm-project/vllm#54178, sgl-project/sglang#26107
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::Block);
}
