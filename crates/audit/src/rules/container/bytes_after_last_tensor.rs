//! ST002: a file goes on after its last tensor.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST002",
    name: "bytes-after-last-tensor",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a file goes on after its last tensor",
    doc: DOC,
    check: Check::Problems(&["container_trailing"]),
};

const DOC: &str = "\
## What it checks
A safetensors file ends with the last byte of its last tensor.

## Why it matters
Two files were written into one, a download was resumed at the wrong place, or something was appended. The official reader, and with it
transformers, vLLM and candle, refuses the file: `Error while deserializing header: incomplete metadata, file not fully covered` (before
0.6 `MetadataIncompleteBuffer`); MLX, gguf-py and tinygrad read it, and whoever hides something there counts on that.

## What to do
Fetch the file again. If every tensor is known to be right, `safequant reshard SRC -o DST` of a file that was cut to the announced length
writes it anew.

## References
- huggingface/safetensors, `SafeTensors::read_metadata`
- safetensors/safetensors#401
";
