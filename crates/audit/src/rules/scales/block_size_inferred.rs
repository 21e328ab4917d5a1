//! SC063: readers that divide get another block size.

use safequant_schemes::{Granularity, QuantizedTensor, Role};

use super::common::place;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC063",
    name: "block-size-inferred",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "partial blocks at the edge mislead readers that divide",
    doc: DOC,
    check: Check::Module(check),
};

const DOC: &str = "\
## What it checks
Whether dividing the sides of an FP8 weight by those of its grid of scales gives the size of a block. It does not where a block at the
edge is cut short. If the division leaves no remainder, the wrong size goes unnoticed: a warning. If it does leave one, such readers
stop: a note.

## Why it matters
The dequantizer of transformers 5.23 divides. For 200 rows and 2 scales it uses blocks of 100 where the file has 128: rows 100 to 127
get the scale of the next block, and nothing is said. For 576 rows and 5 scales it raises. vLLM and DeepSeek's own code use the
configuration and are right.

## What to do
Read with a runtime that goes by the configuration, or pad the weight to whole blocks.

## References
- unslothai/unsloth#8953, NVIDIA/TensorRT-Model-Connect#1115
- formats: fp8, section 4
";

/// What division makes of one side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Division {
    Right,
    Wrong,
    Remainder,
}

impl Division {
    fn of(size: u64, block: u64) -> Self {
        let n_blocks = size.div_ceil(block.max(1)).max(1);
        if n_blocks == 1 || size == n_blocks.saturating_mul(block) {
            Division::Right
        } else if size.is_multiple_of(n_blocks) {
            Division::Wrong
        } else {
            Division::Remainder
        }
    }
}

fn check(_: &Subject<'_>, tensor: &QuantizedTensor, findings: &mut Findings<'_>) {
    let Granularity::Block { rows, columns } = tensor.scheme.granularity else {
        return;
    };
    if tensor.convention != "fp8" {
        return;
    }
    let (height, width) = (tensor.out_features(), tensor.in_features());
    let sides = [Division::of(height, rows), Division::of(width, columns)];
    if sides == [Division::Right; 2] {
        return;
    }
    let grid = [height.div_ceil(rows.max(1)), width.div_ceil(columns.max(1))];
    let finding = findings.add(
        place(tensor, Role::Scale, None),
        format!(
            "{height}x{width} weights with {}x{} scales: division does not give the block",
            grid[0], grid[1]
        ),
    );
    if sides.contains(&Division::Remainder) {
        finding.severity = Severity::Note;
    }
    finding
        .instead(
            format!("blocks of {rows}x{columns}"),
            format!("{height} / {} by {width} / {}", grid[0], grid[1]),
        )
        .help("read with a runtime that goes by weight_block_size");
}
