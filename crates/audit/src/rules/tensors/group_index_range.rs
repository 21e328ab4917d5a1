//! QT061: a group index names a group that has no scale.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT061",
    name: "group-index-range",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a group index names a group that has no scale",
    doc: DOC,
    check: Check::Problems(&["group_index_range"]),
};

const DOC: &str = "\
## What it checks
Every entry of `g_idx` is the number of a group that has scales and zero points.

## Why it matters
Kernels look scales up by this number without a check: an entry outside reads other memory (`CUDA error: an illegal memory access was
encountered`) or another module's scales. Negative entries mean the last groups to some readers and nothing to others.

## What to do
Take the tensor from the original checkpoint.

## References
- vllm-project/vllm#7374, vllm-project/llm-compressor#2616
";
