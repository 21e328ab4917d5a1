//! QT005: two modules claim a tensor, or a weight is stored twice.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT005",
    name: "weight-stored-twice",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a weight is stored twice, or a tensor belongs to two weights",
    doc: DOC,
    check: Check::Problems(&["claimed_twice"]),
};

const DOC: &str = "\
## What it checks
A weight is stored once: quantized or dense, in one format. No tensor is part of two weights.

## Why it matters
A dense `weight` beside the tensors of a quantized one, or the tensors of two formats under one module, come from merging two
checkpoints or from converting in place. Which of the two is loaded depends on the reader; some stop with
`KeyError: 'model.layers.0.mlp.up_proj.weight'`.

## What to do
Decide which one is meant and remove the other.

## References
- syv-ai/qwen38-27b-rtx3090#123, ModelCloud/GPTQModel#1788
";
