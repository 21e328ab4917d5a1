//! FP8 codes to values, and with one scale for many of them straight to BF16 bits.
//!
//! **Values.** With its fields moved, an FP8 number is an F16 number up to a power of two that makes up for the bias;
//! `vcvtph2ps` widens it, subnormals included, and the product with that power is exact.
//!
//! **BF16 bits.** The results of the 128 codes without a sign stand in two planes of bytes, two registers each, which
//! `vpermi2b` looks up; the sign is that of the code, as rounding is symmetric.
//!
//! Codes that are no finite number are rare: a group with one is looked up in the portable table.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castsi256_si512, _mm512_castsi512_si256,
    _mm512_cmpeq_epi8_mask, _mm512_cmpge_epu8_mask, _mm512_cvtepi8_epi16, _mm512_cvtepi16_epi8,
    _mm512_cvtph_ps, _mm512_extracti64x4_epi64, _mm512_inserti64x4, _mm512_mul_ps,
    _mm512_permutex2var_epi8, _mm512_permutexvar_epi64, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_ps, _mm512_setr_epi64, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi8, _mm512_xor_si512,
};

use super::formula::{BF16, words32};
use super::lanes::{load_ps, load32};
use crate::Minifloat;

/// The FP8 formats, as constants of functions.
pub(super) const E4M3: usize = Minifloat::E4M3 as usize;
/// See [`E4M3`].
pub(super) const E5M2: usize = Minifloat::E5M2 as usize;
/// See [`E4M3`].
pub(super) const E4M3_FNUZ: usize = Minifloat::E4M3Fnuz as usize;
/// See [`E4M3`].
pub(super) const E5M2_FNUZ: usize = Minifloat::E5M2Fnuz as usize;

/// One bit for each byte that is no finite number, or none to F16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn special<const FORMAT: usize>(codes: __m512i) -> u64 {
    let sign = _mm512_set1_epi8(i8::MIN);
    let magnitude = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
    match FORMAT {
        E4M3 => _mm512_cmpeq_epi8_mask(magnitude, _mm512_set1_epi8(0x7f)),
        E4M3_FNUZ => _mm512_cmpeq_epi8_mask(codes, sign),
        E5M2 => _mm512_cmpge_epu8_mask(magnitude, _mm512_set1_epi8(0x7c)),
        // Numbers from 7C on are infinities and NaN to F16.
        _ => {
            _mm512_cmpge_epu8_mask(magnitude, _mm512_set1_epi8(0x7c))
                | _mm512_cmpeq_epi8_mask(codes, sign)
        }
    }
}

/// The values of 32 codes that are all finite.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn values<const FORMAT: usize>(codes: &[u8; 32]) -> [__m512; 2] {
    // F16's bias less the format's.
    let factor = _mm512_set1_ps(match FORMAT {
        E4M3 => 256.0,
        E4M3_FNUZ => 128.0,
        E5M2 => 1.0,
        _ => 0.5,
    });
    // The sign fills all upper bits: it stays where it belongs, bit 15, in either shift.
    let wide = _mm512_cvtepi8_epi16(load32(codes));
    let halves = if FORMAT == E5M2 || FORMAT == E5M2_FNUZ {
        _mm512_slli_epi16::<8>(wide)
    } else {
        let keep = _mm512_set1_epi16(0xbf80_u16.cast_signed());
        _mm512_and_si512(_mm512_slli_epi16::<7>(wide), keep)
    };
    let low = _mm512_castsi512_si256(halves);
    let high = _mm512_extracti64x4_epi64::<1>(halves);
    [
        _mm512_mul_ps(_mm512_cvtph_ps(low), factor),
        _mm512_mul_ps(_mm512_cvtph_ps(high), factor),
    ]
}

/// The values of 32 codes of any table.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
pub(super) fn from_table(table: &[f32; 256], codes: &[u8; 32]) -> [__m512; 2] {
    let values = codes.map(|code| table[usize::from(code)]);
    let (vectors, _) = values.as_chunks();
    [load_ps(&vectors[0]), load_ps(&vectors[1])]
}

/// BF16 results of one finite scale, for finite codes.
#[derive(Clone, Copy)]
pub(super) struct Scaled {
    low: [__m512i; 2],
    high: [__m512i; 2],
}

impl Scaled {
    /// `table`: the values of a format's codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    pub(super) fn new(table: &[f32; 256], scale: f32) -> Self {
        let scale = _mm512_set1_ps(scale);
        let (vectors, _) = table.as_chunks::<16>();
        let product = |at: usize| _mm512_mul_ps(load_ps(&vectors[at]), scale);
        let words = [0, 2, 4, 6].map(|at| words32::<BF16>([product(at), product(at + 1)]));
        let high = words.map(|words| _mm512_srli_epi16::<8>(words));
        Self {
            low: [bytes(words[0], words[1]), bytes(words[2], words[3])],
            high: [bytes(high[0], high[1]), bytes(high[2], high[3])],
        }
    }

    /// The BF16 bits of 64 codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
    #[inline]
    pub(super) fn block(&self, codes: __m512i) -> [__m512i; 2] {
        // Unpacking is within 128 bits: codes 8 i and 32 + 8 i on are brought to the halves of part i.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        let codes = _mm512_permutexvar_epi64(order, codes);
        let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
        let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
        let sign = _mm512_and_si512(codes, _mm512_set1_epi8(i8::MIN));
        let high = _mm512_xor_si512(high, sign);
        [
            _mm512_unpacklo_epi8(low, high),
            _mm512_unpackhi_epi8(low, high),
        ]
    }
}

/// The low bytes of 64 words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
#[inline]
fn bytes(a: __m512i, b: __m512i) -> __m512i {
    let low = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(a));
    _mm512_inserti64x4::<1>(low, _mm512_cvtepi16_epi8(b))
}
