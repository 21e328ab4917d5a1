//! ST028: a GGUF model lacks a key that readers ask for.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST028",
    name: "gguf-keys-missing",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a GGUF model lacks a key that readers ask for",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A GGUF model has `general.architecture`, and if any tensor is of a block type, `general.quantization_version`.

## Why it matters
The format asks for neither, and llama.cpp does: `error loading model architecture: unknown model architecture: ''` or `key not found in
model: general.architecture`. Without `general.quantization_version` a reader cannot tell which rules the blocks follow, should they change.

## What to do
Convert the model again with a converter that knows its architecture, or set the key with `gguf-new-metadata`.

## References
- ggml-org/llama.cpp, `gguf.md`
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let (Some(gguf), Some(first)) = (
        subject.checkpoint.gguf(),
        subject.checkpoint.shards().first(),
    ) else {
        return;
    };
    let has_blocks = subject
        .headers
        .tensors()
        .any(|tensor| tensor.block.is_some());
    let needed = [
        ("general.architecture", true),
        ("general.quantization_version", has_blocks),
    ];
    for (key, is_needed) in needed {
        if is_needed && gguf.get(key).is_none() {
            findings
                .add(Place::file(&*first.name), format!("`{key}` is missing"))
                .instead(key, "no such key")
                .help("convert the model again, or set the key");
        }
    }
}
