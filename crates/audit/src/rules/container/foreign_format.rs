//! ST003: a weights file is something else: a Git LFS pointer, a web page, an archive.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST003",
    name: "foreign-format",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a weights file is something else: a Git LFS pointer, a web page, an archive",
    doc: DOC,
    check: Check::Problems(&["container_foreign_format"]),
};

const DOC: &str = "\
## What it checks
What is named as weights begins like weights. Known by their first bytes are Git LFS pointers, HTML and XML pages, JSON error messages,
GGUF and older ggml files, zip archives, pickles, HDF5 and gzip.

## Why it matters
`git clone` without Git LFS leaves pointers of some 130 bytes, and a download that needed a login leaves the page that asked for it. The
reader takes the first eight letters for a length: `Error while deserializing header: header too large` (before 0.6 `HeaderTooLarge`), or
`invalid magic characters` in llama.cpp. Nothing in these messages says what lies there.

## What to do
For a pointer `git lfs pull`, or download with the hub's own client; for a page look at it: it says what was missing. A pickle or archive
must be converted by a tool that loads it where it can do no harm.

## References
- lyogavin/airllm#137, codefuse-ai/MFTCoder#20, pytorch/torchtitan#4011
";
