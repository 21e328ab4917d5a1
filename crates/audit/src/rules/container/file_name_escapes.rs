//! ST012: a shard has a name that is a path, leaves the directory, or is no file.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST012",
    name: "file-name-escapes",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a shard has a name that is a path, leaves the directory, or is no file",
    doc: DOC,
    check: Check::Problems(&["shard_name", "path_escape", "not_a_regular_file"]),
};

const DOC: &str = "\
## What it checks
Shards are named by plain file names that end in `.safetensors`, without `/`, `\\`, `:` or control characters, and what has such a name is
a regular file inside the directory (or, in the Hub's cache, in its `blobs`).

## Why it matters
Runtimes join directory and name without a check: an index that says `../../somewhere/x.safetensors` makes transformers read another file
of the user. huggingface_hub refuses such an index. A FIFO in place of a file makes the reader wait forever.

## What to do
Put all shards beside the index and write their names into it: `safequant reshard SRC -o DST` from the files themselves. Do not load a
checkpoint whose names lead elsewhere.

## References
- huggingface/huggingface_hub, `_load_sharded_checkpoint`
";
