//! ST001: a file ends before the bytes that its header announces.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST001",
    name: "file-truncated",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a file ends before the bytes that its header announces",
    doc: DOC,
    check: Check::Problems(&[
        "container_too_small",
        "container_header_beyond_file",
        "container_truncated",
    ]),
};

const DOC: &str = "\
## What it checks
Every weights file is as long as its header says: eight bytes for the length, the header itself, and all tensors. For a GGUF file the same
holds of its keys, its list of tensors and its data.

## Why it matters
A download or copy that was interrupted leaves such a file. The official reader refuses it: `Error while deserializing header: incomplete
metadata, file not fully covered`, `invalid header length` or `header too small` (before 0.6 `MetadataIncompleteBuffer`,
`InvalidHeaderLength`, `HeaderTooSmall`); readers that look at headers only, and llama.cpp until it maps the data, do not notice: `tensor
data is not within the file bounds, model is corrupted or incomplete`.

## What to do
Fetch the file again and compare its length, or its SHA-256, with what the hub shows.

## References
- huggingface/safetensors, `SafeTensors::read_metadata`
- lyogavin/airllm#137, codefuse-ai/MFTCoder#20
";
