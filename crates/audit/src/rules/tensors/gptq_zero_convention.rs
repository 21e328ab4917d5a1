//! QT040: GPTQ's zero points are of the other format than the configuration says.

use safequant_schemes::{Code, QuantizedTensor, ZeroCoding, ZeroPoint};

use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Place, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT040",
    name: "gptq-zero-convention",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "GPTQ's zero points are of the other format (v1 or v2) than the configuration says",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Format v1 (`gptq`) stores zero points minus one, v2 (`gptq_v2`, `gptq_p`) as they are. Symmetric quantization has the zero point
2^(bits-1) everywhere: zero points that are all one above or one below it were written in the other format. This decides all symmetric
modules. Asymmetric ones use the whole range, and nothing in the file tells the formats apart: they are not judged.

## Why it matters
Runtimes trust the configuration. One step too much or too little on every weight, and the model answers `!!!!!!` to every prompt.

## What to do
Set `checkpoint_format` (and `format`) to what the zero points are, in `quantize_config.json` and in `config.json`:
`safequant repair SRC -o DST --rule QT040`.

## References
- vllm-project/vllm#38966, vllm-project/vllm#26092, AutoGPTQ/AutoGPTQ#640, intel/auto-round#1434, ModelCloud/GPTQModel#2281
";

/// Zero points that must agree, at least.
const MIN_ZEROS: u64 = 16;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    if !matches!(tensor.convention, "gptq" | "gptq_v2" | "gptq_p") {
        return;
    }
    let Code::Integer { bits, .. } = tensor.scheme.code else {
        return;
    };
    let (declared, other, shift) = match tensor.scheme.zero_point {
        ZeroPoint::Stored(ZeroCoding::Direct) => ("gptq_v2", "gptq", -1),
        ZeroPoint::Stored(
            ZeroCoding::MinusOne | ZeroCoding::MinusOneModulo | ZeroCoding::MinusOneWord,
        ) => ("gptq", "gptq_v2", 1),
        ZeroPoint::Stored(ZeroCoding::Signed | ZeroCoding::NegatedProduct)
        | ZeroPoint::Fixed(_)
        | ZeroPoint::Offset { .. } => return,
    };
    let middle = 1_i32 << (bits.clamp(1, 8) - 1);
    let zeros = &scales.zeros;
    if zeros.n < MIN_ZEROS || zeros.only() != Some(middle + shift) {
        return;
    }
    findings
        .add(
            Place::module(&*tensor.module),
            format!(
                "all {} zero points are {} if the format is {declared}, and {middle} if it is {other}",
                zeros.n,
                middle + shift
            ),
        )
        .instead(
            format!("zero points of {middle}"),
            (middle + shift).to_string(),
        )
        .help(format!("set checkpoint_format to \"{other}\""));
}
