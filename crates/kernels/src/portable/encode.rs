//! The three passes of quantizing, composed of the primitives: extremes of groups, codes, and what was lost.

use super::convert::widen;
use super::{lookup, quantize, scan};
use crate::encode::{CodeForm, CodeRule, Difference, Floats, GroupRules, LANES, sum_of_lanes};
use crate::rows::Stores;
use crate::{BlockFormat, Codebook, Float, Minifloat, Packing};

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

pub(crate) fn assert_groups(source: Floats<'_>, group: usize, found: usize) {
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

/// Largest magnitude of each group of `group` consecutive values (the last one may be shorter): [`scan::absmax`] of each.
///
/// `ahead` is for backends that ask for memory before they read it: how many bytes behind those that are read the next ones
/// lie. It changes no result.
///
/// # Panics
/// If `out` has not as many entries as there are groups, or a group has no values.
pub fn magnitudes(source: Floats<'_>, group: usize, _ahead: usize, out: &mut [f32]) {
    assert_groups(source, group, out.len());
    let mut values = Vec::new();
    for (i, out) in out.iter_mut().enumerate() {
        let cut = source.cut(i * group..((i + 1) * group).min(source.len()));
        values.resize(cut.len(), 0.0);
        fill(cut, &mut values);
        *out = scan::absmax(&values);
    }
}

/// Codes of groups of `group` consecutive values (the last one may be shorter), each by its own rule, as they are stored.
///
/// `out`: the packed run, [`Packing::packed_len_bytes`] in words of a byte.
///
/// # Panics
/// If the lengths do not fit, or a rule has more than 256 codes.
pub fn encode(
    source: Floats<'_>,
    group: usize,
    rules: GroupRules<'_>,
    form: CodeForm,
    out: &mut [u8],
    _: Stores,
) {
    in_pieces((source, group), rules, form, out, one, Packing::pack);
}

/// [`encode`], a few thousand codes at a time: `codes_of` some values of one group, and `pack` for a run of codes.
pub(crate) fn in_pieces(
    (source, group): (Floats<'_>, usize),
    rules: GroupRules<'_>,
    CodeForm { packing, flip }: CodeForm,
    out: &mut [u8],
    codes_of: impl Fn(Floats<'_>, &CodeRule, &mut [u8]),
    pack: impl Fn(Packing, &[u8], &mut [u8]),
) {
    const PIECE: usize = 4096;
    assert_coded(source, packing, out.len());
    assert_groups(source, group, rules.len());
    let (unit_codes, unit_bytes) = packing.codes_per_unit();
    let units = PIECE / unit_codes;
    let mut codes = [0; PIECE];
    let pieces = out.chunks_mut(units * unit_bytes);
    for (out, start) in pieces.zip((0..).step_by(units * unit_codes)) {
        let end = (start + units * unit_codes).min(source.len());
        let codes = &mut codes[..end - start];
        let mut at = start;
        while at < end {
            let i = at / group;
            let next = i.saturating_add(1).saturating_mul(group).min(end);
            let cut = source.cut(at..next);
            codes_of(cut, &rules.rule(i), &mut codes[at - start..next - start]);
            at = next;
        }
        if flip != 0 {
            for code in &mut *codes {
                *code ^= flip;
            }
        }
        pack(packing, codes, out);
    }
}

/// The caller's lengths.
pub(crate) fn assert_coded(source: Floats<'_>, packing: Packing, found: usize) {
    let len = packing.packed_len_bytes(source.len(), 1);
    assert_eq!(found, len, "packed bytes of {} codes", source.len());
}

/// The codes of values of one group.
pub(crate) fn one(source: Floats<'_>, rule: &CodeRule, codes: &mut [u8]) {
    let mut values = [0.0; CHUNK];
    for (i, codes) in codes.chunks_mut(CHUNK).enumerate() {
        let values = &mut values[..codes.len()];
        fill(source.cut(i * CHUNK..i * CHUNK + codes.len()), values);
        run(rule, values, codes);
    }
}

/// The codes of a few values of one group.
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

/// Whole blocks of ggml, as its reference quantizers choose them: [`crate::blocks::quantize`]. Values are expected to be
/// finite; another one has the same block on every backend, but no meaning.
///
/// # Panics
/// If the type is only read, or `blocks` is not the bytes of so many values' blocks.
pub fn encode_blocks(format: BlockFormat, source: Floats<'_>, blocks: &mut [u8], _: Stores) {
    let quantizer = format.quantizer().expect("a type that is written");
    let at_once = format.elements() * CHUNK.div_ceil(format.elements());
    assert_eq!(
        blocks.len() * format.elements(),
        source.len() * format.bytes(),
        "the blocks of {} values",
        source.len()
    );
    let pieces = blocks.chunks_mut(at_once / format.elements() * format.bytes());
    let mut values = [0.0; CHUNK];
    for (blocks, start) in pieces.zip((0..).step_by(at_once)) {
        let end = (start + at_once).min(source.len());
        let values = &mut values[..end - start];
        fill(source.cut(start..end), values);
        quantizer.quantize(values, blocks);
    }
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
