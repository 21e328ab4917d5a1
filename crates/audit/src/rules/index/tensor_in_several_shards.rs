//! IX003: two shards hold a tensor of the same name.

use std::collections::HashMap;

use safequant_container::{Index, TensorInfo};

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "IX003",
    name: "tensor-in-several-shards",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "two shards hold a tensor of the same name",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A tensor that the index lists is in one shard only. (What two shards hold and the index does not list is IX007.)

## Why it matters
Runtimes read every key of every shard that they open, and the last one wins: which one that is depends on the order of files. transformers
goes by the index, vLLM by the files, and the same checkpoint answers differently in the two.

## What to do
Write the checkpoint anew from the shards that the index means: `safequant reshard SRC -o DST`.

## References
- syv-ai/qwen38-27b-rtx3090#123
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let shards = subject.checkpoint.shards();
    let (Some(index), true) = (subject.checkpoint.index(), shards.len() > 1) else {
        return;
    };
    // Where there are as many names as tensors, no name comes twice.
    let n_stored: usize = shards.iter().map(|shard| shard.header.tensors.len()).sum();
    if n_stored == subject.checkpoint.tensors().len() {
        return;
    }
    let mut first: HashMap<&str, (&str, &TensorInfo)> = HashMap::new();
    for shard in shards {
        for tensor in &shard.header.tensors {
            let name = tensor.name.as_str();
            let Some((other, twin)) = first.insert(name, (&*shard.name, tensor)) else {
                continue;
            };
            let Some(listed) = listed_in(index, name) else {
                continue;
            };
            let message = match (twin.dtype == tensor.dtype, twin.shape == tensor.shape) {
                (true, true) => format!("{other} holds a tensor of this name as well"),
                (false, _) => format!("{other} holds a {} of this name", twin.dtype),
                (true, false) => format!("{other} holds a {:?} of this name", &*twin.shape),
            };
            findings
                .add(Place::file(&*shard.name).tensor(name), message)
                .instead(
                    format!("{listed} alone, as the index says"),
                    format!("{other} and {}", shard.name),
                )
                .help("remove one of the two, or write the shards anew with `safequant reshard`");
        }
    }
}

/// The shard that the index names for a tensor.
fn listed_in<'a>(index: &'a Index, tensor: &str) -> Option<&'a str> {
    let map = &index.weight_map;
    let found = map.binary_search_by(|(name, _)| name.as_str().cmp(tensor));
    map.get(found.ok()?).map(|(_, shard)| shard.as_str())
}
