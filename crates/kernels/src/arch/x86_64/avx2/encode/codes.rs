//! Codes of groups: a loop per rule.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_andnot_si256, _mm256_cvttps_epi32, _mm256_div_ps, _mm256_max_ps, _mm256_min_epi32,
    _mm256_min_ps, _mm256_mul_ps, _mm256_or_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_sub_epi32, _mm256_sub_ps,
};

use super::super::lanes::{nan_lanes, store, store16};
use super::lanes::{
    BF16, F16, F32, bits, bytes_of, load8, nearest, pack16, pack32, size_of, store8,
};
use super::nearest_entry::Book;
use super::small_float::{
    Small, e2m1_even, toward_zero_minus_zero, toward_zero_unsigned, zero_lanes,
};
use crate::encode::{CodeRule, Floats};
use crate::{E2M1Rule, Float, portable};

/// Codes of values of one group: [`portable::encode::one`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn codes(source: Floats<'_>, rule: &CodeRule, out: &mut [u8]) {
    let (float, bytes) = bytes_of(source);
    match float {
        Float::F32 => one::<F32>(bytes, rule, out),
        Float::F16 => one::<F16>(bytes, rule, out),
        Float::Bf16 => one::<BF16>(bytes, rule, out),
    }
}

/// The codes of one group.
#[target_feature(enable = "avx2,f16c")]
#[inline]
#[expect(clippy::too_many_lines, reason = "one short arm per rule")]
fn one<const KIND: u8>(source: &[u8], rule: &CodeRule, out: &mut [u8]) {
    match *rule {
        CodeRule::Integer {
            arith,
            divisor,
            zero,
            min,
            max,
        } => {
            let run = match arith {
                Float::F32 => integer::<KIND, F32>,
                Float::F16 => integer::<KIND, F16>,
                Float::Bf16 => integer::<KIND, BF16>,
            };
            run(source, divisor, zero, (min, max), out);
        }
        CodeRule::Product {
            input,
            arith,
            factor,
            offset,
            min,
            max,
        } => {
            let run = match arith {
                Float::F32 => product::<KIND, F32>,
                Float::F16 => product::<KIND, F16>,
                Float::Bf16 => product::<KIND, BF16>,
            };
            run(source, input, (factor, offset), (min, max), out);
        }
        CodeRule::Shifted {
            arith,
            offset,
            divisor,
            max,
        } => {
            let run = match arith {
                Float::F32 => shifted::<KIND, F32>,
                Float::F16 => shifted::<KIND, F16>,
                Float::Bf16 => shifted::<KIND, BF16>,
            };
            run(source, offset, divisor, max, out);
        }
        CodeRule::Repacked {
            source: weight,
            arith,
            divisor,
            zero,
            max,
        } => {
            let run = match (weight, arith) {
                (Float::Bf16, Float::Bf16) => repacked::<KIND, BF16, BF16>,
                (Float::F16, Float::F16) => repacked::<KIND, F16, F16>,
                (Float::F32, Float::F32) => repacked::<KIND, F32, F32>,
                (Float::Bf16, Float::F32) => repacked::<KIND, BF16, F32>,
                (Float::F16, Float::F32) => repacked::<KIND, F16, F32>,
                // No tool mixes these.
                (Float::Bf16, Float::F16)
                | (Float::F16, Float::Bf16)
                | (Float::F32, Float::F16 | Float::Bf16) => {
                    return by_portable::<KIND>(source, rule, out);
                }
            };
            run(source, divisor, zero, max, out);
        }
        CodeRule::Divided {
            arith,
            format,
            divisor,
        } => {
            let Some(small) = Small::new(format) else {
                return by_portable::<KIND>(source, rule, out);
            };
            let run = match arith {
                Float::F32 => divided::<KIND, F32>,
                Float::F16 => divided::<KIND, F16>,
                Float::Bf16 => divided::<KIND, BF16>,
            };
            run(source, small, divisor, out);
        }
        CodeRule::Multiplied {
            arith,
            format,
            factor,
        } => {
            let Some(small) = Small::new(format) else {
                return by_portable::<KIND>(source, rule, out);
            };
            let run = match arith {
                Float::F32 => multiplied::<KIND, F32>,
                Float::F16 => multiplied::<KIND, F16>,
                Float::Bf16 => multiplied::<KIND, BF16>,
            };
            run(source, small, factor, out);
        }
        CodeRule::E2M1 {
            rule,
            arith,
            divisor,
        } => {
            let run = match arith {
                Float::F32 => e2m1::<KIND, F32>,
                Float::F16 => e2m1::<KIND, F16>,
                Float::Bf16 => e2m1::<KIND, BF16>,
            };
            run(source, rule, divisor, out);
        }
        CodeRule::Nearest { book, factor } => {
            let Some(book) = Book::new(book) else {
                return by_portable::<KIND>(source, rule, out);
            };
            let factor = _mm256_set1_ps(factor);
            each::<KIND>(source, out, |v| book.codes(_mm256_mul_ps(v, factor)));
        }
        CodeRule::NearestQuotient { book, divisor } => {
            let Some(book) = Book::new(book) else {
                return by_portable::<KIND>(source, rule, out);
            };
            let divisor = _mm256_set1_ps(divisor);
            each::<KIND>(source, out, |v| book.codes(_mm256_div_ps(v, divisor)));
        }
        CodeRule::Truncated {
            factor,
            offset,
            max,
        } => truncated::<KIND>(source, (factor, offset), max, out),
        CodeRule::AwayFromZero { factor } => away_from_zero::<KIND>(source, factor, out),
        CodeRule::Constant { code } => out.fill(code),
    }
}

/// What has no loop here.
fn by_portable<const KIND: u8>(source: &[u8], rule: &CodeRule, out: &mut [u8]) {
    let float = match KIND {
        F32 => Float::F32,
        F16 => Float::F16,
        _ => Float::Bf16,
    };
    portable::encode::one(Floats::Bytes(float, source), rule, out);
}

/// Codes of eight values at a time.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn each<const KIND: u8>(source: &[u8], out: &mut [u8], codes: impl Fn(__m256) -> __m256i) {
    let eight = 8 * size_of::<KIND>();
    let (turns, rest) = out.as_chunks_mut::<32>();
    let mut sources = source.chunks_exact(4 * eight);
    for (out, source) in turns.iter_mut().zip(&mut sources) {
        let at = |i: usize| codes(load8::<KIND>(&source[i * eight..]));
        store(out, pack32([at(0), at(1), at(2), at(3)]));
    }
    let (sixteens, rest) = rest.as_chunks_mut::<16>();
    let mut sources = sources.remainder().chunks_exact(2 * eight);
    for (out, source) in sixteens.iter_mut().zip(&mut sources) {
        let (low, high) = source.split_at(eight);
        store16(
            out,
            pack16([codes(load8::<KIND>(low)), codes(load8::<KIND>(high))]),
        );
    }
    let (eights, last) = rest.as_chunks_mut::<8>();
    let mut sources = sources.remainder().chunks_exact(eight);
    for (out, source) in eights.iter_mut().zip(&mut sources) {
        store8(out, codes(load8::<KIND>(source)));
    }
    if !last.is_empty() {
        let (mut values, mut out) = ([0; 32], [0; 8]);
        let source = sources.remainder();
        values[..source.len()].copy_from_slice(source);
        store8(&mut out, codes(load8::<KIND>(&values)));
        last.copy_from_slice(&out[..last.len()]);
    }
}

/// 1.5 * 2^23: adding it rounds to the nearest integer, ties to even.
pub(super) const UNIT: f32 = 12_582_912.0;

/// The caller's codes.
pub(super) fn assert_integers(min: i32, max: i32) {
    let range = -(1 << 21)..=1 << 21;
    assert!(
        range.contains(&min) && range.contains(&max),
        "codes beyond 2^21"
    );
    assert!(min <= max && max - min <= 255, "codes of more than a byte");
}

#[target_feature(enable = "avx2,f16c")]
fn integer<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    divisor: f32,
    zero: i32,
    (min, max): (i32, i32),
    out: &mut [u8],
) {
    assert_integers(min, max);
    let divisor = _mm256_set1_ps(divisor);
    let (low, high) = (_mm256_set1_ps(min as f32), _mm256_set1_ps(max as f32));
    let unit = _mm256_set1_ps(UNIT);
    let base = _mm256_set1_epi32(UNIT.to_bits().cast_signed().wrapping_add(min));
    let finish = |v| {
        // NaN takes `low`: of a NaN and a number these give the second one.
        let clamped = _mm256_min_ps(_mm256_max_ps(v, low), high);
        _mm256_sub_epi32(bits(_mm256_add_ps(clamped, unit)), base)
    };
    if zero == 0 {
        // The quotient plus zero is the quotient; rounding it again changes nothing.
        each::<KIND>(source, out, |v| {
            finish(nearest::<ARITH>(_mm256_div_ps(v, divisor)))
        });
    } else {
        let zero = nearest::<ARITH>(_mm256_set1_ps(zero as f32));
        each::<KIND>(source, out, |v| {
            let quotient = nearest::<ARITH>(_mm256_div_ps(v, divisor));
            finish(nearest::<ARITH>(_mm256_add_ps(quotient, zero)))
        });
    }
}

/// `f32::clamp`: a NaN stays one.
#[target_feature(enable = "avx2")]
#[inline]
fn clamp(v: __m256, low: __m256, high: __m256) -> __m256 {
    _mm256_min_ps(high, _mm256_max_ps(low, v))
}

/// `portable::encode::nearest_of_small`.
#[target_feature(enable = "avx2")]
#[inline]
fn nearest_of_small(v: __m256) -> __m256 {
    let unit = _mm256_set1_ps(UNIT);
    let small = clamp(v, _mm256_set1_ps(-1024.0), _mm256_set1_ps(1024.0));
    _mm256_sub_ps(_mm256_add_ps(small, unit), unit)
}

#[target_feature(enable = "avx2,f16c")]
fn product<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    input: Float,
    (factor, offset): (f32, f32),
    (min, max): (i32, i32),
    out: &mut [u8],
) {
    let (factor, offset) = (_mm256_set1_ps(factor), _mm256_set1_ps(offset));
    let (low, high) = (_mm256_set1_ps(min as f32), _mm256_set1_ps(max as f32));
    let finish = |v| {
        let product = nearest::<ARITH>(_mm256_mul_ps(v, factor));
        let code = nearest_of_small(nearest::<ARITH>(_mm256_add_ps(product, offset)));
        // A NaN becomes the smallest integer, and that is packed to 0.
        _mm256_cvttps_epi32(_mm256_sub_ps(clamp(code, low, high), low))
    };
    match input {
        Float::F32 => each::<KIND>(source, out, finish),
        Float::F16 => each::<KIND>(source, out, |v| finish(nearest::<F16>(v))),
        Float::Bf16 => each::<KIND>(source, out, |v| finish(nearest::<BF16>(v))),
    }
}

#[target_feature(enable = "avx2,f16c")]
fn shifted<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    offset: f32,
    divisor: f32,
    max: i32,
    out: &mut [u8],
) {
    let (offset, divisor) = (_mm256_set1_ps(offset), _mm256_set1_ps(divisor));
    let (low, high) = (_mm256_set1_ps(0.0), _mm256_set1_ps(max as f32));
    each::<KIND>(source, out, |v| {
        let sum = nearest::<ARITH>(_mm256_add_ps(v, offset));
        let quotient = nearest::<ARITH>(_mm256_div_ps(sum, divisor));
        _mm256_cvttps_epi32(clamp(nearest_of_small(quotient), low, high))
    });
}

#[target_feature(enable = "avx2,f16c")]
fn repacked<const KIND: u8, const WEIGHT: u8, const ARITH: u8>(
    source: &[u8],
    divisor: f32,
    zero: i32,
    max: i32,
    out: &mut [u8],
) {
    let divisor = _mm256_set1_ps(divisor);
    let zero = _mm256_set1_ps(zero as f32);
    let (low, high) = (_mm256_set1_ps(0.0), _mm256_set1_ps(max as f32));
    let shift = nearest::<ARITH>(_mm256_mul_ps(zero, divisor));
    each::<KIND>(source, out, |v| {
        let quotient = nearest::<ARITH>(_mm256_div_ps(v, divisor));
        let first = clamp(_mm256_add_ps(nearest_of_small(quotient), zero), low, high);
        let weight = nearest::<WEIGHT>(_mm256_mul_ps(divisor, _mm256_sub_ps(first, zero)));
        let sum = nearest::<ARITH>(_mm256_add_ps(weight, shift));
        let second = nearest::<ARITH>(_mm256_div_ps(sum, divisor));
        _mm256_cvttps_epi32(clamp(nearest_of_small(second), low, high))
    });
}

#[target_feature(enable = "avx2,f16c")]
fn divided<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    small: Small,
    divisor: f32,
    out: &mut [u8],
) {
    let (divisor, small) = (_mm256_set1_ps(divisor), small.vectors());
    each::<KIND>(source, out, |v| {
        small.codes(nearest::<ARITH>(_mm256_div_ps(v, divisor)))
    });
}

#[target_feature(enable = "avx2,f16c")]
fn multiplied<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    small: Small,
    factor: f32,
    out: &mut [u8],
) {
    let (factor, small) = (_mm256_set1_ps(factor), small.vectors());
    each::<KIND>(source, out, |v| {
        small.codes(nearest::<ARITH>(_mm256_mul_ps(v, factor)))
    });
}

#[target_feature(enable = "avx2,f16c")]
fn e2m1<const KIND: u8, const ARITH: u8>(
    source: &[u8],
    rule: E2M1Rule,
    divisor: f32,
    out: &mut [u8],
) {
    let divisor = _mm256_set1_ps(divisor);
    let quotient = |v| nearest::<ARITH>(_mm256_div_ps(v, divisor));
    match rule {
        E2M1Rule::EvenSigned => each::<KIND>(source, out, |v| e2m1_even(quotient(v))),
        E2M1Rule::EvenPlusZero => each::<KIND>(source, out, |v| {
            let quotient = quotient(v);
            _mm256_andnot_si256(zero_lanes(quotient), e2m1_even(quotient))
        }),
        E2M1Rule::TowardZeroMinusZero => {
            each::<KIND>(source, out, |v| toward_zero_minus_zero(quotient(v)));
        }
        E2M1Rule::TowardZeroUnsigned => {
            each::<KIND>(source, out, |v| toward_zero_unsigned(quotient(v)));
        }
    }
}

/// A signed byte, toward zero; a NaN becomes 0.
#[target_feature(enable = "avx2")]
#[inline]
fn signed_byte(v: __m256) -> __m256i {
    let clamped = clamp(v, _mm256_set1_ps(-128.0), _mm256_set1_ps(127.0));
    let integer = _mm256_cvttps_epi32(clamped);
    _mm256_andnot_si256(nan_lanes(v), integer)
}

#[target_feature(enable = "avx2,f16c")]
fn truncated<const KIND: u8>(source: &[u8], (factor, offset): (f32, f32), max: u8, out: &mut [u8]) {
    let (factor, offset) = (_mm256_set1_ps(factor), _mm256_set1_ps(offset));
    let (byte, max) = (_mm256_set1_epi32(0xff), _mm256_set1_epi32(max.into()));
    each::<KIND>(source, out, |v| {
        let sum = _mm256_add_ps(_mm256_mul_ps(v, factor), offset);
        _mm256_min_epi32(_mm256_and_si256(signed_byte(sum), byte), max)
    });
}

#[target_feature(enable = "avx2,f16c")]
fn away_from_zero<const KIND: u8>(source: &[u8], factor: f32, out: &mut [u8]) {
    let factor = _mm256_set1_ps(factor);
    // Just below a half: a half itself, added to what is just below a half, would round up to one.
    let half = _mm256_set1_ps(0.5_f32.next_down());
    let sign = _mm256_set1_ps(-0.0);
    each::<KIND>(source, out, |v| {
        let product = _mm256_mul_ps(v, factor);
        let half = _mm256_or_ps(half, _mm256_and_ps(product, sign));
        let code = signed_byte(_mm256_add_ps(product, half));
        _mm256_add_epi32(code, _mm256_set1_epi32(128))
    });
}
