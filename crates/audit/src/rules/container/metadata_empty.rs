//! ST022: `__metadata__` is there and empty.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST022",
    name: "metadata-empty",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "`__metadata__` is there and empty",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
`__metadata__` is absent, null, or has an entry; it is not `{}`.

## Why it matters
The format allows it, and readers that ask \"is there metadata\" by its truth value take the empty object for a tensor. fastsafetensors, and
with it vLLM under `--load-format fastsafetensors`, failed with `SafeTensorsMetadataKeyError: 'data_offsets'`, and transformers 4 finds no
`format` in it.

## What to do
Write the files anew: `safequant reshard SRC -o DST` sets `format`. fastsafetensors reads such files since its pull request 89.

## References
- foundation-model-stack/fastsafetensors#88, foundation-model-stack/fastsafetensors#89, vllm-project/vllm#50827
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        let is_empty = shard.header.metadata.as_ref().is_some_and(Vec::is_empty);
        if is_empty && shard.header.gguf.is_none() {
            findings
                .add(Place::file(&*shard.name), "`__metadata__` is empty")
                .instead("no `__metadata__`, or one with `format`", "{}")
                .help("write the file anew with `safequant reshard`, which sets `format`");
        }
    }
}
