//! QT001: a tensor of a quantized weight is missing.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT001",
    name: "companion-missing",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a quantized weight lacks a tensor that its format needs",
    doc: DOC,
    check: Check::Problems(&["missing_part"]),
};

const DOC: &str = "\
## What it checks
Every quantized weight has all tensors of its format: codes, scales, zero points, global scales, descriptors. Which these are follows
from the other tensors and the configuration.

## Why it matters
Runtimes check that all parameters were loaded only for models that are not quantized. What is missing keeps the contents of
`torch.empty`, or zeros: the server is healthy, and the model answers `!!!!` or calls the wrong tools. Others say
`KeyError: 'model.layers.0.mlp.down_proj.weight_scale_inv'` or
`Following weights were not initialized from checkpoint`.

## What to do
Fetch the checkpoint again, or quantize the module again. A scale cannot be made up.

## References
- vllm-project/vllm#34930, vllm-project/vllm#57108, sgl-project/sglang#26772, ModelCloud/GPTQModel#3077
";
