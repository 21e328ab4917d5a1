//! QT003: a tensor of a quantized weight has a dtype that its role does not allow.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT003",
    name: "part-dtype",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a tensor of a quantized weight has a dtype that its role does not allow",
    doc: DOC,
    check: Check::Problems(&["part_dtype"]),
};

const DOC: &str = "\
## What it checks
Codes are stored in the words of the format, scales in floats or powers of two, group indices in integers.

## Why it matters
A tool that casts \"all tensors\" of a checkpoint casts codes and scales as well. Runtimes copy by value into the dtype that they expect:
packed words become other words, E8M0 exponents become 0, 1 or 8. Others refuse: `expected scalar type Int but found Float`.

## What to do
Take the tensor from the original checkpoint. A cast of codes cannot be undone in general.

## References
- sgl-project/sglang#26701, jundot/omlx#2159
";
