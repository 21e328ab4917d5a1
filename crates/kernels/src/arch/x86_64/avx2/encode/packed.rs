//! Codes of groups, packed: 32 values at a time, from the source to the output, in registers.
//!
//! What has no loop here (other rules, other packings, groups that end within 32 values) goes by [`codes`] into a buffer.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_ps, _mm256_castsi256_si128, _mm256_div_ps, _mm256_maddubs_epi16,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_sub_epi32, _mm256_xor_si256,
};

use super::super::lanes::{put, put16};
use super::super::stream;
use super::codes::{UNIT, codes};
use super::lanes::{
    BF16, F16, F32, bits, bytes_of, four, in_order, load32, nearest_no_payload, signs, size_of,
    together,
};
use super::nearest_entry::Book;
use super::pack::{self, factors_of};
use super::small_float::{EightBits, e2m1_magnitude, toward_zero_minus_zero, toward_zero_unsigned};
use crate::encode::{CodeForm, CodeRule, Floats, GroupRules};
use crate::portable::encode::{assert_coded, assert_groups, in_pieces};
use crate::rows::Stores;
use crate::{E2M1Rule, Float, Packing};

/// Values of a turn.
const TURN: usize = 32;

/// See [`crate::portable::encode::encode`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode(
    source: Floats<'_>,
    group: usize,
    rules: GroupRules<'_>,
    form: CodeForm,
    out: &mut [u8],
    stores: Stores,
) {
    assert_coded(source, form.packing, out.len());
    assert_groups(source, group, rules.len());
    let is_whole = group == TURN / 2 || group.is_multiple_of(TURN);
    let is_done = is_whole
        && source.len().is_multiple_of(TURN)
        && match (rules, Sink::new(form, stores)) {
            (GroupRules::Same(rule, numbers), Some(sink)) => {
                same(source, (group, &rule, numbers), sink, out)
            }
            (GroupRules::Each(rules), Some(sink)) if group.is_multiple_of(TURN) => {
                each(source, (group, rules), sink, out)
            }
            (_, None) | (GroupRules::Each(_), _) => false,
        };
    if !is_done {
        in_pieces(
            (source, group),
            rules,
            form,
            out,
            |source, rule, out| codes(source, rule, out),
            |packing, codes, out| pack::pack(packing, codes, out),
        );
    }
    if stores == Stores::Streaming {
        stream::fence();
    }
}

/// Groups with rules of their own, if there are loops for all of them.
#[target_feature(enable = "avx2,f16c")]
fn each(
    source: Floats<'_>,
    (group, rules): (usize, &[CodeRule]),
    sink: Sink,
    out: &mut [u8],
) -> bool {
    let outs = out.chunks_mut((group / TURN).saturating_mul(sink.len));
    let mut start = 0_usize;
    for (rule, out) in rules.iter().zip(outs) {
        let end = start.saturating_add(group).min(source.len());
        if !same(
            source.cut(start..end),
            (group, rule, &[rule.number()]),
            sink,
            out,
        ) {
            return false;
        }
        start = end;
    }
    true
}

/// Groups whose rules differ in their number alone, if there is a loop for it.
#[target_feature(enable = "avx2,f16c")]
fn same(
    source: Floats<'_>,
    (group, rule, numbers): (usize, &CodeRule, &[f32]),
    sink: Sink,
    out: &mut [u8],
) -> bool {
    let (float, source) = bytes_of(source);
    let work = Work {
        source,
        group,
        numbers,
        sink,
    };
    let arith = match *rule {
        CodeRule::Integer { arith, .. }
        | CodeRule::Divided { arith, .. }
        | CodeRule::Multiplied { arith, .. }
        | CodeRule::E2M1 { arith, .. } => arith,
        CodeRule::Nearest { .. } | CodeRule::NearestQuotient { .. } => Float::F32,
        CodeRule::Product { .. }
        | CodeRule::Shifted { .. }
        | CodeRule::Repacked { .. }
        | CodeRule::Truncated { .. }
        | CodeRule::AwayFromZero { .. }
        | CodeRule::Constant { .. } => return false,
    };
    match (float, arith) {
        (Float::Bf16, Float::Bf16) => run::<BF16, BF16>(work, rule, out),
        (Float::Bf16, Float::F32) => run::<BF16, F32>(work, rule, out),
        (Float::F16, Float::F16) => run::<F16, F16>(work, rule, out),
        (Float::F16, Float::F32) => run::<F16, F32>(work, rule, out),
        (Float::F32, Float::F32) => run::<F32, F32>(work, rule, out),
        // No tool mixes these.
        (Float::Bf16, Float::F16)
        | (Float::F16, Float::Bf16)
        | (Float::F32, Float::F16 | Float::Bf16) => false,
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn run<const KIND: u8, const ARITH: u8>(work: Work<'_>, rule: &CodeRule, out: &mut [u8]) -> bool {
    match *rule {
        CodeRule::Integer { zero, min, max, .. } => {
            integer::<KIND, ARITH>(work, zero, (min, max), out)
        }
        CodeRule::Divided { format, .. } => {
            let Some(small) = EightBits::new(format) else {
                return false;
            };
            eight_bits::<KIND, ARITH>(work, small, out, |v, n| _mm256_div_ps(v, n))
        }
        CodeRule::Multiplied { format, .. } => {
            let Some(small) = EightBits::new(format) else {
                return false;
            };
            eight_bits::<KIND, ARITH>(work, small, out, |v, n| _mm256_mul_ps(v, n))
        }
        CodeRule::E2M1 { rule, .. } => e2m1::<KIND, ARITH>(work, rule, out),
        CodeRule::Nearest { book, .. } => {
            let Some(book) = Book::new(book) else {
                return false;
            };
            entries::<KIND>(work, book, out, |v, n| _mm256_mul_ps(v, n))
        }
        CodeRule::NearestQuotient { book, .. } => {
            let Some(book) = Book::new(book) else {
                return false;
            };
            entries::<KIND>(work, book, out, |v, n| _mm256_div_ps(v, n))
        }
        CodeRule::Product { .. }
        | CodeRule::Shifted { .. }
        | CodeRule::Repacked { .. }
        | CodeRule::Truncated { .. }
        | CodeRule::AwayFromZero { .. }
        | CodeRule::Constant { .. } => false,
    }
}

/// Where 32 codes go.
#[derive(Clone, Copy)]
struct Sink {
    flip: __m256i,
    /// Of nibbles: what the lower and the upper code of a pair are multiplied by.
    factors: Option<__m256i>,
    /// Bytes of 32 codes.
    len: usize,
    stores: Stores,
}

impl Sink {
    /// `None` for packings that have no loop here.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn new(form: CodeForm, stores: Stores) -> Option<Self> {
        let factors = match (form.packing, factors_of(form.packing)) {
            (Packing::Bytes, _) => None,
            (_, None) => return None,
            (_, Some(factors)) => Some(_mm256_set1_epi16(i16::from_le_bytes(factors))),
        };
        Some(Self {
            flip: _mm256_set1_epi8(form.flip.cast_signed()),
            factors,
            len: if factors.is_some() { 16 } else { 32 },
            stores,
        })
    }

    /// Stores the codes of a turn.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn put(&self, out: &mut [u8], codes: __m256i) {
        let codes = _mm256_xor_si256(codes, self.flip);
        match self.factors {
            None => {
                let out = out.first_chunk_mut().expect("32 codes");
                match self.stores {
                    Stores::Ordinary => put::<false>(out, codes),
                    Stores::Streaming => put::<true>(out, codes),
                }
            }
            Some(factors) => {
                let pairs = _mm256_maddubs_epi16(codes, factors);
                let bytes = _mm256_packus_epi16(pairs, pairs);
                let bytes = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(bytes));
                let out = out.first_chunk_mut().expect("32 codes");
                match self.stores {
                    Stores::Ordinary => put16::<false>(out, bytes),
                    Stores::Streaming => put16::<true>(out, bytes),
                }
            }
        }
    }
}

/// Groups, and where their codes go.
#[derive(Clone, Copy)]
struct Work<'a> {
    source: &'a [u8],
    /// Values of a group: half a turn or whole ones.
    group: usize,
    numbers: &'a [f32],
    sink: Sink,
}

/// A group's number in lanes; of a NaN one whose payload no rounding carries into its sign.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn in_lanes(number: f32) -> __m256 {
    _mm256_set1_ps(if number.is_nan() { f32::NAN } else { number })
}

/// Codes of turn after turn: of its values and of the numbers of its halves. Always true: it has been done.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn turns<const KIND: u8>(
    work: Work<'_>,
    out: &mut [u8],
    codes: impl Fn([__m256; 4], [__m256; 2]) -> __m256i,
) -> bool {
    let Work {
        source,
        group,
        numbers,
        sink,
    } = work;
    let turn = TURN * size_of::<KIND>();
    if group < TURN {
        let turns = source.chunks_exact(turn).zip(numbers.as_chunks::<2>().0);
        for ((source, numbers), out) in turns.zip(out.chunks_exact_mut(sink.len)) {
            let codes = codes(
                load32::<KIND>(source),
                [in_lanes(numbers[0]), in_lanes(numbers[1])],
            );
            sink.put(out, codes);
        }
        return true;
    }
    let groups = source.chunks(group.saturating_mul(size_of::<KIND>()));
    let outs = out.chunks_mut((group / TURN).saturating_mul(sink.len));
    for ((source, &number), out) in groups.zip(numbers).zip(outs) {
        let number = in_lanes(number);
        let turns = source.chunks_exact(turn);
        for (source, out) in turns.zip(out.chunks_exact_mut(sink.len)) {
            sink.put(out, codes(load32::<KIND>(source), [number; 2]));
        }
    }
    true
}

/// The quotients or products of a turn, rounded.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scaled<const KIND: u8, const ARITH: u8>(
    [a, b, c, d]: [__m256; 4],
    [first, second]: [__m256; 2],
    scale: impl Fn(__m256, __m256) -> __m256,
) -> [__m256; 4] {
    let scaled = |v, n| nearest_no_payload::<KIND, ARITH>(scale(v, n));
    [
        scaled(a, first),
        scaled(b, first),
        scaled(c, second),
        scaled(d, second),
    ]
}

#[target_feature(enable = "avx2,f16c")]
fn integer<const KIND: u8, const ARITH: u8>(
    work: Work<'_>,
    zero: i32,
    (min, max): (i32, i32),
    out: &mut [u8],
) -> bool {
    super::codes::assert_integers(min, max);
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
        return turns::<KIND>(work, out, |v, n| {
            let quotients = scaled::<KIND, ARITH>(v, n, |v, n| _mm256_div_ps(v, n));
            in_order::<KIND>(together(four(quotients, finish)))
        });
    }
    let zero = nearest_no_payload::<KIND, ARITH>(_mm256_set1_ps(zero as f32));
    turns::<KIND>(work, out, |v, n| {
        let quotients = scaled::<KIND, ARITH>(v, n, |v, n| _mm256_div_ps(v, n));
        let sum = |v| nearest_no_payload::<KIND, ARITH>(_mm256_add_ps(v, zero));
        in_order::<KIND>(together(four(quotients, |v| finish(sum(v)))))
    })
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn eight_bits<const KIND: u8, const ARITH: u8>(
    work: Work<'_>,
    small: EightBits,
    out: &mut [u8],
    scale: impl Fn(__m256, __m256) -> __m256,
) -> bool {
    let small = small.vectors();
    turns::<KIND>(work, out, |v, n| {
        let v = scaled::<KIND, ARITH>(v, n, &scale);
        let magnitudes = together(four(v, |v| small.magnitude(v)));
        in_order::<KIND>(signs::<7>(magnitudes, v))
    })
}

#[target_feature(enable = "avx2,f16c")]
fn e2m1<const KIND: u8, const ARITH: u8>(work: Work<'_>, rule: E2M1Rule, out: &mut [u8]) -> bool {
    let quotients = |v, n| scaled::<KIND, ARITH>(v, n, |v, n| _mm256_div_ps(v, n));
    match rule {
        E2M1Rule::EvenSigned => turns::<KIND>(work, out, |v, n| {
            let v = quotients(v, n);
            let magnitudes = together(four(v, |v| e2m1_magnitude(v)));
            in_order::<KIND>(signs::<3>(magnitudes, v))
        }),
        E2M1Rule::EvenPlusZero => turns::<KIND>(work, out, |v, n| {
            let v = quotients(v, n);
            let magnitudes = together(four(v, |v| e2m1_magnitude(v)));
            // A minus zero plus zero is plus zero; every other sign stays.
            let v = four(v, |v| _mm256_add_ps(v, _mm256_setzero_ps()));
            in_order::<KIND>(signs::<3>(magnitudes, v))
        }),
        E2M1Rule::TowardZeroMinusZero => turns::<KIND>(work, out, |v, n| {
            let codes = four(quotients(v, n), |v| toward_zero_minus_zero(v));
            in_order::<KIND>(together(codes))
        }),
        E2M1Rule::TowardZeroUnsigned => turns::<KIND>(work, out, |v, n| {
            let codes = four(quotients(v, n), |v| toward_zero_unsigned(v));
            in_order::<KIND>(together(codes))
        }),
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn entries<const KIND: u8>(
    work: Work<'_>,
    book: Book,
    out: &mut [u8],
    scale: impl Fn(__m256, __m256) -> __m256,
) -> bool {
    turns::<KIND>(work, out, |v, n| {
        let v = scaled::<KIND, F32>(v, n, &scale);
        let indices = together(four(v, |v| book.index(v)));
        in_order::<KIND>(book.entries(indices))
    })
}
