//! IX001: the index names a shard or tensor that is not there.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "IX001",
    name: "index-contradicts-shards",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the index names a shard that is missing, or a tensor that its shard does not hold",
    doc: DOC,
    check: Check::Problems(&["shard_missing", "index_missing_tensor", "index_wrong_shard"]),
};

const DOC: &str = "\
## What it checks
Every shard that `*.safetensors.index.json` names is there, and every tensor of its `weight_map` is in the shard it is mapped to.

## Why it matters
After an interrupted download or a stale index, runtimes load what they find: `Weight files referenced in index but missing`, a shape
assertion that names neither file, or nothing at all: vLLM checks that all parameters were loaded only for models that are not
quantized.

## What to do
Fetch the missing shard again. If the shards are right and the index is old, `safequant repair SRC -o DST --rule IX001` writes a new one.

## References
- vllm-project/vllm#34859, sgl-project/sglang#32279, huggingface/huggingface_hub#4725
";
