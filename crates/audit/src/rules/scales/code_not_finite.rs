//! SC090: a code is NaN or infinite.

use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::measure::CodeStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC090",
    name: "code-not-finite",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a code of an FP8 weight is NaN or infinite",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
No code of a small float is NaN (0x7f and 0xff in E4M3, 0x80 in the FNUZ types) or infinite (E5M2). Where all such codes have a scale of
zero, as torchao, quanto and ModelOpt leave a row of zeros, it is a warning: they stand for zeros, but are read as NaN. So it is in
plain casts without a scale, where the weight may have been beyond the range.

## Why it matters
One NaN weight makes NaN of every activation that it touches: `!!!!`, black images, NaN logits. Casts of older torch and of ml_dtypes
make NaN of what is beyond the range, where newer ones saturate.

## What to do
Quantize the module again with a tool that clamps before the cast; give rows of zeros a scale of 1.

## References
- NVIDIA/Model-Optimizer#1382, vllm-project/vllm#52501
- formats: fp8, sections 2, 11 and 12
";

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    let count = codes.nan.count + codes.infinite.count;
    let Some(first) = codes.nan.first.or(codes.infinite.first) else {
        return;
    };
    let finding = findings.add(
        place(tensor, Role::Codes, Some(first)),
        format!("{count} of {} codes are NaN or infinite", codes.n()),
    );
    if codes.nan_without_scale == count {
        finding.severity = Severity::Warning;
        finding
            .message
            .push_str(": zeros that were divided by zero");
    } else if tensor.scheme.scale == ScaleCoding::One {
        finding.severity = Severity::Warning;
    }
    finding
        .instead(
            "numbers",
            format!("{} NaN, {} infinite", codes.nan.count, codes.infinite.count),
        )
        .help("quantize this module again with a tool that clamps before it casts");
}
