//! RT004: the runtime asked for does not take zero points of this kind, or needs some.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT004",
    name: "zero-points-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for does not take zero points of this kind, or needs some",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The runtimes asked for take symmetric codes, stored integer zero points or float offsets, whichever is here. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Symmetric kernels drop zero points: an asymmetric GPTQ checkpoint is refused (`Unsupported quantization config: bits=4, sym=False`), or, where
`sym` is wrong, loads and answers nonsense (`!!!!!!`).

## What to do
Convert to a convention in which the runtime takes zero points (AWQ, or compressed-tensors packed), or quantize symmetrically.

## References
- vllm-project/vllm#26092, ModelCloud/GPTQModel#2281
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::ZeroPoints);
}
