//! QC004: the configuration says something of a module that its tensors deny.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC004",
    name: "config-contradicts-tensors",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the configuration says something of a module that its tensors deny",
    doc: DOC,
    check: Check::Problems(&["contradiction"]),
};

const DOC: &str = "\
## What it checks
Bits, group size, symmetry, format and strategy that the configuration states for a module are those its tensors have; no module that the
configuration leaves dense is quantized, and the reverse.

## Why it matters
Runtimes build the model from the configuration, and the tensors do not fit:
`ValueError: There is no module or parameter named '...weight_packed'`, `size mismatch`, or, where the sizes agree by chance, weights that
mean something else.

## What to do
If one module contradicts, its entry in the configuration (an override, an ignore list) is usually wrong; if all do, the global value is.

## References
- vllm-project/vllm#46569, vllm-project/llm-compressor#2234, casper-hansen/AutoAWQ#589
";
