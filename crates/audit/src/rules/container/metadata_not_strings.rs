//! ST007: `__metadata__` is not a map of strings to strings.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST007",
    name: "metadata-not-strings",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "`__metadata__` is not a map of strings to strings",
    doc: DOC,
    check: Check::Problems(&["container_metadata"]),
};

const DOC: &str = "\
## What it checks
`__metadata__`, if it is there and not null, maps strings to strings.

## Why it matters
Numbers, lists and nested objects in it are the most common mistake of home-made writers. The official reader refuses the whole file:
``invalid JSON in header: invalid type: integer `1`, expected a string``; others read it.

## What to do
Write the value as a string (JSON within a string is what others do).

## References
- huggingface/safetensors, `Metadata`
";
