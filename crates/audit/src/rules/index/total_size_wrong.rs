//! IX005: `total_size` of the index is not the size of the model.

use safequant_container::{Checkpoint, Index};

use super::unlisted;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "IX005",
    name: "total-size-wrong",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "`total_size` of the index is not the size of the model",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
`metadata.total_size` of the index, if it is there, lies between the bytes of all listed tensors and the bytes of all shards. Producers do
not agree on what it counts: most the tensors, GPTQModel the files, huggingface_hub the storages behind the tensors. What is within a tenth
of that is a note. Nothing is said where a shard is missing.

## Why it matters
An index that was carried over from the model before quantization keeps that model's size. Tools that plan by it (device maps, downloads,
lists of models that fit) then ask for several times the memory, or hide the model: `708 GB for 89 GB`.

## What to do
`safequant repair SRC -o DST --rule IX005` writes the bytes of the tensors.

## References
- jundot/omlx#3489, huggingface/hub-docs#2704
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some(index) = subject.checkpoint.index() else {
        return;
    };
    let (Some(found), Some((tensors, files))) = (index.total_size, sizes(subject, index)) else {
        return;
    };
    if (tensors..=files).contains(&found) {
        return;
    }
    let finding = findings.add(
        Place::file(&*index.name),
        format!("`total_size` is {found}, and the tensors have {tensors} bytes"),
    );
    let slack = tensors / 10;
    if (tensors.saturating_sub(slack)..=files.saturating_add(slack)).contains(&found) {
        finding.severity = Severity::Note;
    }
    finding
        .instead(
            format!("{tensors} (tensors) to {files} (files)"),
            found.to_string(),
        )
        .help("write it anew with `safequant repair --rule IX005`");
}

/// The bytes of the listed tensors and those of the shards; `None` if a shard is missing or unreadable.
fn sizes(subject: &Subject<'_>, index: &Index) -> Option<(u64, u64)> {
    let checkpoint: &Checkpoint = subject.checkpoint;
    let shards = checkpoint.shards();
    let is_open = |name: &&str| {
        shards
            .binary_search_by(|shard| shard.name.as_str().cmp(name))
            .is_ok()
    };
    if !index.shard_names().iter().all(is_open) {
        return None;
    }
    let unlisted = unlisted(checkpoint, index);
    let tensors = checkpoint
        .tensors()
        .filter(|tensor| !unlisted.contains(tensor.name()))
        .fold(0_u64, |sum, tensor| {
            sum.saturating_add(tensor.info.len_bytes())
        });
    let files = shards.iter().fold(0_u64, |sum, shard| {
        sum.saturating_add(shard.source.len_bytes())
    });
    Some((tensors, files))
}
