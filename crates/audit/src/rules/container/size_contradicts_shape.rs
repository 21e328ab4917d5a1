//! ST011: the bytes of a tensor are not those that its dtype and shape need.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST011",
    name: "size-contradicts-shape",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the bytes of a tensor are not those that its dtype and shape need",
    doc: DOC,
    check: Check::Problems(&[
        "container_size_mismatch",
        "container_fractional_bytes",
        "container_size_overflow",
    ]),
};

const DOC: &str = "\
## What it checks
`data_offsets` span exactly the bits of dtype times shape, which are a whole number of bytes and whose number fits 64 bits.

## Why it matters
One of the three is wrong, and whichever a reader believes, it reads other numbers than were meant or beyond the tensor. The official
reader refuses with `invalid shape, data type, or offset for tensor` or `overflow computing buffer size from shape and/or element type`
(before 0.6 `TensorInvalidInfo`, `ValidationOverflow`); a reader that multiplies without a check takes a huge shape for a small one
(`[4611686018427387905]` loads as `[1]`).

## What to do
Write the file anew with its own tool. Two codes to a byte are declared as the bytes (U8), or as F4 with the number of elements.

## References
- huggingface/safetensors, `Metadata::validate`
- ml-explore/mlx#3364
";
