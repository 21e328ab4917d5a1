//! SC052: scales that are declared powers of two are not.

use safequant_schemes::Role;
use serde_json::Value;

use super::common::{has_float_scale, place};
use crate::measure::Measured;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC052",
    name: "scale-not-power-of-two",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "scales are declared as UE8M0, but are no powers of two",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Where the configuration says `scale_fmt: ue8m0`, every scale stored as a float is a power of two.

## Why it matters
Kernels for Blackwell keep the exponent only. They round scales that have more, or requantize the weight, which costs about 2.6 % of
relative error, or drop the fraction, which makes weights too small by up to half. Which of these happens, no message says.

## What to do
Quantize with scales that are powers of two, or take `scale_fmt` out of the configuration.

## References
- vllm-project/vllm#38083, #58157, sgl-project/sglang#39193
- formats: fp8, sections 4 and 11
";

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    let is_ue8m0 = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case("ue8m0"))
    };
    let mut declared = subject.settings.iter();
    if !declared.any(|settings| settings.map.get("scale_fmt").is_some_and(is_ue8m0)) {
        return;
    }
    for tensor in subject
        .model
        .quantized
        .iter()
        .filter(|t| has_float_scale(t))
    {
        let Some(weight) = measured.get(&tensor.module) else {
            continue;
        };
        let scales = &weight.scales.scales;
        if let Some(first) = scales.not_power_of_two.first {
            findings
                .add(
                    place(tensor, Role::Scale, Some(first)),
                    format!(
                        "{} of {} scales are no powers of two, though scale_fmt is ue8m0",
                        scales.not_power_of_two.count, scales.n
                    ),
                )
                .instead("powers of two", "other numbers")
                .help("quantize with powers of two, or take `scale_fmt` out of the configuration");
        }
    }
}
