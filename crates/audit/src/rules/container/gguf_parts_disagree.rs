//! ST017: the parts of a split GGUF model do not belong together.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST017",
    name: "gguf-parts-disagree",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the parts of a split GGUF model do not belong together",
    doc: DOC,
    check: Check::Problems(&["gguf_split"]),
};

const DOC: &str = "\
## What it checks
All parts `<base>-00001-of-0000N.gguf` are there, each says in `split.count` and `split.no` which of how many it is, and together they
have `split.tensors.count` tensors.

## Why it matters
Parts of two conversions in one folder, a part that is missing, or one that was renamed: `invalid split file idx` or `corrupted model: ...
tensors expected but ... found` in llama.cpp.

## What to do
Fetch all parts of one conversion, or join them with `llama-gguf-split --merge`.

## References
- ggml-org/llama.cpp, `llama_model_loader`
";
