//! The nearest of sixteen entries: a search among the fifteen midpoints in four comparisons, each with the bound that
//! the ones before it leave.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_GT_OQ, _mm256_add_epi32, _mm256_cmp_ps, _mm256_or_si256,
    _mm256_permutevar8x32_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_shuffle_epi8,
    _mm256_srli_epi32, _mm256_sub_epi32,
};

use super::super::lanes::{load, load_ps};
use super::lanes::bits;
use crate::Codebook;

/// A book's bounds and the codes of its entries.
#[derive(Clone, Copy)]
pub(super) struct Book {
    middle: __m256,
    quarters: __m256,
    eighths: __m256,
    sixteenths: __m256,
    codes: __m256i,
}

impl Book {
    /// `None` for books that are not searched by midpoints.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn new(book: Codebook) -> Option<Self> {
        let thresholds = book.thresholds()?;
        let b = &thresholds.bounds;
        let mut codes = [0; 32];
        codes[..16].copy_from_slice(&thresholds.order);
        codes[16..].copy_from_slice(&thresholds.order);
        Some(Self {
            middle: _mm256_set1_ps(b[7]),
            quarters: load_ps(&[b[3], b[11], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            eighths: load_ps(&[b[1], b[5], b[9], b[13], 0.0, 0.0, 0.0, 0.0]),
            sixteenths: load_ps(&std::array::from_fn(|i| b[2 * i])),
            codes: load(&codes),
        })
    }

    /// Codes of values; of a NaN that of the smallest entry, as no bound lies below it.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn codes(&self, v: __m256) -> __m256i {
        // Where the top bit of an index byte is set, the shuffle gives 0.
        let upper = _mm256_set1_epi32(0x8080_8000_u32.cast_signed());
        self.entries(_mm256_or_si256(self.index(v), upper))
    }

    /// Ranks of the entries nearest to values.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn index(&self, v: __m256) -> __m256i {
        let above = |bound| bits(_mm256_cmp_ps::<_CMP_GT_OQ>(v, bound));
        let mut index = _mm256_srli_epi32::<31>(above(self.middle));
        for bounds in [self.quarters, self.eighths, self.sixteenths] {
            let above = above(_mm256_permutevar8x32_ps(bounds, index));
            // A mask is -1.
            index = _mm256_sub_epi32(_mm256_add_epi32(index, index), above);
        }
        index
    }

    /// The codes of entries, by their rank, one to a byte.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    pub(super) fn entries(&self, ranks: __m256i) -> __m256i {
        _mm256_shuffle_epi8(self.codes, ranks)
    }
}
