//! ST015: something is larger than an audit reads.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST015",
    name: "beyond-limits",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "something is larger than an audit reads",
    doc: DOC,
    check: Check::Problems(&[
        "document_too_large",
        "sidecar_too_large",
        "too_many_shards",
        "too_many_entries",
        "tensor_too_large",
        "too_large",
    ]),
};

const DOC: &str = "\
## What it checks
Documents, the index, descriptions that are stored as tensors, the number of shards and of files beside them, the depth of folders, and
sizes that must fit memory addresses stay within the limits (specs/container/checkpoint.md).

## Why it matters
No checkpoint of a usual tool comes near these limits; what does is damaged or made to exhaust memory. huggingface_hub refuses an index
above 10 MiB.

## What to do
If it is meant, point the audit to the folder with the weights alone, or move away what is no part of the model.

## References
- huggingface/huggingface_hub, `_load_sharded_checkpoint`
";
