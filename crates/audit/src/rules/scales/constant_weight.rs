//! SC094: all codes of a matrix are the same.

use safequant_schemes::{Code, QuantizedTensor, Role};

use super::common::place;
use crate::measure::CodeStatistics;
use crate::{Check, Findings, ModuleName, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC094",
    name: "constant-weight",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "all codes of a matrix, of an expert say, are the same",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
The codes of a matrix, and of each matrix of a stack of experts, are not all the same. (Not of one bit, not of fewer than 64 codes, and
no vectors.)

## Why it matters
A matrix of one code was never filled, or filled with zeros: an expert that no shard brought, a file whose end a broken download left
zero. Prompts that are routed to it give pad tokens or nonsense, others are fine.

## What to do
Fetch the shard again, compare it with its checksum, or take the module from the source.

## References
- vllm-project/vllm#34930, #53537, vllm-project/vllm-omni#5573
";

/// Smaller matrices may be constant by chance.
const LEAST: u64 = 64;

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    let size = tensor.out_features().saturating_mul(tensor.in_features());
    let is_one_bit = matches!(tensor.scheme.code, Code::Integer { bits: 1, .. });
    let places = codes.constant_matrices;
    let Some(first) = places
        .first
        .filter(|_| size >= LEAST && !is_one_bit && tensor.shape.len() > 1)
    else {
        return;
    };
    let n_matrices = tensor.n_matrices();
    let what = match ModuleName::parse(&tensor.module).expert {
        Some(expert) => format!("expert {expert} is dead: all of its {size} codes are the same"),
        None if n_matrices > 1 => {
            format!(
                "{} of {n_matrices} matrices have one code only",
                places.count
            )
        }
        None => format!("all {size} codes are the same"),
    };
    findings
        .add(place(tensor, Role::Codes, Some(first)), what)
        .instead("codes that vary", "one code")
        .help("fetch the shard again, or take this module from the source");
}
