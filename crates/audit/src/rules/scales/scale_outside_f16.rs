//! SC080: a scale that F16 cannot hold.

use safequant_kernels::Float;
use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::{is_fused_at_run_time, place};
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC080",
    name: "scale-outside-f16",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a scale is infinite or zero once a runtime casts it to F16",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Scales stored as BF16 or F32 are finite in F16 (below 65520), and not zero (above 2^-25, a note: the weights of such a group are next to
nothing).

## Why it matters
Kernels for AWQ, GPTQ and weight-only FP8 hold scales in the dtype of the activations. In F16 a scale beyond its range is infinite, and
the group NaN; many runtimes cast without a word, and others say `torch.bfloat16 is not supported for quantization method awq` and leave
the user to set `dtype=half`.

## What to do
Run the model in BF16, or quantize it again.

## References
- vllm-project/vllm#1114, #37464, casper-hansen/AutoAWQ#498, #519, openvinotoolkit/nncf#3586
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let is_wide = match tensor.scheme.scale {
        ScaleCoding::Float(float) => float != Float::F16,
        ScaleCoding::E8M0(_)
        | ScaleCoding::Minifloat(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => false,
    };
    if !is_wide || !is_fused_at_run_time(tensor.convention) {
        return;
    }
    let floats = &scales.scales;
    if let Some(first) = floats.beyond_f16.first {
        findings
            .add(
                place(tensor, Role::Scale, Some(first)),
                format!(
                    "{} of {} scales are infinite in F16",
                    floats.beyond_f16.count, floats.n
                ),
            )
            .instead("scales below 65520", "larger ones")
            .help("run the model in BF16, or quantize this module again");
    }
    if let Some(first) = floats.below_f16.first {
        let finding = findings.add(
            place(tensor, Role::Scale, Some(first)),
            format!(
                "{} of {} scales are zero in F16",
                floats.below_f16.count, floats.n
            ),
        );
        finding.severity = Severity::Note;
        finding.instead("scales above 2^-25", "smaller ones");
    }
}
