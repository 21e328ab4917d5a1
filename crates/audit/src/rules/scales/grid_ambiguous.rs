//! SC061: nothing says how large a block is.

use safequant_schemes::{Granularity, QuantizedTensor, Role};

use super::common::{block_size, place};
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC061",
    name: "grid-ambiguous",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "no document states the block size, and shapes allow several",
    doc: DOC,
    check: Check::Module(check),
};

const DOC: &str = "\
## What it checks
FP8 weights with scales for blocks come with a configuration that states `weight_block_size`.

## Why it matters
Shapes do not tell the size of a block: 200 rows with 2 scales are blocks of 100, of 128, or anything between. Readers divide (and get
100), or take 128 for granted; they agree only where blocks fill the weight.

## What to do
State `weight_block_size` in `quantization_config`.

## References
- unslothai/unsloth#8953, intel/auto-round#747
- formats: fp8, section 10
";

fn check(subject: &Subject<'_>, tensor: &QuantizedTensor, findings: &mut Findings<'_>) {
    let Granularity::Block { rows, columns } = tensor.scheme.granularity else {
        return;
    };
    if tensor.convention != "fp8" || block_size(subject).is_some() {
        return;
    }
    let [down, across] = [
        (tensor.out_features(), rows),
        (tensor.in_features(), columns),
    ]
    .map(|(size, block)| {
        let n_blocks = size.div_ceil(block.max(1)).max(1);
        (size.div_ceil(n_blocks), n_blocks)
    });
    findings
        .add(
            place(tensor, Role::Scale, None),
            format!(
                "no document states the block size: {rows}x{columns} is taken, division gives {}x{}",
                down.0, across.0
            ),
        )
        .instead("weight_block_size", "nothing")
        .help("state weight_block_size in quantization_config");
}
