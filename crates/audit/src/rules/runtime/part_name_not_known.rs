//! RT010: a part of a weight has a name that the runtime asked for does not look for.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT010",
    name: "part-name-not-known",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a part of a weight has a name that the runtime asked for does not look for",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The parts of every quantized weight (codes, scales, zero points) are named as the runtimes asked for look for them. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
A scale of another name is dropped, and weights become 200 times too large; or the load ends with `KeyError: ...weight_scale_inv`. In the wild:
`weight_scale_inv`, `weight_scale`, `scale_weight`, `.scale`, `scale_inv`, `weight_quantizer.scale`.

## What to do
Write the usual names: `safequant convert SRC -o DST --to CONVENTION`.

## References
- unslothai/unsloth#6200, sgl-project/sglang#30234, vllm-project/vllm#32859
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Names);
}
