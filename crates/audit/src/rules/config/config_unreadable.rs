//! QC009: a document is no JSON, or has a key twice.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC009",
    name: "config-unreadable",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a document is no JSON, has a key twice, or is too large to be one",
    doc: DOC,
    check: Check::Problems(&["config_json", "sidecar_too_large"]),
};

const DOC: &str = "\
## What it checks
The JSON documents beside the weights can be parsed, no object in them has a key twice, and none is larger than any document of its kind.

## Why it matters
Nothing can be said of weights whose configuration cannot be read. Python takes the last of two equal keys and other readers the first, so
that both load another model. `json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)` is what an interrupted download
or an error page in place of the document looks like.

## What to do
Fetch the document again, or correct it by hand.

## References
- huggingface/huggingface_hub#4725, lyogavin/airllm#137
";
