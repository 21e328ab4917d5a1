//! QT070: the mask of a sparse weight does not fit what is stored.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT070",
    name: "sparse-mask",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the mask of a sparse weight does not fit what is stored",
    doc: DOC,
    check: Check::Problems(&["sparse_row"]),
};

const DOC: &str = "\
## What it checks
The mask of a sparse weight marks as many entries of each row as are stored of it, at most two of four in structured sparsity.

## Why it matters
With a mask of another weight every entry behind the first difference lands in a wrong column. Decoders that do not check it stop
later: `RuntimeError: shape mismatch: value tensor cannot be broadcast to indexing result`.

## What to do
Take mask and entries of the module from the same checkpoint.

## References
- The sparse layouts of compressed-tensors (formats/compressed-tensors.md, section 9)
";
