//! QT050: a zero point is no code.

use safequant_schemes::{Code, QuantizedTensor, ZeroPoint};

use crate::measure::ScaleStatistics;
use crate::{Check, Findings, Place, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "QT050",
    name: "zero-out-of-range",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a zero point lies outside the range of codes",
    doc: DOC,
    check: Check::Scales(check),
};

const DOC: &str = "\
## What it checks
An integer zero point is one of the codes: 0 to 2^bits-1 in unsigned form. In GPTQ's first format a zero point of 2^bits is a warning:
AutoGPTQ reads a stored 2^bits-1 so, other readers as 0.

## Why it matters
Zero points that wrap (57,276 of them turned from 0 to 15 in one checkpoint) shift their groups by the whole range. Readers differ in
whether they wrap, so that one loads what another does not: the model repeats one token.

## What to do
Quantize the module again, or store the zero points in a format that holds them (`gptq_v2`).

## References
- ModelCloud/GPTQModel#2350, pie-project/pie#491, vllm-project/vllm#33200
";

fn check(tensor: &QuantizedTensor, scales: &ScaleStatistics, findings: &mut Findings<'_>) {
    let Code::Integer { bits, .. } = tensor.scheme.code else {
        return;
    };
    if !matches!(tensor.scheme.zero_point, ZeroPoint::Stored(_)) {
        return;
    }
    for (zero, places) in scales.zeros.outside(bits) {
        let mut place = Place::module(&*tensor.module);
        place.entry = places.first;
        let finding = findings.add(
            place,
            format!(
                "{} of {} zero points are {zero}, which is no {bits}-bit code",
                places.count, scales.zeros.n
            ),
        );
        let last = (1_i64 << bits.min(30)) - 1;
        if tensor.convention == "gptq" && i64::from(zero) == last + 1 {
            finding.severity = Severity::Warning;
        }
        finding
            .instead(format!("0 to {last}"), zero.to_string())
            .help("quantize this module again, or store its zero points as they are");
    }
}
