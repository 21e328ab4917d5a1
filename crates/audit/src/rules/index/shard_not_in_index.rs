//! IX004: a weights file lies beside the shards that the index names.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "IX004",
    name: "shard-not-in-index",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a weights file lies in the directory, but the index does not name it",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every `*.safetensors` file at the top of the directory is named by the index.

## Why it matters
Some runtimes load by pattern and take such a file for a shard (`consolidated.safetensors` of Mistral, `model.safetensors` of an older
save): twice the memory, or the wrong weights.

## What to do
Remove the file, or name it in the index if it is part of the model.

## References
- NVIDIA/TensorRT-LLM#7225, Neph0s/CoSER#3
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for name in subject.checkpoint.unreferenced() {
        findings
            .add(Place::file(name), "the index does not name this file")
            .help("remove it, or list its tensors in the index");
    }
}
