//! SC012: a scale is negative.

use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC012",
    name: "scale-negative",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a scale is negative",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
No scale is below zero, but in the formats whose own tools write such scales: MLX, ggml, and bitsandbytes' table of scales. A small
float (NVFP4's block scale) below zero is an error. Where one of 16 scales or more are negative, somebody meant it, and it is a note:
AutoRound gives a symmetric group the sign of its largest weight, to use the code that has no positive partner.

## Why it matters
Few writers of the other formats make one, so a lone one is likely not what it was. Kernels that read block scales without a sign, as
NVFP4's do, compute with the magnitude; those that read it turn all weights of the group around.

## What to do
Compare the file with its checksum, and fetch or quantize it again.

## References
- intel/auto-round, `auto_round/data_type/int.py`, `quant_tensor_sym`
- formats: gptq, section 11, clause 4; nvfp4-mxfp4, section 9, clause 2; mlx, section 9
";

/// Where one of so many scales is negative, it is a habit.
const MEANT: u64 = 16;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    if ["mlx", "gguf"].contains(&tensor.convention) {
        return;
    }
    let (own, severity) = match tensor.scheme.scale {
        ScaleCoding::Float(_) | ScaleCoding::E8M0(_) => (true, Severity::Warning),
        ScaleCoding::Minifloat(_) => (true, Severity::Error),
        ScaleCoding::StoredTable | ScaleCoding::Integer | ScaleCoding::One => {
            (false, Severity::Warning)
        }
    };
    for (what, role, severity, floats) in [
        (
            "scales",
            Role::Scale,
            severity,
            Some(&scales.scales).filter(|_| own),
        ),
        (
            "second-level scales",
            Role::SuperScale,
            Severity::Error,
            Some(&scales.supers),
        ),
    ] {
        let Some(floats) = floats else {
            continue;
        };
        if let Some(first) = floats.negative.first {
            let finding = findings.add(
                place(tensor, role, Some(first)),
                format!(
                    "{} of {} {what} are negative",
                    floats.negative.count, floats.n
                ),
            );
            let is_meant = floats.negative.count >= floats.n.div_ceil(MEANT);
            finding.severity = match severity {
                Severity::Warning if is_meant && floats.n >= MEANT => Severity::Note,
                Severity::Note | Severity::Warning | Severity::Error => severity,
            };
            finding
                .instead("positive numbers", "a negative one")
                .help("compare the file with its checksum, and fetch or quantize it again");
        }
    }
}
