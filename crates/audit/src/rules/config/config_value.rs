//! QC006: a configuration value has the wrong type or is out of range.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QC006",
    name: "config-value",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a configuration value has the wrong type or is out of range",
    doc: DOC,
    check: Check::Problems(&["config_value"]),
};

const DOC: &str = "\
## What it checks
Values on which the meaning of the tensors depends have the type and range that the format gives them: bits are an integer from 1 to 8, a
group size is positive or -1, a block size is two integers.

## Why it matters
Readers stop while they parse (`ValidationError: 1 validation error for QuantizationArgs`, `TypeError: unsupported operand type(s)`), or
take a default in its place and compute with that.

## What to do
Correct the value; the shapes of the scales say what the group size was.

## References
- vllm-project/compressed-tensors#599, vllm-project/llm-compressor#2234
";
