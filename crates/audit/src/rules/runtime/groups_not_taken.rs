//! RT003: the runtime asked for does not take this group size, block size or granularity.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT003",
    name: "groups-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for does not take this group size, block size or granularity",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The runtimes asked for take scales per tensor, channel, group or block as they are here, and groups or blocks of this size. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Kernels are built for a few sizes: `Marlin does not support group_size = 16. Only group_sizes = [-1, 32, 64, 128] are supported.`,
`Invalid AFQ group size 256.`, a bare `AssertionError` in llama.cpp's converter.

## What to do
Quantize with a group size that the runtime takes, or convert to a convention in which it takes this one.

## References
- vllm-project/vllm#5675, sgl-project/sglang#26107
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Groups);
}
