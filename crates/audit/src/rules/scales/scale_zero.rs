//! SC011: a scale is zero.

use safequant_kernels::Float;
use safequant_schemes::{QuantizedTensor, Role, ScaleCoding, ScaleDirection, SuperScale};

use super::common::{has_float_scale, place};
use crate::measure::{CodeStatistics, Measured, WeightStatistics};
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC011",
    name: "scale-zero",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a scale is zero, and so are all weights of its group",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
No scale is zero where codes are not. Full depth knows the codes. If some are not zero it is an error where scales are BF16 or F32, and
a warning where they are F16 or smaller: a scale too small for them was flushed, and with it weights of less than a millionth. It is a
warning if codes are NaN (zeros that were divided by zero), and a note if they are zeros. With the scales alone it is a warning, and a
note for formats whose own tools write a zero scale for a group of zeros (bitsandbytes, ggml, quanto, scales in small floats). A scale
that divides, or a second-level scale of the whole matrix, must never be zero.

## Why it matters
Where the group's weights were not zero, they are now: a scale too small for F16 or E4M3 was flushed. Runtimes that divide by the scale
say `unsupported scale value (0.000000)` or make NaN of it.

## What to do
Quantize with a wider dtype of scales, or with a second-level scale; a group of zeros should have any positive scale.

## References
- NVIDIA/Model-Optimizer#1382, vllm-project/vllm#52501, vllm-project/compressed-tensors#523
- formats: fp8, section 11, clause 6; nvfp4-mxfp4, section 9, clause 2
";

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    for tensor in &subject.model.quantized {
        if let Some(weight) = measured.get(&tensor.module) {
            check_scales(tensor, weight, findings);
            check_second_level(tensor, weight, findings);
        }
    }
}

fn check_scales(tensor: &QuantizedTensor, weight: &WeightStatistics, findings: &mut Findings<'_>) {
    let zero = weight.scales.scales.zero;
    let is_zero_a_number = match tensor.scheme.scale {
        // Small integers of ggml's blocks, entries of a table to which a mean is added.
        ScaleCoding::Integer | ScaleCoding::StoredTable | ScaleCoding::One => true,
        ScaleCoding::Float(_) | ScaleCoding::E8M0(_) | ScaleCoding::Minifloat(_) => false,
    };
    let Some(first) = zero.first.filter(|_| !is_zero_a_number) else {
        return;
    };
    let Some((severity, of_codes)) = verdict(tensor, weight.codes.as_ref()) else {
        return;
    };
    let n = weight.scales.scales.n;
    let finding = findings.add(
        place(tensor, Role::Scale, Some(first)),
        format!("{} of {n} scales are zero{of_codes}", zero.count),
    );
    finding.severity = severity;
    finding
        .instead("positive numbers", "0")
        .help("quantize this module again; a group of zeros can have any positive scale");
}

/// How bad zero scales are, and what the codes say; `None` where they are as they should be.
fn verdict(tensor: &QuantizedTensor, codes: Option<&CodeStatistics>) -> Option<(Severity, String)> {
    if tensor.scheme.direction == ScaleDirection::Divide {
        return Some((Severity::Error, ", and scales divide here".to_owned()));
    }
    let writes_zeros =
        ["bitsandbytes", "gguf", "quanto"].contains(&tensor.convention) || !has_float_scale(tensor);
    let Some(codes) = codes else {
        let severity = if writes_zeros {
            Severity::Note
        } else {
            Severity::Warning
        };
        return Some((severity, "; the codes were not read".to_owned()));
    };
    if codes.lost.count > 0 {
        let text = format!("; {} of their codes are not", codes.lost.count);
        let severity = match tensor.scheme.scale {
            // Nobody's weights are so small that these round to zero.
            ScaleCoding::Float(Float::Bf16 | Float::F32) => Severity::Error,
            ScaleCoding::Float(Float::F16)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => Severity::Warning,
        };
        return Some((severity, text));
    }
    if codes.nan_without_scale > 0 {
        let text = format!(
            "; {} of their codes are NaN, as zeros divided by zero are",
            codes.nan_without_scale
        );
        return Some((Severity::Warning, text));
    }
    let text = ", and so are their codes".to_owned();
    (!writes_zeros).then_some((Severity::Note, text))
}

fn check_second_level(
    tensor: &QuantizedTensor,
    weight: &WeightStatistics,
    findings: &mut Findings<'_>,
) {
    let (severity, what) = match tensor.scheme.super_scale {
        SuperScale::Multiply => (Severity::Warning, "all weights are zero"),
        SuperScale::Divide => (Severity::Error, "and it divides"),
        // Blocks of zeros.
        SuperScale::None
        | SuperScale::Nested { .. }
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => return,
    };
    let zero = weight.scales.supers.zero;
    if let Some(first) = zero.first {
        let finding = findings.add(
            place(tensor, Role::SuperScale, Some(first)),
            format!("the scale of the whole matrix is zero: {what}"),
        );
        finding.severity = severity;
        finding
            .instead("a positive number", "0")
            .help("quantize this module again");
    }
}
