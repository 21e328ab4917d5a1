//! SC092: too many codes are the largest or the smallest.

use safequant_schemes::{Code, Granularity, QuantizedTensor, Role, ScaleCoding};

use super::common::{largest_code, place};
use crate::measure::CodeStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC092",
    name: "code-saturation",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a large share of the codes is the largest or the smallest one",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
At most a quarter of the codes of 3 to 7 bits, and at most a tenth of those of 8 bits, are the largest or the smallest that there are,
besides the two of each group that minimum and maximum come to.

## Why it matters
Codes pile up at the ends where scales were too small, and weights were clipped: the model answers, and is worse than its size. A scale
that lost a factor on its way (`weight_scale` without the global one) looks so in what was quantized with it.

## What to do
Quantize the module again; compare its error with that of others (`safequant diff`).

## References
- intel/auto-round#1434, vllm-project/compressed-tensors#225
- formats: gptq, section 11, clause 9
";

/// Fewer codes tell nothing.
const LEAST: u64 = 4096;

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    let n = codes.n();
    if tensor.scheme.scale == ScaleCoding::One || n < LEAST {
        return;
    }
    let Some((bits, ends)) = ends(tensor, codes) else {
        return;
    };
    // Fixtures by a dozen tools have 0.5 to 3 percent of 4-bit codes at each end. Under normal weights a quarter means
    // a range of 1.15 standard deviations, and a tenth one of 1.65.
    let share = if bits == 8 { 10 } else { 4 };
    let of_groups = n / per_scale(tensor).max(1);
    let most = (n / share).saturating_add(of_groups.saturating_mul(2));
    // A matrix of a single value is a rule of its own.
    if ends > most && codes.n_used() > 2 {
        findings
            .add(
                place(tensor, Role::Codes, None),
                format!("{ends} of {n} codes are the largest or the smallest"),
            )
            .instead(format!("at most {most}"), ends.to_string())
            .help("the scales are too small: quantize this module again");
    }
}

/// Bits of a code, and how many codes are at the ends of the range; `None` where ends mean nothing.
fn ends(tensor: &QuantizedTensor, codes: &CodeStatistics) -> Option<(u32, u64)> {
    let count = |code: usize| codes.histogram.get(code).copied().unwrap_or(0);
    match tensor.scheme.code {
        Code::Integer { bits, .. } if (3..=8).contains(&bits) => {
            let last = (1_usize << bits) - 1;
            // Symmetric writers leave the smallest code alone: -127 is the end then.
            let low = if count(0) == 0 { count(1) } else { count(0) };
            Some((bits, low + count(last)))
        }
        Code::Minifloat(format) => {
            let largest = largest_code(tensor)?;
            let values = (0_usize..).zip(format.table().iter());
            let known = values.take(1 << format.bits());
            let at_end = known.filter(|(_, value)| value.abs().total_cmp(&largest).is_eq());
            Some((format.bits(), at_end.map(|(code, _)| count(code)).sum()))
        }
        Code::Integer { .. } | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => None,
    }
}

/// Codes that share a scale.
fn per_scale(tensor: &QuantizedTensor) -> u64 {
    let (height, width) = (tensor.out_features(), tensor.in_features());
    match tensor.scheme.granularity {
        Granularity::Tensor => height.saturating_mul(width),
        Granularity::Channel => width,
        Granularity::Group { size }
        | Granularity::IndexedGroup { size }
        | Granularity::Flat { size } => size,
        Granularity::Block { rows, columns } => rows.saturating_mul(columns),
        Granularity::Strided { count } => height.saturating_mul(width) / count.max(1),
    }
}
