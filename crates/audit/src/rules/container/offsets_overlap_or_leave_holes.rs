//! ST010: tensors overlap, or bytes between them belong to none.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST010",
    name: "offsets-overlap-or-leave-holes",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "tensors overlap, or bytes between them belong to none",
    doc: DOC,
    check: Check::Problems(&[
        "container_offsets_reversed",
        "container_overlap",
        "container_hole",
    ]),
};

const DOC: &str = "\
## What it checks
In the order of their offsets, every tensor begins where the one before ends, and none ends before it begins. In GGUF files padding to the
alignment lies between them.

## Why it matters
Two tensors that share bytes cannot both be right, and bytes of no tensor may hold anything. The official reader refuses with ``invalid
offset for tensor `NAME` `` (before 0.6 ``InvalidOffset(`NAME`)``); MLX, gguf-py and tinygrad read what the offsets say, so that a file
can hold things that only some readers see.

## What to do
Write the file anew with its own tool. Tied weights are stored once, under one name, and tied by the model's code.

## References
- huggingface/safetensors, `Metadata::validate`
- safetensors/safetensors#401, ml-explore/mlx#3364
";
