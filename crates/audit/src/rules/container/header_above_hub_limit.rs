//! ST027: a header is longer than the Hub's tools read.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST027",
    name: "header-above-hub-limit",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a header is longer than the Hub's tools read",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
The header of every safetensors file has at most 25,000,000 bytes.

## Why it matters
The official reader takes four times as much; huggingface_hub and huggingface.js do not, and the Hub then shows neither tensors nor the
number of parameters: `SafetensorsParsingError: Failed to parse safetensors header for ... : safetensors header is too big. Maximum
supported size is 25000000 bytes`.

## What to do
Split the checkpoint into more shards: `safequant reshard SRC -o DST`. Move long texts from `__metadata__` into a file of
their own.

## References
- huggingface/huggingface_hub, `SAFETENSORS_MAX_HEADER_LENGTH`
";

/// Most bytes of JSON that `huggingface_hub` reads.
const MAX_BYTES: u64 = 25_000_000;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        let found = shard.header.len_bytes.saturating_sub(8);
        if found > MAX_BYTES && shard.header.gguf.is_none() {
            findings
                .add(
                    Place::file(&*shard.name),
                    "the Hub's tools do not read a header of this length",
                )
                .instead(
                    format!("at most {MAX_BYTES} bytes"),
                    format!("{found} bytes"),
                )
                .help("split the checkpoint into more shards with `safequant reshard`");
        }
    }
}
