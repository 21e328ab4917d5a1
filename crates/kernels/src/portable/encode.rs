//! The three passes of quantizing, composed of the primitives: extremes of groups, codes, and what was lost.

use super::convert::widen;
use super::{lookup, quantize, scan};
use crate::encode::{CodeRule, Difference, Floats, LANES, sum_of_lanes};
use crate::{Codebook, Float, Minifloat};

/// Values that are widened, scaled and encoded at once: buffers of them stay in the cache.
const CHUNK: usize = 256;

/// Smallest and largest value of each group of `group` consecutive values (the last one may be shorter):
/// [`scan::min_max`] of each.
///
/// # Panics
/// If `out` has not as many entries as there are groups, or a group has no values.
pub fn extremes(source: Floats<'_>, group: usize, out: &mut [(f32, f32)]) {
    assert_groups(source, group, out.len());
    let mut values = Vec::new();
    for (i, out) in out.iter_mut().enumerate() {
        let cut = source.cut(i * group..((i + 1) * group).min(source.len()));
        values.resize(cut.len(), 0.0);
        fill(cut, &mut values);
        *out = scan::min_max(&values);
    }
}

fn assert_groups(source: Floats<'_>, group: usize, found: usize) {
    assert!(group > 0, "groups without values");
    assert_eq!(found, source.len().div_ceil(group), "one entry per group");
}

/// Copies or widens.
fn fill(source: Floats<'_>, out: &mut [f32]) {
    match source {
        Floats::F32(values) => out.copy_from_slice(values),
        Floats::Bytes(float, bytes) => widen(float, bytes, out),
    }
}

/// Codes of groups of `group` consecutive values (the last one may be shorter), each by its own rule.
///
/// `out`: one byte per value.
///
/// # Panics
/// If the lengths do not fit, or a rule has more than 256 codes.
pub fn encode(source: Floats<'_>, group: usize, rules: &[CodeRule], out: &mut [u8]) {
    assert_eq!(source.len(), out.len(), "one code per value");
    assert_groups(source, group, rules.len());
    let mut values = [0.0; CHUNK];
    for (i, (codes, rule)) in out.chunks_mut(group).zip(rules).enumerate() {
        for (j, codes) in codes.chunks_mut(CHUNK).enumerate() {
            let start = i * group + j * CHUNK;
            let values = &mut values[..codes.len()];
            fill(source.cut(start..start + codes.len()), values);
            run(rule, values, codes);
        }
    }
}

/// The codes of values of one group.
fn run(rule: &CodeRule, values: &mut [f32], codes: &mut [u8]) {
    match *rule {
        CodeRule::Integer {
            arith,
            divisor,
            zero,
            min,
            max,
        } => quantize::quantize_integer(arith, values, divisor, zero, min, max, codes),
        CodeRule::Product {
            input,
            arith,
            factor,
            offset,
            min,
            max,
        } => {
            let (low, high) = (min as f32, max as f32);
            each(values, codes, |value| {
                let product = arith.nearest(input.nearest(value) * factor);
                let code = nearest_of_small(arith.nearest(product + offset));
                (code.clamp(low, high) - low) as u8
            });
        }
        CodeRule::Shifted {
            arith,
            offset,
            divisor,
            max,
        } => each(values, codes, |value| {
            let quotient = arith.nearest(arith.nearest(value + offset) / divisor);
            nearest_of_small(quotient).clamp(0.0, max as f32) as u8
        }),
        CodeRule::Repacked {
            source,
            arith,
            divisor,
            zero,
            max,
        } => {
            let (zero, max) = (zero as f32, max as f32);
            let shift = arith.nearest(zero * divisor);
            each(values, codes, |value| {
                let quotient = arith.nearest(value / divisor);
                let first = (nearest_of_small(quotient) + zero).clamp(0.0, max);
                let weight = source.nearest(divisor * (first - zero));
                let second = arith.nearest(arith.nearest(weight + shift) / divisor);
                nearest_of_small(second).clamp(0.0, max) as u8
            });
        }
        CodeRule::Divided {
            arith,
            format,
            divisor,
        } => quantize::quantize_minifloat(arith, format, values, divisor, codes),
        CodeRule::Multiplied {
            arith,
            format,
            factor,
        } => {
            scale(values, |value| arith.nearest(value * factor));
            minifloat(format, values, codes);
        }
        CodeRule::E2M1 {
            rule,
            arith,
            divisor,
        } => {
            scale(values, |value| arith.nearest(value / divisor));
            lookup::encode_e2m1(rule, values, codes);
        }
        CodeRule::Nearest { book, factor } => nearest(book, values, factor, codes),
        CodeRule::NearestQuotient { book, divisor } => {
            scale(values, |value| value / divisor);
            nearest(book, values, 1.0, codes);
        }
        CodeRule::Truncated {
            factor,
            offset,
            max,
        } => each(values, codes, |value| {
            ((value * factor + offset) as i8 as u8).min(max)
        }),
        CodeRule::AwayFromZero { factor } => each(values, codes, |value| {
            (value * factor).round() as i8 as u8 ^ 0x80
        }),
        CodeRule::Constant { code } => codes.fill(code),
    }
}

fn each(values: &[f32], codes: &mut [u8], code_of: impl Fn(f32) -> u8) {
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = code_of(value);
    }
}

fn scale(values: &mut [f32], scaled: impl Fn(f32) -> f32) {
    for value in values {
        *value = scaled(*value);
    }
}

fn minifloat(format: Minifloat, values: &[f32], codes: &mut [u8]) {
    // Dividing by 1 is exact; the primitive clamps and encodes.
    quantize::quantize_minifloat(Float::F32, format, values, 1.0, codes);
}

fn nearest(book: Codebook, values: &[f32], factor: f32, codes: &mut [u8]) {
    lookup::quantize_codebook(book, values, factor, codes);
}

/// The nearest integer to a value that will be clamped to less than 512 afterwards, ties to even: the adder rounds at the
/// last place of 1.5 * 2^23, which is 1. (`round_ties_even` is a call on baseline x86-64.)
fn nearest_of_small(value: f32) -> f32 {
    const UNIT: f32 = 12_582_912.0;
    (value.clamp(-1024.0, 1024.0) + UNIT) - UNIT
}

/// What became of a weight: squares in F64, differences in F32 (exact wherever the two are within a factor of two), sums
/// as `LANES` says.
///
/// # Panics
/// If the lengths differ.
pub fn compare(original: Floats<'_>, decoded: Floats<'_>) -> Difference {
    assert_eq!(
        original.len(),
        decoded.len(),
        "as many values as there were"
    );
    let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
    let mut found = Difference::default();
    let mut buffers = [[0.0; CHUNK]; 2];
    for start in (0..original.len()).step_by(CHUNK) {
        let end = (start + CHUNK).min(original.len());
        for (buffer, source) in buffers.iter_mut().zip([original, decoded]) {
            fill(source.cut(start..end), &mut buffer[..end - start]);
        }
        let [original, decoded] = &buffers;
        for (i, (&a, &b)) in original.iter().zip(decoded).take(end - start).enumerate() {
            if !a.is_finite() {
                continue;
            }
            let error = a - b;
            signal[i % LANES] += f64::from(a) * f64::from(a);
            noise[i % LANES] += f64::from(error) * f64::from(error);
            found.max_error = found.max_error.max(error.abs());
            found.n_values += 1;
        }
    }
    found.signal = sum_of_lanes(&signal);
    found.noise = sum_of_lanes(&noise);
    found
}
