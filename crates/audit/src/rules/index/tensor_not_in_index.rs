//! IX002: a shard holds a tensor that the index does not list.

use super::unlisted;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "IX002",
    name: "tensor-not-in-index",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a shard holds a tensor that the index does not list",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every tensor of the shards that the index names is in its `weight_map`.

## Why it matters
Readers that go by the index (transformers, huggingface_hub) never see the tensor; readers that go through the files (vLLM) do. Scales
that were added later and not listed are lost without a word.

## What to do
`safequant repair SRC -o DST --rule IX002` writes an index of what is there.

## References
- Blaizzy/mlx-vlm#1464, unslothai/unsloth#7375
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some(index) = subject.checkpoint.index() else {
        return;
    };
    let unlisted = unlisted(subject.checkpoint, index);
    if unlisted.is_empty() {
        return;
    }
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            let name = tensor.name.as_str();
            if unlisted.contains(name) {
                findings
                    .add(
                        Place::file(&*shard.name).tensor(name),
                        "not listed in the index",
                    )
                    .instead(format!("an entry in {}", index.name), "none")
                    .help("write the index anew with `safequant repair --rule IX002`");
            }
        }
    }
}
