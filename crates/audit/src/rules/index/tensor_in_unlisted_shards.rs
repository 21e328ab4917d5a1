//! IX007: two shards hold a tensor of the same name, and no index says which one counts.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "IX007",
    name: "tensor-in-unlisted-shards",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "two shards hold a tensor of the same name, and no index says which one counts",
    doc: DOC,
    check: Check::Problems(&["tensor_in_two_shards"]),
};

const DOC: &str = "\
## What it checks
A tensor that no index lists is in one file only.

## Why it matters
Two saves lie in one directory: `model.safetensors` of one and `model-00001-of-00002.safetensors` of another, or shards of two splits.
mlx-lm loads everything that matches `model*.safetensors`, vLLM everything that ends in `.safetensors`, and of each name the last file wins,
without a word. huggingface_hub, transformers and llama.cpp's converter each take another choice.

## What to do
Move the files of the other save away. If both belong to the model, write an index: `safequant reshard SRC -o DST`.

## References
- NVIDIA/TensorRT-LLM#7225, Neph0s/CoSER#3, syv-ai/qwen38-27b-rtx3090#123
";
