//! QC007: the checkpoint is quantized in a way that is not known here.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC007",
    name: "format-unknown",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "the checkpoint is quantized in a way that is not known here, so that it was not audited",
    doc: DOC,
    check: Check::Problems(&["unsupported_format"]),
};

const DOC: &str = "\
## What it checks
The method that the configuration announces, and every weight in a dtype that dense models do not use, belong to a format that this
version reads.

## Why it matters
What is not read is not audited: this report says nothing about these weights. Where the format is one that exists, other readers may know
it; where `quant_method` was misspelled, they say `Unknown quantization method: ... Must be one of [...]`.

## What to do
Look at the spelling of `quant_method` and at the version of the format. A weight of 8-bit codes without scale and configuration needs a
configuration.

## References
- vllm-project/vllm#45132, ggml-org/llama.cpp#23124
";
