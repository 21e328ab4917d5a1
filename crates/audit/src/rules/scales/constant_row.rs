//! SC093: all codes of a row are the same.

use safequant_schemes::{QuantizedTensor, Role};

use super::common::place;
use crate::measure::CodeStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC093",
    name: "constant-row",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "all codes of an output feature are the same",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
The codes of each row (output feature) are not all the same. Rows of fewer than 32 codes are not looked at. More than a quarter of all
rows is a warning.

## Why it matters
Such a row is dead, most often all zeros: a pruned channel, a token that was never trained, padding of the vocabulary. That is ordinary,
hence a note. Many in a matrix that should have none are the trace of a tensor written in part: answers that begin well and end in
`!!!!`.

## What to do
Compare the number with that of the source.

## References
- vllm-project/vllm#53537
- formats: gptq, section 11, clause 9
";

/// Shorter rows may be constant by chance.
const LEAST: u64 = 32;

/// More than one row of so many is no accident: padding of a vocabulary is one of a hundred, dead channels one of ten.
const MANY: u64 = 4;

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    let places = codes.constant_rows;
    let n_rows = tensor.n_rows();
    if tensor.in_features() < LEAST || places.count == n_rows {
        return;
    }
    if let Some(first) = places.first {
        let finding = findings.add(
            place(tensor, Role::Codes, Some(first)),
            format!("{} of {n_rows} rows have one code only", places.count),
        );
        if places.count > n_rows / MANY {
            finding.severity = Severity::Warning;
        }
        finding
            .instead("codes that vary", "the same code all along")
            .help("compare with the source: dead channels and unused tokens are ordinary");
    }
}
