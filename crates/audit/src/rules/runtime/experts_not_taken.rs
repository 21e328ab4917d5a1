//! RT009: experts are laid out as the runtime asked for does not read them.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT009",
    name: "experts-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "experts are laid out as the runtime asked for does not read them",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Experts are modules of their own, or one stack, whichever the runtimes asked for read in this convention. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
`KeyError: 'layers.0.block_sparse_moe.experts.w2_weight'`, or only `not found in params_dict` warnings and experts that stay uninitialized.

## What to do
Write the experts in the other layout.

## References
- sgl-project/sglang#37679, vllm-project/vllm#54052, vllm-project/llm-compressor#2464
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Experts);
}
