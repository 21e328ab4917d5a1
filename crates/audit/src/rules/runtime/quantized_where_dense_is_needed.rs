//! RT008: a module is quantized that the runtime asked for wants dense.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT008",
    name: "quantized-where-dense-is-needed",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a module is quantized that the runtime asked for wants dense",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Embeddings, the head and routers are dense where the runtimes asked for have no quantized form of them. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
A quantized head or embedding is not looked for: `KeyError: 'lm_head.weight'`, `There is no module or parameter named 'lm_head.qweight'`,
`Missing lm_head.weight`, `KeyError: layers.0.mlp.gate.qweight`; a router that is built quantized and stays zero gives degenerate text.

## What to do
Dequantize these modules: `safequant convert SRC -o DST --to CONVENTION --ignore lm_head`.

## References
- vllm-project/vllm#6758, vllm-project/vllm#45544, ml-explore/mlx-lm#1298
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::DenseParts);
}
