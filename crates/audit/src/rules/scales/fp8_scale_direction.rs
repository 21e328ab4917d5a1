//! SC042: the scales of an FP8 weight are the reciprocals of what the configuration says.

use safequant_kernels::Minifloat;
use safequant_schemes::{Code, QuantizedTensor, Role, ScaleDirection, SuperScale};

use super::common::{has_float_scale, largest_code, place};
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC042",
    name: "fp8-scale-direction",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the scales of an FP8 weight are reciprocals",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
`weight_scale_inv` multiplies in DeepSeek's, transformers' and vLLM's files, and divides in GPTQModel's (`weight_scale_semantics:
inverse`). The median scale times 448, the largest code, is about the largest weight of a group. If that is beyond ten thousand, and
would be an ordinary weight the other way around, the direction is wrong.

## Why it matters
All weights are wrong by the square of the scale: garbage, or NaN at once. Some readers guess by whether a scale is above 1, and are
wrong for large weights.

## What to do
Write the reciprocals, or say in the configuration what the scales are.

## References
- ModelCloud/GPTQModel#2827
- formats: fp8, sections 1, 8 and 11
";

/// As for global scales: no weight is so large.
const IMPLAUSIBLE: f32 = 1e4;
/// What the largest weight of a group may be the other way around.
const PLAUSIBLE: std::ops::Range<f32> = 1e-6..1e3;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    // E5M2 reaches 57344, and plain casts with a scale of 1 are common there.
    let is_e4m3 = matches!(
        tensor.scheme.code,
        Code::Minifloat(Minifloat::E4M3 | Minifloat::E4M3Fnuz)
    );
    if !is_e4m3 || !has_float_scale(tensor) || tensor.scheme.super_scale != SuperScale::None {
        return;
    }
    let (Some(exponent), Some(code)) = (scales.scales.median_exponent(), largest_code(tensor))
    else {
        return;
    };
    let scale = 2_f32.powi(exponent);
    let (read, other, wanted) = match tensor.scheme.direction {
        ScaleDirection::Multiply => (code * scale, code / scale, "scales that multiply"),
        ScaleDirection::Divide => (code / scale, code * scale, "scales that divide"),
    };
    if read > IMPLAUSIBLE && PLAUSIBLE.contains(&other) {
        findings
            .add(
                place(tensor, Role::Scale, None),
                format!("scales around 2^{exponent} make the largest weights {read:e}; the other way around, {other:e}"),
            )
            .instead(wanted, "their reciprocals")
            .help("write the reciprocals, or declare the direction (`weight_scale_semantics`)");
    }
}
