//! ST014: a document beside the weights is no valid JSON, or has a key twice.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST014",
    name: "document-not-json",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a document beside the weights is no valid JSON, or has a key twice",
    doc: DOC,
    check: Check::Problems(&["config_json"]),
};

const DOC: &str = "\
## What it checks
Every document that says how the checkpoint is quantized (`config.json`, `quantize_config.json`, `hf_quant_config.json`, descriptions
inside the weights files) is valid JSON and has no key twice in one object.

## Why it matters
transformers and vLLM say `It looks like the config file at '...' is not a valid JSON file.`, Python says `json.decoder.JSONDecodeError`.
Of a key that occurs twice every reader takes the last, and whoever looks at the document sees the first. `NaN` and `Infinity` are
Python's, not JSON's.

## What to do
Correct the document at the place that the message names.

## References
- huggingface/transformers, `PretrainedConfig.get_config_dict`
";
