//! SC043: weights are far too large.

use safequant_kernels::Minifloat;
use safequant_schemes::{
    Code, Granularity, QuantizedTensor, Role, ScaleCoding, ScaleDirection, SuperScale, ZeroPoint,
};

use super::common::{has_float_scale, place};
use crate::measure::{CodeStatistics, Measured, WeightStatistics};
use crate::{Check, Findings, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC043",
    name: "weight-implausibly-large",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "most weights of a matrix are far larger than weights are",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
At full depth: the median magnitude of a weight's codes times the median scale is below 32; and FP8 codes under a single scale that is
exactly 1 do not reach the end of their range, 448, as only codes do that were made with another scale. (Codes with float zero points,
code books and plain casts are not looked at.)

## Why it matters
Trained weights are around 0.01 to 0.1. FP8 codes without their scale, or with a scale of 1, are around 50: weights some 200 times too
large, perplexity about 2 million, white images. A reciprocal scale, exponents that were read as numbers, a lost second level look so
too.

## What to do
Take the scale from the checkpoint that this one was made from, and look what wrote the file.

## References
- unslothai/unsloth#6200, sgl-project/sglang#30234, leejet/stable-diffusion.cpp#1898, jundot/omlx#2159
- formats: fp8, section 11, clause 7
";

/// The power of two that is too large for the median of a matrix: a choice, some thousand times above the median weight
/// of linear layers. FP8 codes made of normal weights have medians of 16 to 64.
const TOO_LARGE: i32 = 5;
/// The upper half of the range of E4M3: codes that were divided by a scale reach it, weights that were cast do not.
const FULL: f32 = 224.0;
/// Fewer codes tell nothing.
const LEAST: u64 = 1024;

fn check(subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    for tensor in &subject.model.quantized {
        let Some(weight) = measured.get(&tensor.module) else {
            continue;
        };
        let exponent = typical(tensor, weight).filter(|&exponent| exponent >= TOO_LARGE);
        let what = if let Some(exponent) = exponent {
            format!("the median weight is around 2^{exponent}")
        } else if let Some(largest) = largest_under_one(tensor, weight) {
            format!("the scale is exactly 1, and codes reach {largest}")
        } else {
            continue;
        };
        findings
            .add(place(tensor, Role::Scale, None), what)
            .instead("weights around 2^-6", "far larger ones")
            .help("take the scale from the checkpoint that this one was made from");
    }
}

/// The largest code, if the only scale is 1 and the codes use their range to the end.
fn largest_under_one(tensor: &QuantizedTensor, weight: &WeightStatistics) -> Option<f32> {
    let codes = weight.codes.as_ref()?;
    let Code::Minifloat(Minifloat::E4M3) = tensor.scheme.code else {
        return None;
    };
    let values = Minifloat::E4M3.table().iter().zip(codes.histogram.iter());
    let used = values.filter(|(value, count)| value.is_finite() && **count > 0);
    let largest = used.map(|(value, _)| value.abs()).reduce(f32::max)?;
    let is_one = tensor.scheme.granularity == Granularity::Tensor
        && tensor.scheme.super_scale == SuperScale::None
        && has_float_scale(tensor)
        && weight.scales.scales.only() == Some(1.0);
    (is_one && largest >= FULL).then_some(largest)
}

/// The exponent of the median weight, as a product of medians.
fn typical(tensor: &QuantizedTensor, weight: &WeightStatistics) -> Option<i32> {
    let codes = weight.codes.as_ref().filter(|codes| codes.n() >= LEAST)?;
    let is_number = match tensor.scheme.scale {
        ScaleCoding::Float(_) | ScaleCoding::E8M0(_) | ScaleCoding::Minifloat(_) => true,
        ScaleCoding::StoredTable | ScaleCoding::Integer | ScaleCoding::One => false,
    };
    let scales = weight
        .scales
        .scales
        .median_exponent()
        .filter(|_| is_number)?;
    let above = weight.scales.supers.median_exponent();
    let above = match tensor.scheme.super_scale {
        SuperScale::None => 0,
        SuperScale::Multiply | SuperScale::Channel => above?,
        SuperScale::Divide => -above?,
        SuperScale::Nested { .. } | SuperScale::Grouped { .. } => return None,
    };
    let scales = match tensor.scheme.direction {
        ScaleDirection::Multiply => scales,
        ScaleDirection::Divide => -scales,
    };
    Some(median_of_codes(tensor, codes)? + scales + above)
}

/// The exponent of the median magnitude of all codes that are not zero.
fn median_of_codes(tensor: &QuantizedTensor, codes: &CodeStatistics) -> Option<i32> {
    let mut magnitudes: Vec<(f32, u64)> = match (tensor.scheme.code, tensor.scheme.zero_point) {
        (Code::Minifloat(format), _) => {
            let values = format.table().iter().map(|value| value.abs());
            values.zip(codes.histogram.iter().copied()).collect()
        }
        (Code::Integer { .. }, ZeroPoint::Fixed(zero)) => {
            let values = (0_u16..).map(|code| (f32::from(code) - zero_as_float(zero)).abs());
            values.zip(codes.histogram.iter().copied()).collect()
        }
        (
            Code::Integer { .. } | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_),
            ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) | ZeroPoint::Offset { .. },
        ) => return None,
    };
    magnitudes.retain(|&(value, count)| value.is_finite() && value > 0.0 && count > 0);
    magnitudes.sort_by(|(one, _), (two, _)| one.total_cmp(two));
    let half = magnitudes
        .iter()
        .map(|(_, count)| count)
        .sum::<u64>()
        .div_ceil(2);
    let mut seen = 0;
    let median = magnitudes.iter().find(|(_, count)| {
        seen += count;
        seen >= half
    });
    // The exponent of an F32, from its bits: no rounding of a logarithm.
    let exponent = |value: f32| (value.to_bits() >> 23).cast_signed() - 127;
    median.map(|&(value, _)| exponent(value))
}

/// A zero point of codes of at most eight bits.
fn zero_as_float(zero: i32) -> f32 {
    i16::try_from(zero).map_or(0.0, f32::from)
}
