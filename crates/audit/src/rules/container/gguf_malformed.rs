//! ST016: the header of a GGUF file breaks a rule of the format.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST016",
    name: "gguf-malformed",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the header of a GGUF file breaks a rule of the format",
    doc: DOC,
    check: Check::Problems(&[
        "gguf",
        "gguf_count",
        "gguf_duplicate",
        "gguf_row",
        "gguf_version",
    ]),
};

const DOC: &str = "\
## What it checks
Magic, version (2 or 3, little-endian), counts that the file has room for, keys and tensors that occur once, names of at most 63 bytes, an
alignment that is a power of two, and rows that are whole blocks of their type.

## Why it matters
llama.cpp refuses the file: `invalid magic characters`, `duplicate key`, `not a multiple of block size`, `alignment ... is not a power of
2`, `this GGUF file is version ... but this software only supports`. candle takes the later of two keys and does not check the rest.

## What to do
Convert the model again, or fetch the file again if it was downloaded.

## References
- ggml-org/llama.cpp, `gguf.cpp`
";
