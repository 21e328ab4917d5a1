//! RT006: a weight's features are no multiple of what the runtime's kernels need.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT006",
    name: "shape-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a weight's features are no multiple of what the runtime's kernels need",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Output and input features of every quantized weight are multiples of what the kernels of the runtimes asked for need. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Kernels work on tiles: `Weight output_size_per_partition = 6288 is not divisible by min_thread_n = 64`, `size_n = 8608 is not divisible by
tile_n_size = 64`, `hidden_size must be divisible by 256`.

## What to do
Leave the module dense (`--ignore`), pad it, or choose a convention whose kernels take the shape.

## References
- sgl-project/sglang#35792, vllm-project/vllm#25292
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Shape);
}
