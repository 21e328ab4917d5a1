//! ST009: a dtype or a ggml type that nobody knows.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST009",
    name: "dtype-unknown",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a dtype or a ggml type that nobody knows",
    doc: DOC,
    check: Check::Problems(&["container_unknown_dtype"]),
};

const DOC: &str = "\
## What it checks
Every dtype is one of the twenty-two that safetensors 0.8 spells, exactly as it spells them; in GGUF files one of the types that ggml has
today.

## Why it matters
`F8_E4M3FN` does not exist (it is `F8_E4M3`), nor do `I4`, `U4` and `float16`. The official reader refuses the whole file: ``invalid JSON
in header: unknown variant `F8_E4M3FN`, expected one of``. llama.cpp: `has invalid ggml type`. A dtype that came with a later version
needs that version.

## What to do
Correct the spelling if it is one, or read the file with a newer version of its own tool.

## References
- huggingface/safetensors, `Dtype`
- ggml-org/llama.cpp, `ggml_type`
";
