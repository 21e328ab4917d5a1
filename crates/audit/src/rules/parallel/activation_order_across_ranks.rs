//! TP010: activation order spreads groups over all ranks of a weight that is cut along its inputs.

use crate::parallel::ObstacleKind;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "TP010",
    name: "activation-order-across-ranks",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "activation order spreads groups over all ranks of a weight that is cut along its inputs",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
For every degree asked for (`--tp`): no weight that is cut along its input features (o, down) has a group index that means something.

## Why it matters
With `desc_act` the input features of one group lie anywhere, so every rank needs all scales, and the input must be permuted across ranks. Runtimes
that cut scales by rows give right answers at TP=1 and nonsense at TP=2; others refuse: `GPTQ group activation ordering (desc_act=True) is no longer
supported`.

## What to do
Quantize without activation order or with the static kind (`actorder: weight`).

## References
- vllm-project/vllm#7374, vllm-project/vllm#8741
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, ObstacleKind::ActivationOrder);
}
