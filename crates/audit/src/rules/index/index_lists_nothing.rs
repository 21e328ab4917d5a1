//! IX009: the index has no `weight_map`, or an empty one.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "IX009",
    name: "index-lists-nothing",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the index has no `weight_map`, or an empty one",
    doc: DOC,
    check: Check::Problems(&["index_no_weight_map"]),
};

const DOC: &str = "\
## What it checks
An index has a `weight_map` that lists at least one tensor.

## Why it matters
transformers says `KeyError: 'weight_map'`, or loads a model of which every weight is new: `Some weights were not initialized from the model
checkpoint and are newly initialized`.

## What to do
Remove the index if the model is one file. Otherwise `safequant reshard SRC -o DST` writes one from the shards.

## References
- huggingface/transformers, `get_checkpoint_shard_files`
";
