//! SC060: the grid of block scales does not cover the weight.

use safequant_schemes::Error;

use super::common::{block_size, grids};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC060",
    name: "grid-shape",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a grid of block scales does not cover its weight",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
With blocks of R by C (from the configuration, never by division), a weight of N by K has ceil(N / R) by ceil(K / C) scales. (A grid
that is just the transpose is another rule's.)

## Why it matters
Readers stop with a shape mismatch, or derive another block size from the shapes and scale every block but the first one wrongly.

## What to do
Compare `weight_block_size` with what the quantizer was given. A partial block at the edge has a scale of its own: 576 rows of blocks of
128 are five.

## References
- unslothai/unsloth#8953, #6848, vllm-project/vllm#50349, NVIDIA/Model-Optimizer#2320
- formats: fp8, sections 4 and 11
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
        if found == needed || found == [needed[1], needed[0]] {
            continue;
        }
        let [rows, columns] = block;
        findings
            .add(
                Place::module(&**module).tensor(&**part),
                format!(
                    "the grid of scales does not cover the weight with blocks of {rows}x{columns}"
                ),
            )
            .instead(format!("{needed:?}"), format!("{found:?}"))
            .help("compare weight_block_size with what the quantizer was given");
    }
}
