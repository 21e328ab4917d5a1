//! RT005: the runtime asked for does not take scales, or a model, of this dtype, or scales that divide.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT005",
    name: "dtype-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for does not take scales, or a model, of this dtype, or scales that divide",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The runtimes asked for take scales of the dtype in which they are stored, multiply or divide by them as the file means it, and a model of the dtype that `config.json` gives. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Kernels fix the dtype of scales and activations: `torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]`,
`unsupported safetensor dtype`, or NaN where a model of BF16 runs in half precision. A
`weight_scale_inv` that is a divisor (GPTQModel's FP8) loads everywhere else and gives weights that are off by the square of the scale.

## What to do
Convert with the runtime's dtype of scales, and mind what a narrower exponent range loses (rule SC080).

## References
- vllm-project/vllm#1114, vllm-project/vllm#37464, casper-hansen/AutoAWQ#498
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Dtype);
}
