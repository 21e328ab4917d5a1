//! RT002: the runtime asked for does not take codes of this width or kind.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT002",
    name: "codes-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for does not take codes of this width or kind",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The runtimes asked for take codes of this kind (bits, float format) in this convention. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Kernels exist for some widths only. vLLM says `Unsupported quantization config: bits=3, sym=True` or `Unsupported num_bits = 3`, transformers
`Only support quantization to [2,3,4,8] bits`, candle `unknown dtype for tensor 23`.

## What to do
Quantize to a width that the runtime takes, or choose a convention in which it takes this one: `safequant convert SRC -o DST --to CONVENTION`.

## References
- vllm-project/vllm#17862, ml-explore/mlx-lm#727
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Codes);
}
