//! How a run of codes sits in bytes: one file per bit layout, each with a diagram, a scalar `pack` and an `unpack`.
//!
//! A packing is about *one run* of codes (a row, or a column gathered into a row). Which axis runs, and whether the
//! stored matrix is the transpose of the logical one, is the business of `schemes`.

mod awq_interleaved;
mod bytes;
mod lsb_first;
mod lsb_first_no_straddle;
mod nibbles_high_first;
mod planar;
mod spread;

/// A bit layout (specs/packings/).
///
/// `bits` is 1 to 8 ([`Packing::Planar`]: 2 to 8). Every function here panics on another width; see
/// [`Packing::is_valid`].
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
    /// Every layout with every width it has.
    ///
    /// ```
    /// use safequant_kernels::Packing;
    /// assert_eq!(Packing::all().count(), 26);
    /// ```
    pub fn all() -> impl Iterator<Item = Packing> {
        [
            Packing::Bytes,
            Packing::NibblesHighFirst,
            Packing::AwqInterleaved,
        ]
        .into_iter()
        .chain((1..=8).map(|bits| Packing::LsbFirst { bits }))
        .chain((1..=8).map(|bits| Packing::LsbFirstNoStraddle { bits }))
        .chain((2..=8).map(|bits| Packing::Planar { bits }))
    }

    /// Whether the layout has this width.
    pub const fn is_valid(self) -> bool {
        match self {
            Packing::Bytes | Packing::NibblesHighFirst | Packing::AwqInterleaved => true,
            Packing::LsbFirst { bits } | Packing::LsbFirstNoStraddle { bits } => {
                1 <= bits && bits <= 8
            }
            Packing::Planar { bits } => 2 <= bits && bits <= 8,
        }
    }

    /// Bits per code (8 for [`Packing::Bytes`]).
    pub const fn bits(self) -> u32 {
        match self {
            Packing::Bytes => 8,
            Packing::NibblesHighFirst | Packing::AwqInterleaved => 4,
            Packing::LsbFirst { bits }
            | Packing::LsbFirstNoStraddle { bits }
            | Packing::Planar { bits } => bits,
        }
    }

    /// `(codes, bytes)` of the smallest unit at which a run can be cut: every unit starts on a byte boundary, and packing
    /// units one by one and putting the bytes together is the same as packing the whole run.
    ///
    /// [`Packing::LsbFirst`] with 3 bits: 8 codes in 3 bytes; with 4 bits: 2 codes in 1 byte. Layouts that are defined in
    /// 32-bit words have units of whole words. See [`Packing::codes_per_word_unit`] for cuts in wider words.
    ///
    /// # Panics
    /// If the layout does not have this width.
    pub const fn codes_per_unit(self) -> (usize, usize) {
        assert!(self.is_valid(), "the packing has no codes of this width");
        let bits = self.bits() as usize;
        match self {
            Packing::Bytes => (1, 1),
            Packing::LsbFirst { .. } => match bits {
                8 => (1, 1),
                4 => (2, 1),
                2 => (4, 1),
                6 => (4, 3),
                _ => (8, bits), // 1, 3, 5, 7
            },
            Packing::LsbFirstNoStraddle { .. } => (32 / bits, 4),
            Packing::Planar { .. } => (32, 4 * bits),
            Packing::NibblesHighFirst => (2, 1),
            Packing::AwqInterleaved => (8, 4),
        }
    }

    /// [`Packing::codes_per_unit`] where the bytes are also whole words of `word_bytes` (1, 2, 4 or 8).
    ///
    /// [`Packing::LsbFirst`] with 3 bits in 32-bit words: 32 codes in 12 bytes.
    ///
    /// # Panics
    /// If the layout does not have this width, or on another word size.
    pub const fn codes_per_word_unit(self, word_bytes: usize) -> (usize, usize) {
        assert!(is_word(word_bytes), "words have 1, 2, 4 or 8 bytes");
        let (mut codes, mut bytes) = self.codes_per_unit();
        while !bytes.is_multiple_of(word_bytes) {
            codes *= 2;
            bytes *= 2;
        }
        (codes, bytes)
    }

    /// Bytes that `n_codes` occupy when the run is padded to whole words of `word_bytes` (1, 2, 4 or 8); layouts that are
    /// defined in 32-bit words or blocks are padded to those in any case. Saturates at `usize::MAX`.
    ///
    /// # Panics
    /// If the layout does not have this width, or on another word size.
    pub const fn packed_len_bytes(self, n_codes: usize, word_bytes: usize) -> usize {
        assert!(is_word(word_bytes), "words have 1, 2, 4 or 8 bytes");
        let (unit_codes, unit_bytes) = self.codes_per_unit();
        let len = match self {
            Packing::LsbFirst { bits } => {
                // Whole units first, so that nothing overflows: fewer than `unit_codes` codes are left.
                let rest_bits = (n_codes % unit_codes) * bits as usize;
                (n_codes / unit_codes)
                    .saturating_mul(unit_bytes)
                    .saturating_add(rest_bits.div_ceil(8))
            }
            Packing::Bytes
            | Packing::LsbFirstNoStraddle { .. }
            | Packing::Planar { .. }
            | Packing::NibblesHighFirst
            | Packing::AwqInterleaved => n_codes.div_ceil(unit_codes).saturating_mul(unit_bytes),
        };
        len.div_ceil(word_bytes).saturating_mul(word_bytes)
    }

    /// Unpacks the first `out.len()` codes of a run, one code per byte.
    ///
    /// `packed`: at least `packed_len_bytes(out.len(), 1)` bytes; more are ignored, and so are padding bits.
    ///
    /// ```
    /// use safequant_kernels::Packing;
    /// let mut codes = [0; 3];
    /// Packing::LsbFirst { bits: 4 }.unpack(&[0x21, 0x03], &mut codes);
    /// assert_eq!(codes, [1, 2, 3]);
    /// ```
    ///
    /// # Panics
    /// If `packed` is shorter than the codes need, or the layout does not have this width.
    pub fn unpack(self, packed: &[u8], out: &mut [u8]) {
        let len = self.packed_len_bytes(out.len(), 1);
        assert!(
            packed.len() >= len,
            "{} packed bytes, {len} needed",
            packed.len()
        );
        let packed = &packed[..len];
        match self {
            Packing::Bytes => bytes::unpack(packed, out),
            Packing::LsbFirst { bits } => lsb_first::unpack(bits, packed, out),
            Packing::LsbFirstNoStraddle { bits } => {
                lsb_first_no_straddle::unpack(bits, packed, out);
            }
            Packing::Planar { bits } => planar::unpack(bits, packed, out),
            Packing::NibblesHighFirst => nibbles_high_first::unpack(packed, out),
            Packing::AwqInterleaved => awq_interleaved::unpack(packed, out),
        }
    }

    /// Packs a run; bytes beyond the codes (padding) become zero, up to the end of `packed`.
    ///
    /// # Panics
    /// If `packed` is shorter than the codes need, the layout does not have this width, or (debug only) a code has bits
    /// above `bits`; otherwise such bits are dropped.
    pub fn pack(self, codes: &[u8], packed: &mut [u8]) {
        let len = self.packed_len_bytes(codes.len(), 1);
        assert!(
            packed.len() >= len,
            "{} packed bytes, {len} needed",
            packed.len()
        );
        debug_assert!(
            codes.iter().all(|&c| u32::from(c) >> self.bits() == 0),
            "a code is too wide"
        );
        let (packed, padding) = packed.split_at_mut(len);
        padding.fill(0);
        match self {
            Packing::Bytes => bytes::pack(codes, packed),
            Packing::LsbFirst { bits } => lsb_first::pack(bits, codes, packed),
            Packing::LsbFirstNoStraddle { bits } => {
                lsb_first_no_straddle::pack(bits, codes, packed);
            }
            Packing::Planar { bits } => planar::pack(bits, codes, packed),
            Packing::NibblesHighFirst => nibbles_high_first::pack(codes, packed),
            Packing::AwqInterleaved => awq_interleaved::pack(codes, packed),
        }
    }
}

const fn is_word(word_bytes: usize) -> bool {
    matches!(word_bytes, 1 | 2 | 4 | 8)
}

/// What the tests of the layouts share.
#[cfg(test)]
mod examples {
    use super::Packing;

    /// The codes of the worked examples in gptq.md §3: `(3k + 1) mod 2^bits`.
    pub(super) fn ramp(bits: u32) -> Vec<u8> {
        (0..32u32)
            .map(|k| ((3 * k + 1) % (1 << bits)) as u8)
            .collect()
    }

    /// The codes packed in 32-bit words, having checked that they come back.
    pub(super) fn words(packing: Packing, codes: &[u8]) -> Vec<u32> {
        let mut packed = vec![0xff; packing.packed_len_bytes(codes.len(), 4)];
        packing.pack(codes, &mut packed);
        let mut back = vec![0xff; codes.len()];
        packing.unpack(&packed, &mut back);
        assert_eq!(back, codes, "{packing:?}");
        packed
            .as_chunks()
            .0
            .iter()
            .map(|&word| u32::from_le_bytes(word))
            .collect()
    }
}
