//! RT011: the runtime asked for refuses a setting, misses one, or does not look where it stands.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT011",
    name: "settings-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for refuses a setting, misses one, or does not look where it stands",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The quantization settings stand where the runtimes asked for look, have the keys they need and none of the values they refuse. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
`scale_dtype Extra inputs are not permitted`, `Cannot find any of ['activation_scheme'] in the model's quantization config.`, `Missing
'quant_algo' in quantization config`, or a model that is taken for one that is not quantized at all.

## What to do
Write the settings anew from the tensors: `safequant convert SRC -o DST --to CONVENTION` keeps the weights as they are where the convention is the same.

## References
- vllm-project/vllm#45132, sgl-project/sglang#18546
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Config);
}
