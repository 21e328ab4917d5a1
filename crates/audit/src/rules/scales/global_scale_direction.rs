//! SC040: the global scale of NVFP4 multiplies where it should divide, or divides where it should multiply.

use safequant_schemes::{QuantizedTensor, Role, SuperScale};

use super::common::{has_global_scale, largest_code, place};
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC040",
    name: "global-scale-direction",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a global scale is the reciprocal of what its format wants",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
compressed-tensors stores NVFP4's `weight_global_scale` as a divisor (3584, say), ModelOpt its `weight_scale_2` as a multiplier
(0.00028). The largest block scale, which is near 448, times the largest code, 6, times the global scale is the largest weight of the
matrix. If that is beyond ten thousand, and would be an ordinary weight the other way around, the scale has the wrong direction.

## Why it matters
Every weight is wrong by the square of the scale, a factor of a million or more: garbage, byte for byte the same from two different
kernels.

## What to do
Write the reciprocal. `safequant convert` inverts exactly once.

## References
- modular/modular#6600, vllm-project/vllm#41769, ModelTC/LightX2V#877, NVIDIA/Model-Optimizer#1573
- formats: nvfp4-mxfp4, sections 4 and 10
";

/// Taken for larger than any weight: F16, in which models are run, ends at 65504, and rows of so much as a hundred of
/// these overflow it. A wrong direction gives 2688 squared over the true largest weight, so all matrices below 700 are
/// found.
const IMPLAUSIBLE: f32 = 1e4;
/// What the largest weight of a matrix may be if the scale is read the other way around.
const PLAUSIBLE: std::ops::Range<f32> = 1e-6..1e3;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let (Some(block), Some(code), true) = (
        scales.scales.largest,
        largest_code(tensor),
        has_global_scale(tensor),
    ) else {
        return;
    };
    let global = match tensor.scheme.super_scale {
        SuperScale::Multiply => scales.supers.largest,
        SuperScale::Divide => scales.supers.smallest,
        SuperScale::None
        | SuperScale::Nested { .. }
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => None,
    };
    let Some(global) = global else {
        return;
    };
    let (times, divided) = (block * code * global, block * code / global);
    let is_divisor = tensor.scheme.super_scale == SuperScale::Divide;
    let (read, other) = if is_divisor {
        (divided, times)
    } else {
        (times, divided)
    };
    if read <= IMPLAUSIBLE || !PLAUSIBLE.contains(&other) {
        return;
    }
    let (wanted, found) = if is_divisor {
        ("a divisor", "a multiplier")
    } else {
        ("a multiplier", "a divisor")
    };
    findings
        .add(
            place(tensor, Role::SuperScale, scales.supers.largest_at),
            format!("the global scale {global:e} makes the largest weight {read:e}; read as {found}, {other:e}"),
        )
        .instead(wanted, found)
        .help("write the reciprocal of the global scale");
}
