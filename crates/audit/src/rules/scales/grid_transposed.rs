//! SC062: a grid of block scales is the transpose of what is needed.

use safequant_schemes::Error;

use super::common::{block_size, grids};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC062",
    name: "grid-transposed",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a grid of block scales is transposed",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
A grid of scales whose shape does not fit its weight is not just the transpose of the one that does.

## Why it matters
Someone transposed the scales, or the weight, and not the other: readers stop with a shape mismatch, and for a square weight nothing
stops them, so that every block off the diagonal has another's scale. If one matrix of a checkpoint is so, look at the square ones too.

## What to do
Transpose the scales back, in all matrices that the same script has written.

## References
- NVIDIA/TensorRT-Model-Connect#1115, intel/auto-round#747
- formats: fp8, section 4
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some(block) = block_size(subject) else {
        return;
    };
    for error in &subject.problems {
        let Error::PartShape { module, part, .. } = error else {
            continue;
        };
        let Some((needed, found)) = grids(subject, block, module, part) else {
            continue;
        };
        if found == [needed[1], needed[0]] && needed[0] != needed[1] {
            findings
                .add(
                    Place::module(&**module).tensor(&**part),
                    "the grid of scales is the transpose of the one that fits the weight",
                )
                .instead(format!("{needed:?}"), format!("{found:?}"))
                .help("transpose the scales, here and in square matrices of the same origin");
        }
    }
}
