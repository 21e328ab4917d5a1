//! SC095: the padding of a weight is not zero.

use safequant_schemes::{QuantizedTensor, Role};

use super::common::place;
use crate::measure::CodeStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC095",
    name: "padding-not-zero",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "codes beyond the edges of a weight are not zero",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
A weight that is stored with padding (ComfyUI's NVFP4 and MXFP8 come in whole tiles) has zeros there.

## Why it matters
Kernels multiply whole tiles and cut the result, or do not: then the padding is added to the last features, or shows as an edge of noise
in images. It also hints that the shape is not what the file says, or that bytes were moved: readers that know the true shape from zeros
take another one.

## What to do
Write zeros there, or correct the shape that the file states.

## References
- Comfy-Org/ComfyUI#10491, NVIDIA/Model-Optimizer#1195
- formats: comfyui, section 8
";

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    if let Some(first) = codes.padding.first {
        let (rows, columns) = (tensor.out_features(), tensor.in_features());
        findings
            .add(
                place(tensor, Role::Codes, Some(first)),
                format!(
                    "{} codes beyond the {rows}x{columns} weights are not zero",
                    codes.padding.count
                ),
            )
            .instead("zeros", "other codes")
            .help("write zeros there, or correct the shape that the file states");
    }
}
