//! IX008: several indexes, and none has the usual name.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "IX008",
    name: "index-ambiguous",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "several indexes, and none has the usual name",
    doc: DOC,
    check: Check::Problems(&["index_ambiguous"]),
};

const DOC: &str = "\
## What it checks
A directory has one `*.safetensors.index.json`, or one of them is `model.safetensors.index.json`.

## Why it matters
Every reader looks for the name that it knows: transformers says `Error no file named model.safetensors found in directory`, diffusers asks
for a `variant`. An audit of such a directory looks at all files as if there were no index.

## What to do
Give the path of the index that is meant, or keep the variants in folders of their own.

## References
- specs/container/checkpoint.md, C3
";
