//! How a run of codes sits in bytes: one file per bit layout, each with a diagram, a scalar `pack` and an `unpack`.
//!
//! A packing is about *one run* of codes (a row, or a column gathered into a row). Which axis runs, and whether the
//! stored matrix is the transpose of the logical one, is the business of `schemes`.

/// A bit layout (specs/packings/).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One code per byte.
    Bytes,
    /// One contiguous stream, lowest bits first, `bits` in 1..=8; codes may straddle words. In little-endian words of
    /// any width the bytes are the same. GPTQ (2, 3, 4, 8 bits), compressed-tensors since 0.18, MLX, U8 pairs with the
    /// even element low.
    LsbFirst {
        /// Bits per code.
        bits: u32,
    },
    /// `32 / bits` codes per 32-bit word, lowest bits first, no straddling: compressed-tensors up to 0.17.
    LsbFirstNoStraddle {
        /// Bits per code.
        bits: u32,
    },
    /// GPTQModel's planes: every 32 codes take `bits` words, each plane word-aligned.
    Planar {
        /// Bits per code.
        bits: u32,
    },
    /// Two 4-bit codes per byte, the even element in the high nibble: bitsandbytes.
    NibblesHighFirst,
    /// Eight 4-bit codes per 32-bit word in the order 0, 2, 4, 6, 1, 3, 5, 7: AWQ.
    AwqInterleaved,
}

impl Packing {
    /// Bits per code.
    pub const fn bits(self) -> u32 {
        unimplemented!()
    }

    /// Codes that fill a whole number of `unit_bytes` together: runs are cut at multiples of it without sharing a word.
    pub const fn codes_per_unit(self) -> (usize, usize) {
        unimplemented!()
    }

    /// Bytes that `n_codes` occupy when the run is padded to whole units of `word_bytes` (1, 2, 4 or 8).
    pub const fn packed_len_bytes(self, _n_codes: usize, _word_bytes: usize) -> usize {
        unimplemented!()
    }

    /// Unpacks the first `out.len()` codes of a run, one code per byte.
    ///
    /// # Panics
    /// If `packed` is shorter than the codes need.
    pub fn unpack(self, _packed: &[u8], _out: &mut [u8]) {
        unimplemented!()
    }

    /// Packs a run; bytes beyond the codes (padding) become zero.
    ///
    /// # Panics
    /// If `packed` is shorter than the codes need, or (debug only) a code has bits above `bits`.
    pub fn pack(self, _codes: &[u8], _packed: &mut [u8]) {
        unimplemented!()
    }
}
