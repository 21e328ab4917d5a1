//! IX003: two shards hold a tensor of the same name.

use std::collections::BTreeMap;

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
A tensor name occurs in one shard only, whatever the index says.

## Why it matters
Runtimes read every key of every shard that they open, and the last one wins: which one that is depends on the order of files.

## What to do
Write the checkpoint anew from the shards that the index means: `safequant reshard SRC -o DST`.

## References
- syv-ai/qwen38-27b-rtx3090#123
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            let Some(other) = first.insert(tensor.name.as_str(), &shard.name) else {
                continue;
            };
            let place = Place::file(&*shard.name).tensor(tensor.name.as_str());
            findings
                .add(
                    place,
                    format!("{other} holds a tensor of this name as well"),
                )
                .instead("one shard", format!("{other} and {}", shard.name))
                .help("remove one of the two, or write the shards anew with `safequant reshard`");
        }
    }
}
