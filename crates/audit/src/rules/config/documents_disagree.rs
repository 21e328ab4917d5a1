//! QC001: two documents state the same parameter differently.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC001",
    name: "documents-disagree",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "two documents state the same parameter differently",
    doc: DOC,
    check: Check::Problems(&["configs_disagree"]),
};

const DOC: &str = "\
## What it checks
`config.json`, `quantize_config.json`, `quant_config.json`, `hf_quant_config.json` and a file's own metadata agree in all parameters on which
the meaning of the tensors depends: bits, group size, format, algorithm, block size.

## Why it matters
Readers look at these documents in different orders, so that one checkpoint is two models. A document that was left over from an earlier
quantization makes runtimes refuse what is right (`ValueError: ... does not match the quantization method specified in the model config`)
or read what is there with the wrong group size.

## What to do
Decide by the tensors which document is right, and remove or correct the other.

## References
- vllm-project/vllm#45132, vllm-project/vllm#25706, sgl-project/sglang#18546
";
