//! ST013: the directory has no weights that can be audited.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST013",
    name: "no-weights",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the directory has no weights that can be audited",
    doc: DOC,
    check: Check::Problems(&["no_weights", "only_gguf"]),
};

const DOC: &str = "\
## What it checks
A checkpoint's directory has at least one `*.safetensors` file at its top.

## Why it matters
`Error no file named pytorch_model.bin, model.safetensors, ... found in directory` in transformers, `Cannot find any model weights` in
vLLM, `No safetensors found` in mlx-lm: only the small files were downloaded, or the weights lie in a folder below. A directory that has
only GGUF files may hold several models: the file itself must be named.

## What to do
Download the weights, give the path of the folder that has them, or the path of the GGUF file.

## References
- huggingface/transformers, `PreTrainedModel.from_pretrained`
- vllm-project/vllm, `DefaultModelLoader`
";
