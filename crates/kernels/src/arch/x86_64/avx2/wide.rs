//! Integer codes of 5, 6 and 8 bits to results of two bytes: too many values for tables, so each is calculated, sixteen codes at
//! a time, those at even places and those at odd ones for themselves.
//!
//! ```text
//! word   0        1                          bytes or pairs of codes, by a shuffle (and a product, where codes have 5 or 6 bits)
//! even   aaaaa........... 0000000000000000   a code at the upper end of each 32-bit lane, nothing below it
//! odd    bbbbb........... 0000000000000000
//! ```
//!
//! As a signed integer a lane is its code's value times a power of two; the scale is divided by the same power, and the
//! product is the same. Results round to the upper halves of their lanes, and so even and odd ones need a shift and a blend to
//! stand in order, where results in order would have to be packed and permuted.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_EQ_OQ, _CMP_GE_OQ, _CMP_LT_OQ, _mm256_add_ps, _mm256_and_ps,
    _mm256_and_si256, _mm256_andnot_ps, _mm256_broadcastsi128_si256, _mm256_cmp_ps,
    _mm256_cvtepi32_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_mullo_epi16, _mm256_or_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_sub_epi32, _mm256_sub_ps,
    _mm256_xor_si256,
};

use super::batch::{are_finite, eight};
use super::formula::interleaved;
use super::lanes::{load, load_i32, load_ps, load16, prefetch_ahead, put, store, store_ps};
use crate::rows::{CodeMeaning, CodedRows, Formula, Zeros};
use crate::{Float, Packing};

/// What is done to values, as constants of [`block`]: nothing but the product.
const PRODUCT: usize = 0;
/// Codes become signed by another sign bit, and a number is subtracted from them before the product.
const LESS: usize = 1;
/// The same, and a number is added to the product.
const PLUS: usize = 2;

/// Of a matrix: bits of a code, and what they mean.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    /// Codes of 8 bits were unpacked, or are stored so.
    pub(super) bits: u32,
    /// What turns codes to signed ones.
    flip: u8,
    has_offsets: bool,
}

impl Wide {
    /// `None` for what is calculated otherwise.
    pub(super) fn new(rows: &CodedRows<'_>, packing: Packing) -> Option<Self> {
        let CodeMeaning::Integer { flip, zero: _ } = rows.value else {
            return None;
        };
        let has_offsets = match rows.formula {
            Formula::Product => false,
            Formula::PlusOffset {
                offsets: _,
                step: Float::F32,
            } => true,
            Formula::Quotient
            | Formula::ProductTimes(_)
            | Formula::PlusOffset { .. }
            | Formula::MinusOffset { .. }
            | Formula::OffsetFirst { .. } => return None,
        };
        let bits = match packing {
            Packing::LsbFirst { bits: 5 } => 5,
            Packing::LsbFirst { bits: 6 } => 6,
            Packing::Bytes
            | Packing::LsbFirst { .. }
            | Packing::LsbFirstNoStraddle { .. }
            | Packing::NibblesHighFirst
            | Packing::AwqInterleaved
            | Packing::Planar { .. } => 8,
        };
        (rows.first_rounded_to == Float::F32).then_some(Self {
            bits,
            flip: flip ^ (1 << (bits - 1)),
            has_offsets,
        })
    }

    /// Writes the results of groups of so many codes, the first of which has entry `first`; `otherwise` does so where a product
    /// would not be the same.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn decode<const FLOAT: usize, const STREAM: bool>(
        self,
        rows: &CodedRows<'_>,
        (first, group): (usize, usize),
        (codes, out): (&[u8], &mut [u8]),
        otherwise: impl Fn(usize, &[u8], &mut [u8]),
    ) {
        let groups = Groups {
            wide: self,
            rows,
            first,
            group,
        };
        match self.bits {
            5 => groups.decode::<5, FLOAT, STREAM>(codes, out, otherwise),
            6 => groups.decode::<6, FLOAT, STREAM>(codes, out, otherwise),
            _ => groups.decode::<8, FLOAT, STREAM>(codes, out, otherwise),
        }
    }
}

/// Groups of a row.
struct Groups<'a> {
    wide: Wide,
    rows: &'a CodedRows<'a>,
    first: usize,
    group: usize,
}

impl Groups<'_> {
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn decode<const BITS: usize, const FLOAT: usize, const STREAM: bool>(
        &self,
        codes: &[u8],
        out: &mut [u8],
        otherwise: impl Fn(usize, &[u8], &mut [u8]),
    ) {
        let is_signed = match self.rows.value {
            CodeMeaning::Integer { zero, flip: _ } => {
                matches!(zero, Zeros::Fixed(zero) if zero == 1 << (BITS - 1))
            }
            CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => false,
        };
        if self.wide.has_offsets {
            self.each::<BITS, PLUS, FLOAT, STREAM>(codes, out, otherwise);
        } else if is_signed && self.wide.flip == 0 {
            self.each::<BITS, PRODUCT, FLOAT, STREAM>(codes, out, otherwise);
        } else {
            self.each::<BITS, LESS, FLOAT, STREAM>(codes, out, otherwise);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline(never)]
    fn each<const BITS: usize, const KIND: usize, const FLOAT: usize, const STREAM: bool>(
        &self,
        codes: &[u8],
        out: &mut [u8],
        otherwise: impl Fn(usize, &[u8], &mut [u8]),
    ) {
        let len = (self.group * BITS).div_ceil(8);
        let mut numbers = Eight::default();
        let eights = codes
            .chunks(8 * len)
            .zip(out.chunks_mut(8 * 2 * self.group));
        for (at, (codes, out)) in eights.enumerate() {
            let first = self.first + 8 * at;
            if !self.set_numbers::<BITS, KIND>(first, &mut numbers) {
                let groups = codes.chunks(len).zip(out.chunks_mut(2 * self.group));
                for (i, (codes, out)) in groups.enumerate() {
                    otherwise(first + i, codes, out);
                }
                continue;
            }
            if !self.group.is_multiple_of(32) || !out.len().is_multiple_of(64) {
                let groups = codes.chunks(len).zip(out.chunks_mut(2 * self.group));
                for (i, (codes, out)) in groups.enumerate() {
                    let numbers = numbers.of(self.wide.flip, i);
                    group::<BITS, KIND, FLOAT, STREAM>(numbers, codes, out);
                }
                continue;
            }
            // The same with less between the blocks.
            let mut blocks = codes
                .chunks_exact(4 * BITS)
                .zip(out.as_chunks_mut::<64>().0);
            let mut i = 0;
            while blocks.len() > 0 {
                let numbers = numbers.of(self.wide.flip, i);
                for (codes, out) in blocks.by_ref().take(self.group / 32) {
                    put_block::<BITS, KIND, FLOAT, STREAM>(numbers, codes, out);
                }
                i += 1;
            }
        }
    }

    /// Sets the numbers of eight groups from entry `first` on. `false` where a product would not be the same.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn set_numbers<const BITS: usize, const KIND: usize>(
        &self,
        first: usize,
        numbers: &mut Eight,
    ) -> bool {
        let mut spare = [1.0; 8];
        let scales = load_ps(eight(self.rows.grid.scales, first, &mut spare));
        let power = (1u32 << (32 - BITS)) as f32;
        store_ps(
            &mut numbers.scales,
            _mm256_mul_ps(scales, _mm256_set1_ps(1.0 / power)),
        );
        if KIND != PRODUCT {
            // Exact: no zero point is too large for that, see `Plan::new`.
            let less = match self.rows.value {
                CodeMeaning::Integer {
                    zero: Zeros::Fixed(zero),
                    flip: _,
                } => _mm256_set1_epi32(zero),
                CodeMeaning::Integer {
                    zero: Zeros::Each(zeros),
                    flip: _,
                } => load_i32(eight(zeros, first, &mut [0; 8])),
                CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => _mm256_setzero_si256(),
            };
            let less = _mm256_sub_epi32(less, _mm256_set1_epi32(1 << (BITS - 1)));
            store_ps(
                &mut numbers.less,
                _mm256_mul_ps(_mm256_cvtepi32_ps(less), _mm256_set1_ps(power)),
            );
        }
        if KIND == PLUS {
            let offsets = self.rows.formula.offsets().unwrap_or_default();
            numbers.plus = *eight(offsets, first, &mut [0.0; 8]);
            if !are_finite(&numbers.plus) {
                return false;
            }
        }
        are_ordinary(scales)
    }
}

/// Whether each is zero, or finite and so large that it can be divided by a power of two.
#[target_feature(enable = "avx2")]
#[inline]
fn are_ordinary(scales: __m256) -> bool {
    const SMALL: f32 = 1.0 / (1u128 << 80) as f32;
    let magnitudes = _mm256_andnot_ps(_mm256_set1_ps(-0.0), scales);
    let is_large = _mm256_cmp_ps::<_CMP_GE_OQ>(magnitudes, _mm256_set1_ps(SMALL));
    let is_finite = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitudes, _mm256_set1_ps(f32::INFINITY));
    let is_zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(magnitudes, _mm256_setzero_ps());
    _mm256_movemask_ps(_mm256_or_ps(_mm256_and_ps(is_large, is_finite), is_zero)) == 0xff
}

/// Of eight groups.
#[derive(Default)]
struct Eight {
    less: [f32; 8],
    scales: [f32; 8],
    plus: [f32; 8],
}

impl Eight {
    #[inline]
    fn of(&self, flip: u8, group: usize) -> Numbers {
        Numbers {
            flip,
            less: self.less[group % 8],
            scale: self.scales[group % 8],
            plus: self.plus[group % 8],
        }
    }
}

/// Of a group.
#[derive(Clone, Copy)]
struct Numbers {
    flip: u8,
    less: f32,
    scale: f32,
    plus: f32,
}

/// Writes the results of a group.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn group<const BITS: usize, const KIND: usize, const FLOAT: usize, const STREAM: bool>(
    numbers: Numbers,
    codes: &[u8],
    out: &mut [u8],
) {
    let n = 4 * BITS;
    let (whole, rest) = out.split_at_mut(out.len() / 64 * 64);
    let (whole, _) = whole.as_chunks_mut::<64>();
    let last = codes.get(whole.len() * n..).unwrap_or_default();
    for (codes, out) in codes.chunks_exact(n).zip(whole) {
        put_block::<BITS, KIND, FLOAT, STREAM>(numbers, codes, out);
    }
    if !rest.is_empty() {
        let mut padded = [0; 32];
        let n = last.len().min(n);
        padded[..n].copy_from_slice(&last[..n]);
        let mut bytes = [[0; 32]; 2];
        let results = block::<BITS, KIND, FLOAT>(numbers, &padded);
        for (bytes, results) in bytes.iter_mut().zip(results) {
            store(bytes, results);
        }
        rest.copy_from_slice(&bytes.as_flattened()[..rest.len()]);
    }
}

/// Writes the results of 32 codes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn put_block<const BITS: usize, const KIND: usize, const FLOAT: usize, const STREAM: bool>(
    numbers: Numbers,
    codes: &[u8],
    out: &mut [u8; 64],
) {
    prefetch_ahead(codes.as_ptr());
    let results = block::<BITS, KIND, FLOAT>(numbers, codes);
    for (out, results) in out.as_chunks_mut().0.iter_mut().zip(results) {
        put::<STREAM>(out, results);
    }
}

/// The results of 32 codes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn block<const BITS: usize, const KIND: usize, const FLOAT: usize>(
    numbers: Numbers,
    codes: &[u8],
) -> [__m256i; 2] {
    let (scale, plus) = (_mm256_set1_ps(numbers.scale), _mm256_set1_ps(numbers.plus));
    let less = _mm256_set1_ps(numbers.less);
    let result = |lanes: __m256i| -> __m256 {
        let value = _mm256_cvtepi32_ps(lanes);
        match KIND {
            PRODUCT => _mm256_mul_ps(value, scale),
            LESS => _mm256_mul_ps(_mm256_sub_ps(value, less), scale),
            _ => _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(value, less), scale), plus),
        }
    };
    let lanes = match BITS {
        8 => lanes_of_bytes::<KIND>(numbers.flip, codes),
        _ => lanes::<BITS>(numbers.flip, codes),
    };
    lanes.map(|[even, odd]| interleaved::<FLOAT>(result(even), result(odd)))
}

/// 32 codes, signed, at the upper ends of lanes: sixteen and sixteen, those at even places and those at odd ones.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes_of_bytes<const KIND: usize>(flip: u8, codes: &[u8]) -> [[__m256i; 2]; 2] {
    let (halves, _) = codes.as_chunks::<16>();
    let flip = _mm256_set1_epi8(flip.cast_signed());
    let orders = const { [upper_ends(0), upper_ends(1)] };
    [&halves[0], &halves[1]].map(|half| {
        let codes = _mm256_broadcastsi128_si256(load16(half));
        let codes = match KIND {
            PRODUCT => codes,
            _ => _mm256_xor_si256(codes, flip),
        };
        [&orders[0], &orders[1]].map(|order| _mm256_shuffle_epi8(codes, load(order)))
    })
}

/// The same of codes of 5 or 6 bits. Two of them lie in two bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes<const BITS: usize>(flip: u8, codes: &[u8]) -> [[__m256i; 2]; 2] {
    let flip = _mm256_set1_epi16(i16::from(flip) << (16 - BITS));
    let mask = _mm256_set1_epi32(i32::MIN >> (BITS - 1));
    let powers = load(const { &word_powers(BITS) });
    // The second sixteen codes end where the block does.
    let orders = const { [word_bytes(BITS, 0), word_bytes(BITS, 16 - 2 * BITS)] };
    [(0, &orders[0]), (4 * BITS - 16, &orders[1])].map(|(start, order)| {
        let codes = match codes[start..].first_chunk() {
            Some(bytes) => _mm256_broadcastsi128_si256(load16(bytes)),
            None => unreachable!("a block has more than 16 bytes"),
        };
        let words = _mm256_shuffle_epi8(codes, load(order));
        let words = _mm256_xor_si256(_mm256_mullo_epi16(words, powers), flip);
        let even = _mm256_and_si256(_mm256_slli_epi32::<16>(words), mask);
        [even, _mm256_and_si256(words, mask)]
    })
}

/// Every other byte of sixteen, from `first` on, to the upper ends of lanes.
const fn upper_ends(first: u8) -> [u8; 32] {
    let mut order = [0x80; 32];
    let mut lane = 0;
    while lane < 8 {
        order[4 * lane + 3] = 2 * lane as u8 + first;
        lane += 1;
    }
    order
}

/// The two bytes that hold two codes of so many bits, twice in each lane; from byte `skipped` on.
const fn word_bytes(bits: usize, skipped: usize) -> [u8; 32] {
    let mut order = [0; 32];
    let mut lane = 0;
    while lane < 8 {
        let byte = 2 * bits * lane / 8 + skipped;
        order[4 * lane] = byte as u8;
        order[4 * lane + 1] = byte as u8 + 1;
        order[4 * lane + 2] = byte as u8;
        order[4 * lane + 3] = byte as u8 + 1;
        lane += 1;
    }
    order
}

/// What brings the first of two codes to the upper end of its word, and the second one.
const fn word_powers(bits: usize) -> [u8; 32] {
    let mut powers = [0; 32];
    let mut lane = 0;
    while lane < 8 {
        let bit = 2 * bits * lane % 8;
        let first = (1u16 << (16 - bits - bit)).to_le_bytes();
        let second = (1u16 << (16 - 2 * bits - bit)).to_le_bytes();
        powers[4 * lane] = first[0];
        powers[4 * lane + 1] = first[1];
        powers[4 * lane + 2] = second[0];
        powers[4 * lane + 3] = second[1];
        lane += 1;
    }
    powers
}
