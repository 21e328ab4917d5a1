//! SC050: bytes that are powers of two.

use safequant_container::Dtype;
use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC050",
    name: "u8-scale-is-e8m0",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "scales are exponents in U8: the dtype does not say so",
    doc: DOC,
    check: Check::Module(check),
};

const DOC: &str = "\
## What it checks
The scales of an MX format are stored as U8, not as F8_E8M0. That is how most tools write them, and nothing is wrong: it is worth
knowing.

## Why it matters
A byte of 120 stands for 2^-7. Whoever takes the tensor by its dtype gets 120: weights 450,000 times too large, or scales that a numeric
`copy_` or `.to(dtype)` turned to 0, 1 and 8.

## What to do
Convert such tensors by their bits (`view`, never `to`), or store them as F8_E8M0 for readers that know it (safetensors 0.6 and later).

## References
- jundot/omlx#2159, sgl-project/sglang#26701, tile-ai/tilelang#2748, sgl-project/sglang#39193
- formats: nvfp4-mxfp4, sections 3 and 5
";

fn check(_: &Subject<'_>, tensor: &QuantizedTensor, findings: &mut Findings<'_>) {
    let is_power = matches!(tensor.scheme.scale, ScaleCoding::E8M0(_));
    let part = tensor.part(Role::Scale);
    if let Some(part) = part.filter(|part| is_power && part.dtype == Dtype::U8) {
        findings
            .add(
                place(tensor, Role::Scale, None),
                "the bytes of this U8 tensor are exponents of two (E8M0)",
            )
            .instead("F8_E8M0", part.dtype.name())
            .help("convert it by its bits only");
    }
}
