//! ST005: a header, an index or a manifest is no valid JSON.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST005",
    name: "json-malformed",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a header, an index or a manifest is no valid JSON",
    doc: DOC,
    check: Check::Problems(&[
        "container_json",
        "container_not_utf8",
        "container_json_number",
        "container_json_depth",
    ]),
};

const DOC: &str = "\
## What it checks
The header of a safetensors file and the index are one JSON object each, in UTF-8, without a byte order mark, comments, trailing commas or
NUL padding, not nested beyond 127 levels, and every number in them fits a double.

## Why it matters
Hand-edited headers and home-made writers break this rule. The official reader refuses with `invalid JSON in header` or `invalid UTF-8 in
header` (before 0.6 `InvalidHeaderDeserialization`, `InvalidHeader`), Python with `json.decoder.JSONDecodeError`; MLX accepts NUL padding
and a byte order mark, and huggingface_hub skips bytes that are no UTF-8, so that one file means different things to different readers.

## What to do
The message says at which byte of the JSON text something else was expected. Write the file anew with its own tool.

## References
- huggingface/safetensors, `SafetensorError::InvalidHeaderDeserialization`
- google-ai-edge/LiteRT#9255
";
