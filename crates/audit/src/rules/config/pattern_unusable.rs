//! QC015: a pattern of the configuration does not compile or needs too many steps.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC015",
    name: "pattern-unusable",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a pattern of the configuration does not compile or needs too many steps",
    doc: DOC,
    check: Check::Problems(&["pattern"]),
};

const DOC: &str = "\
## What it checks
Regular expressions and globs of targets, ignore lists and per-module rules compile, and a module name is decided within a bounded number
of steps.

## Why it matters
Readers compile these patterns when they load: `re.error: nothing to repeat at position 0` is a glob such as `*.mlp.*` where a regular
expression is expected. Patterns from others that need exponential time stop a server.

## What to do
Write `re:.*mlp.*` for a regular expression, or `*.mlp.*` where the format takes globs (ModelOpt).

## References
- vllm-project/llm-compressor#1652, vllm-project/compressed-tensors#866
";
