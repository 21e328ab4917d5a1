//! ST004: a header claims more bytes than any reader accepts.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST004",
    name: "header-too-large",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a header claims more bytes than any reader accepts",
    doc: DOC,
    check: Check::Problems(&["container_header_too_large"]),
};

const DOC: &str = "\
## What it checks
The length word of a safetensors file is at most 100,000,000, the limit of the official reader. For a GGUF file the same limit holds for
keys and tensors together.

## Why it matters
Nearly always the first eight bytes are no length at all: the file is damaged, encrypted or of a kind that nobody knows. The official
reader says `Error while deserializing header: header too large` (before 0.6 `HeaderTooLarge`). A reader without the limit would ask for
that much memory.

## What to do
Look at the first bytes (`xxd FILE | head -2`): a safetensors file has `{` as its ninth. If it does, and the header really is that long,
split the checkpoint into more shards.

## References
- huggingface/safetensors, `MAX_HEADER_SIZE`
";
