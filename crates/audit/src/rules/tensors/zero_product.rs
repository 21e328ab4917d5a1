//! QT051: a stored product of scale and zero point that no zero point gives.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT051",
    name: "zero-product",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a stored product of scale and zero point is no multiple of the scale",
    doc: DOC,
    check: Check::Problems(&["product_range"]),
};

const DOC: &str = "\
## What it checks
AWQ's `gemv_fast` and `llm-awq` store zero points as their negative product with the scale. Divided by the scale, each is a whole number
from 0 to 15, up to the rounding of F16.

## Why it matters
Scales and zero points that were changed apart from each other (by a cast, a rescaling, a merge) no longer belong together: every
weight of the group is shifted. The model answers nonsense (`load fine but garbage`) while no shape and no dtype is wrong.

## What to do
Take scales and zero points of the module from the same checkpoint.

## References
- ModelCloud/GPTQModel#2350, intel/auto-round#2273
";
