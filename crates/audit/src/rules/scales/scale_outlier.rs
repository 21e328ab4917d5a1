//! SC014: a few scales are far above all others.

use safequant_schemes::{QuantizedTensor, Role, ScaleCoding};

use super::common::place;
use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC014",
    name: "scale-outlier",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a few scales are a thousand times larger than all others",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
Between the largest scales of a matrix and the others lies no gap of ten powers of two or more. Only a few scales, one of 32 at most,
count as outliers; what is small beside many is not looked at, because rows of zeros have tiny scales.

## Why it matters
Groups of one matrix differ by 10 to 100 in magnitude, with outlier channels, and by all that lies in between. A scale that stands a
thousand times above all others is most often one flipped bit or an uninitialized number; its group drowns the others: answers of
`!!!!`, or one word over and over.

## What to do
Compare the file with its checksum. If it is as it was written, quantize the module again.

## References
- vllm-project/vllm#53537, intel/auto-round#207
";

/// Powers of two that no scale is in. Of the fixtures of a dozen tools only those trip at ten whose weights were made
/// with rows of 60000 and 1e38 in them. A flipped bit in the upper half of an exponent makes a gap of 4, 8 or 16 in
/// F16, and more in BF16 and F32; lower ones cannot be told from outlier channels.
const GAP: u32 = 10;
/// Outliers are at most one of so many.
const SHARE: u64 = 32;

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    match tensor.scheme.scale {
        ScaleCoding::Float(_) | ScaleCoding::E8M0(_) | ScaleCoding::Minifloat(_) => {}
        ScaleCoding::StoredTable | ScaleCoding::Integer | ScaleCoding::One => return,
    }
    let floats = &scales.scales;
    if let Some(outliers) = floats.outliers(GAP, SHARE) {
        let median = floats.median_exponent().unwrap_or(0);
        findings
            .add(
                place(tensor, Role::Scale, floats.largest_at),
                format!(
                    "{} of {} scales are more than 2^{} times larger than all others",
                    outliers.count, floats.n, outliers.gap
                ),
            )
            .instead(
                format!("scales around 2^{median}"),
                floats.largest.map_or_else(String::new, |largest| format!("{largest:e}")),
            )
            .help("compare the file with its checksum; if it is as written, quantize this module again");
    }
}
