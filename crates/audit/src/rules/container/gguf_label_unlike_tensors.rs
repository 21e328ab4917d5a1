//! ST029: no tensor of a GGUF model has the type that the model is labeled with.

use safequant_container::GgufValue;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST029",
    name: "gguf-label-unlike-tensors",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "no tensor of a GGUF model has the type that the model is labeled with",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
If `general.file_type` of a GGUF model names a type (`Q4_K`, `F16` ...), at least one tensor is of that type.

## Why it matters
The number is a label: llama.cpp prints it (`print_info: file type = Q4_K - Medium`), hubs and launchers list and choose by it, and what
counts is the type of each tensor. Where rows are no multiple of 256, `llama-quantize` falls back to other types (`tensor cols ... are not
divisible by 256, required for Q4_K - using fallback quantization Q5_0`); where it had to do so everywhere, the model is larger than its
label says. A label that was carried over from another file says nothing at all.

## What to do
Nothing for loading. `safequant inspect FILE` counts the types that are there; set the key with `gguf-new-metadata` or quantize again.

## References
- ggml-org/llama.cpp, `llama_ftype`
";

/// The type that most tensors of a file type have; what mixes types by importance has the first one at least somewhere.
const FILE_TYPES: &[(u64, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q3_K"),
    (13, "Q3_K"),
    (14, "Q4_K"),
    (15, "Q4_K"),
    (16, "Q5_K"),
    (17, "Q5_K"),
    (18, "Q6_K"),
    (25, "IQ4_NL"),
    (30, "IQ4_XS"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
];

/// Added to the number by converters that guess.
const GUESSED: u64 = 1024;

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let checkpoint = subject.checkpoint;
    let (Some(gguf), Some(first)) = (checkpoint.gguf(), checkpoint.shards().first()) else {
        return;
    };
    let label = gguf.get("general.file_type").and_then(GgufValue::as_u64);
    let Some((_, expected)) = FILE_TYPES
        .iter()
        .find(|(id, _)| label.map(|label| label & !GUESSED) == Some(*id))
    else {
        return;
    };
    let types = || {
        let tensors = subject.headers.tensors();
        tensors.map(|tensor| tensor.block.map_or(tensor.dtype.name(), |block| block.name))
    };
    // What was only begun is no model of that type.
    if types().next().is_none() || types().any(|found| found == *expected) {
        return;
    }
    let mut found: Vec<&str> = types().collect();
    found.sort_unstable();
    found.dedup();
    findings
        .add(
            Place::file(&*first.name),
            format!("`general.file_type` says {expected}, and no tensor is"),
        )
        .instead(*expected, found.join(", "))
        .help("go by the types of the tensors, or quantize again");
}
