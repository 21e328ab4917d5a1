//! FP8 codes to values and, with one scale for many of them, straight to BF16 bits.
//!
//! **Values.** With its fields moved, an FP8 number is an F16 number, up to a power of two that makes up for the bias; F16C
//! widens it, subnormals included, and the product with that power is exact. Codes that are no finite number are rare:
//! a group with one is looked up in the portable table.
//!
//! **BF16 bits.** Multiplying a code by 2^k changes the exponent of `code * scale` and none of its other bits, as long as
//! everything stays in the normal range: rounding to F32 and then to BF16 commutes with it. So the sixteen codes 10..1F
//! (hexadecimal) give the results of all codes from there on: the low four bits choose one, and the upper exponent bits
//! are added to its exponent. In BF16 the exponent's upper seven bits fill, with the sign, the high byte, so that is an
//! addition of bytes, and the sign comes with it. Codes 00..0F have sixteen results of their own: subnormals are among them.
//! Eighteen instructions for 32 codes; nothing is approximated.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi8, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castsi256_si128, _mm256_cmpeq_epi8, _mm256_cmpgt_epi8, _mm256_cvtepi8_epi16,
    _mm256_cvtph_ps, _mm256_extracti128_si256, _mm256_max_epu8, _mm256_mul_ps, _mm256_or_si256,
    _mm256_permute2x128_si256, _mm256_permute4x64_epi64, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16,
    _mm256_srli_epi16, _mm256_sub_epi8, _mm256_testz_si256, _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi8, _mm256_xor_si256,
};

use super::lanes::{bf16_no_nan, load, load_ps, load16};
use super::tables::planes_of_words;
use crate::Minifloat;

/// The FP8 formats, as constants of functions.
pub(super) const E4M3: usize = Minifloat::E4M3 as usize;
/// See [`E4M3`].
pub(super) const E5M2: usize = Minifloat::E5M2 as usize;
/// See [`E4M3`].
pub(super) const E4M3_FNUZ: usize = Minifloat::E4M3Fnuz as usize;
/// See [`E4M3`].
pub(super) const E5M2_FNUZ: usize = Minifloat::E5M2Fnuz as usize;

const fn mantissa_bits<const FORMAT: usize>() -> u32 {
    match FORMAT {
        E4M3 | E4M3_FNUZ => 3,
        _ => 2,
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(byte: u8) -> __m256i {
    _mm256_set1_epi8(byte.cast_signed())
}

/// All ones in the bytes that are no finite number, or none to F16, in the formats without negative zero.
#[target_feature(enable = "avx2")]
#[inline]
fn special_fnuz<const FORMAT: usize>(codes: __m256i, magnitudes: __m256i) -> __m256i {
    let is_nan = _mm256_cmpeq_epi8(codes, splat(0x80));
    match FORMAT {
        // Numbers from 7C on are infinities and NaN to F16.
        E5M2_FNUZ => _mm256_or_si256(_mm256_cmpgt_epi8(magnitudes, splat(0x7b)), is_nan),
        _ => is_nan,
    }
}

/// Whether a code was met that is not a finite number. Looking while decoding, and decoding again if need be, is one
/// instruction per vector more; a pass over the codes before would keep the memory waiting.
#[derive(Clone, Copy)]
pub(super) struct Met(__m256i);

impl Met {
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn none() -> Self {
        Met(_mm256_setzero_si256())
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn look<const FORMAT: usize>(&mut self, codes: &[u8; 32]) {
        let codes = load(codes);
        self.see::<FORMAT>(codes, _mm256_and_si256(codes, splat(0x7f)));
    }

    /// Where specials are the largest codes, the largest one is kept: an instruction.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn see<const FORMAT: usize>(&mut self, codes: __m256i, magnitudes: __m256i) {
        self.0 = match FORMAT {
            E4M3 | E5M2 => _mm256_max_epu8(self.0, magnitudes),
            _ => _mm256_or_si256(self.0, special_fnuz::<FORMAT>(codes, magnitudes)),
        };
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn any<const FORMAT: usize>(self) -> bool {
        let special = match FORMAT {
            E4M3 => _mm256_cmpgt_epi8(self.0, splat(0x7e)),
            E5M2 => _mm256_cmpgt_epi8(self.0, splat(0x7b)),
            _ => self.0,
        };
        _mm256_testz_si256(special, special) == 0
    }
}

/// The values of 32 codes that are all finite.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn values<const FORMAT: usize>(codes: &[u8; 32]) -> [__m256; 4] {
    // F16's bias less the format's.
    let factor = _mm256_set1_ps(match FORMAT {
        E4M3 => 256.0,
        E4M3_FNUZ => 128.0,
        E5M2 => 1.0,
        _ => 0.5,
    });
    let (halves, _) = codes.as_chunks::<16>();
    let [a, b] = [to_f16::<FORMAT>(&halves[0]), to_f16::<FORMAT>(&halves[1])];
    [
        _mm256_castsi256_si128(a),
        _mm256_extracti128_si256::<1>(a),
        _mm256_castsi256_si128(b),
        _mm256_extracti128_si256::<1>(b),
    ]
    .map(|half| _mm256_mul_ps(_mm256_cvtph_ps(half), factor))
}

/// 16 finite codes as F16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn to_f16<const FORMAT: usize>(codes: &[u8; 16]) -> __m256i {
    // The sign fills all upper bits: it stays where it belongs, bit 15, in either shift.
    let wide = _mm256_cvtepi8_epi16(load16(codes));
    match mantissa_bits::<FORMAT>() {
        3 => {
            let keep = _mm256_set1_epi16(0xbf80_u16.cast_signed());
            _mm256_and_si256(_mm256_slli_epi16::<7>(wide), keep)
        }
        _ => _mm256_slli_epi16::<8>(wide),
    }
}

/// The values of 32 codes of any table.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn from_table(table: &[f32; 256], codes: &[u8; 32]) -> [__m256; 4] {
    let values = codes.map(|code| table[usize::from(code)]);
    let (vectors, _) = values.as_chunks();
    [0, 1, 2, 3].map(|i| load_ps(&vectors[i]))
}

/// BF16 results of one scale, for finite codes.
#[derive(Clone, Copy)]
pub(super) struct ScaledFp8 {
    /// Low and high bytes of the results of codes 10..1F, the high ones less the step of one in the upper exponent bits.
    bytes: [__m256i; 2],
    /// What turns these into the results of codes 00..0F, by exclusive or.
    first: [__m256i; 2],
    /// What the upper four bits of a code add to high bytes: exponent and sign.
    added: __m256i,
}

impl ScaledFp8 {
    /// `None` where results may leave the normal range.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn new<const FORMAT: usize>(scale: f32) -> Option<Self> {
        // Normal codes are from 2^-15 to 2^16.
        const SMALL: f32 = 1.0 / (1u128 << 100) as f32;
        if !(SMALL..=1.0 / SMALL).contains(&scale.abs()) {
            return None;
        }
        let scale = _mm256_set1_ps(scale);
        let (table, _) = Minifloat::ALL[FORMAT].table().as_chunks::<8>();
        let product = |at: usize| _mm256_mul_ps(load_ps(&table[at]), scale);
        let first = both_planes(bf16_no_nan(product(0), product(1)));
        let [low, high] = both_planes(bf16_no_nan(product(2), product(3)));
        let step = match mantissa_bits::<FORMAT>() {
            3 => 1,
            _ => 2,
        };
        let bytes = [low, _mm256_sub_epi8(high, splat(step))];
        let added: [u8; 16] =
            std::array::from_fn(|upper| (upper as u8 & 7) * step + (upper as u8 & 8) * 16);
        Some(Self {
            bytes,
            first: [0, 1].map(|i| _mm256_xor_si256(first[i], bytes[i])),
            added: _mm256_broadcastsi128_si256(load16(&added)),
        })
    }

    /// The BF16 bits of 32 codes.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn block<const FORMAT: usize>(
        self,
        codes: &[u8; 32],
        met: &mut Met,
    ) -> [__m256i; 2] {
        let codes = _mm256_permute4x64_epi64::<0b11_01_10_00>(load(codes));
        // The lower four bits choose, and bit 7 would choose nothing.
        let magnitudes = _mm256_and_si256(codes, splat(0x7f));
        met.see::<FORMAT>(codes, magnitudes);
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), splat(0x0f));
        let high = _mm256_shuffle_epi8(self.bytes[1], magnitudes);
        let high = _mm256_add_epi8(high, _mm256_shuffle_epi8(self.added, upper));
        let low = _mm256_shuffle_epi8(self.bytes[0], magnitudes);
        // Bit 7 is set from code 10 on.
        let if_first = _mm256_add_epi8(magnitudes, splat(0x70));
        let high = _mm256_xor_si256(high, _mm256_shuffle_epi8(self.first[1], if_first));
        let low = _mm256_xor_si256(low, _mm256_shuffle_epi8(self.first[0], if_first));
        [
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        ]
    }
}

/// The planes of sixteen words, each in both halves of a register.
#[target_feature(enable = "avx2")]
#[inline]
fn both_planes(words: __m256i) -> [__m256i; 2] {
    let planes = planes_of_words(words);
    [
        _mm256_permute2x128_si256::<0x00>(planes, planes),
        _mm256_permute2x128_si256::<0x11>(planes, planes),
    ]
}
