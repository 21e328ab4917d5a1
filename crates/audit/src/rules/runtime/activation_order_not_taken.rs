//! RT007: groups are spread by activation order, which the runtime asked for does not take.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT007",
    name: "activation-order-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "groups are spread by activation order, which the runtime asked for does not take",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No weight has a group index that means something (`desc_act`, `actorder: group`) where the runtimes asked for need groups that lie together. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
`GPTQ group activation ordering (desc_act=True) is no longer supported`, `Models with non-contiguous group indices (g_idx) are not currently
supported`; converters that ignore the index give plausible nonsense.

## What to do
Quantize with static activation order (`actorder: weight`), which needs no index, or dequantize and quantize again.

## References
- vllm-project/vllm#8741, ml-explore/mlx-lm#730, vllm-project/llm-compressor#2616
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::ActivationOrder);
}
