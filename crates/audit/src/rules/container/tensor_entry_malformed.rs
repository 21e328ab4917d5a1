//! ST008: an entry of a header lacks a field, or a field has the wrong form.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST008",
    name: "tensor-entry-malformed",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "an entry of a header lacks a field, or a field has the wrong form",
    doc: DOC,
    check: Check::Problems(&["container_field", "container_field_missing"]),
};

const DOC: &str = "\
## What it checks
The entry of every tensor is an object with `dtype` (a string), `shape` (a list of plain non-negative integers) and `data_offsets` (two of
them). In GGUF files: at most four dimensions, whose product is below 2^63.

## Why it matters
The official reader refuses with ``invalid JSON in header: missing field `dtype` `` or `invalid type: floating point`. It accepts an entry
that is written as a list, which no other reader does.

## What to do
Write the file anew with its own tool.

## References
- huggingface/safetensors, `TensorInfo`
";
