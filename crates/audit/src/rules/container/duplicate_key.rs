//! ST006: a header or an index has the same key twice.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST006",
    name: "duplicate-key",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a header or an index has the same key twice",
    doc: DOC,
    check: Check::Problems(&["container_duplicate_key"]),
};

const DOC: &str = "\
## What it checks
No object of a header or an index has two members of one name, after escapes such as `\\u0061` are resolved: neither two tensors of a name,
nor two `__metadata__`, nor a field of a tensor twice.

## Why it matters
Readers take the last one without a word, and some take the first. Of two tensors of one name only one is ever checked, so that a file can
show one thing to a scanner and another to a runtime. The official reader refuses a repeated field: ``duplicate field `shape` ``.

## What to do
Find out which of the two is meant, and write the file with a tool that writes each once. Files like this are not written by any of the
usual tools: do not trust it before you know where it comes from.

## References
- safetensors/safetensors#401, QuintinShaw/openasr#73
";
