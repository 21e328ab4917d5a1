//! SC091: a weight uses at most half of its codes.

use std::collections::BTreeSet;

use safequant_schemes::{Code, QuantizedTensor, Role};

use super::common::place;
use crate::measure::CodeStatistics;
use crate::{Check, Findings, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "SC091",
    name: "code-range-half-used",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a weight uses at most half of the codes that it has",
    doc: DOC,
    check: Check::Codes(check),
};

const DOC: &str = "\
## What it checks
A weight of 3 to 7 bits, or of a code book, uses more than half of the possible codes; one of 8-bit integers uses both
halves of their range. Matrices with fewer than 64 codes for each possible one are not looked at, nor constant ones.

## Why it matters
A bit that no code needs is a bit of accuracy lost. Typical causes: unsigned levels fed to a packer of signed ones (`the upper half of
the range collapsed`: loads fine, and answers one word over and over), a 3-bit weight stored with 4, a scale twice too large.

## What to do
Find out what wrote the codes; quantize again.

## References
- ModelCloud/GPTQModel#2350, pie-project/pie#491, intel/auto-round#2273
- formats: awq, sections 3 and 9
";

fn check(tensor: &QuantizedTensor, codes: &CodeStatistics, findings: &mut Findings<'_>) {
    let (bits, is_integer) = match tensor.scheme.code {
        Code::Integer { bits, .. } => (bits, true),
        Code::Minifloat(format) => (format.bits(), false),
        Code::Codebook(_) | Code::StoredCodebook => (4, false),
        Code::Dense(_) => return,
    };
    // Two bits hold ternary weights as well. Small floats of 8 bits use what their exponents need.
    let is_judged = (3..=7).contains(&bits) || (bits == 8 && is_integer);
    let possible = match tensor.scheme.code {
        // The code books of lattices have fewer than sixteen values.
        Code::Codebook(book) if book.lattice().is_some() => {
            let values: BTreeSet<u32> = book.values().iter().map(|v| v.to_bits()).collect();
            values.len() as u64
        }
        Code::Integer { .. }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook
        | Code::Dense(_) => 1 << bits.min(8),
    };
    let used = codes.n_used() as u64;
    if !is_judged || used < 2 || codes.n() < 64 * possible {
        return;
    }
    let half = usize::try_from(possible / 2).unwrap_or(usize::MAX);
    let is_empty = |part: Option<&[u64]>| part.is_some_and(|counts| counts.iter().all(|&c| c == 0));
    let is_half = if bits == 8 {
        is_empty(codes.histogram.get(..half)) || is_empty(codes.histogram.get(half..))
    } else {
        used <= possible / 2
    };
    if is_half {
        findings
            .add(
                place(tensor, Role::Codes, None),
                format!(
                    "{} codes use {used} of {possible} possible values",
                    codes.n()
                ),
            )
            .instead(format!("more than {}", possible / 2), used.to_string())
            .help("find out what packed the codes, and quantize this module again");
    }
}
