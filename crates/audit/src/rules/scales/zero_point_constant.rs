//! SC096: zero points are stored, and are all those of symmetric codes.

use safequant_schemes::{Code, Role, Settings};
use serde_json::Value;

use super::common::place;
use crate::measure::Measured;
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC096",
    name: "zero-point-constant",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "a weight is declared asymmetric, but all zero points are the middle of the range",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Where the configuration declares weights asymmetric, the stored zero points of a weight, sixteen or more, are not all 2^(bits - 1).

## Why it matters
They say nothing, and cost bytes and speed: runtimes choose slower kernels, or none (vLLM 0.33 takes symmetric GPTQ only), for a weight
that is symmetric after all.

## What to do
Declare the weight symmetric, and leave the zero points out where the format allows it.

## References
- vllm-project/vllm#33200, #17862
- formats: gptq, section 11, clause 5; awq, section 9
";

/// Fewer may agree by chance.
const LEAST: u64 = 16;

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    if !subject.settings.iter().any(is_asymmetric) {
        return;
    }
    for tensor in &subject.model.quantized {
        let Code::Integer { bits, .. } = tensor.scheme.code else {
            continue;
        };
        let Some(weight) = measured.get(&tensor.module) else {
            continue;
        };
        let zeros = &weight.scales.zeros;
        let middle = 1_i32 << bits.saturating_sub(1).min(30);
        if zeros.n >= LEAST && zeros.only() == Some(middle) {
            findings
                .add(
                    place(tensor, Role::ZeroPoint, None),
                    format!("all {} zero points are {middle}", zeros.n),
                )
                .instead(
                    "a symmetric weight without zero points",
                    format!("{middle} everywhere"),
                )
                .help("declare the weight symmetric: more kernels take it");
        }
    }
}

/// Whether settings declare weights asymmetric: GPTQ's `sym`, AWQ's `zero_point`, compressed-tensors' `symmetric`.
fn is_asymmetric(settings: &Settings) -> bool {
    let map = &settings.map;
    let says = |key: &str, value: bool| map.get(key).and_then(Value::as_bool) == Some(value);
    let groups = map.get("config_groups").and_then(Value::as_object);
    let weights = groups.into_iter().flat_map(|groups| groups.values());
    let mut symmetric =
        weights.filter_map(|group| group.get("weights")?.get("symmetric")?.as_bool());
    says("sym", false) || says("zero_point", true) || symmetric.any(|symmetric| !symmetric)
}
