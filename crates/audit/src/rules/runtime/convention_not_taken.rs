//! RT001: the runtime asked for does not load this convention.

use crate::profile::Topic;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "RT001",
    name: "convention-not-taken",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the runtime asked for does not load this convention",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The runtimes asked for (`--runtime`) load the conventions that the quantized weights are stored in. Runs only for runtimes that are asked for; what each takes
stands in `crates/audit/profiles`, every line with its source.

## Why it matters
Each tool writes its own dialect, and a runtime knows some: `Unknown quantization method`, `Quant method is not yet supported`,
`Can not map tensor '...weight.absmax'`, `KeyError: 'U32'`, `Received 756 parameters not in model: ...qweight`. The usual advice is to use the dense
model, which users often do not have.

## What to do
Write the weights in a convention that the runtime loads: `safequant convert SRC -o DST --to CONVENTION`. Integer grids of GPTQ, AWQ,
compressed-tensors and MLX are often the same mathematics, and then the conversion is exact.

## References
- ggml-org/llama.cpp#12923, ml-explore/mlx-lm#727, vllm-project/llm-compressor#2087
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    super::report(subject, findings, Topic::Convention);
}
