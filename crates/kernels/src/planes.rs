//! Planes along the first axis: the codes that share a word are not neighbors but a fixed number of words apart.
//!
//! A matrix of `n_planes * n` codes (flat, row-major, cut along its first axis in `n_planes` equal parts) is stored in `n`
//! words. Word `i` holds code `i` of every plane, each at the plane's own shift:
//!
//! ```text
//! 4 bits, 2 planes of n codes
//!
//! bit           7..4      3..0
//!            +---------+---------+
//! HQQ        |  q[i]   | q[n + i]|     byte i: the first plane is the most significant
//!            +---------+---------+
//! quanto     | q[n + i]|  q[i]   |     byte i: the first plane is the least significant
//!            +---------+---------+
//!
//! 3 bits, 10 planes of n codes in 32-bit words (HQQ)
//!
//! bit          31..30   29..27   26..24            2..0
//!            +--------+--------+----------+     +----------+
//!            |   0    |  q[i]  | q[n + i] | ... | q[9n + i]|
//!            +--------+--------+----------+     +----------+
//! ```
//!
//! Every function works on any range of the words, so that rows can be decoded without the whole matrix.
//! Spec: `specs/packings/planes_high_first.md`, `planes_low_first.md`.

/// How the planes of a matrix share words (specs/packings/).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planes {
    /// HQQ: the first plane is the most significant. 1, 2, 4 and 8 bits in bytes, 3 bits as ten planes in little-endian
    /// 32-bit words whose top two bits are zero.
    HighFirst {
        /// Bits per code: 1, 2, 3, 4 or 8.
        bits: u32,
    },
    /// optimum-quanto: the first plane is the least significant; 2, 4 and 8 bits in bytes.
    LowFirst {
        /// Bits per code: 2, 4 or 8.
        bits: u32,
    },
}

impl Planes {
    /// Every layout with every width it has.
    pub const ALL: &'static [Planes] = &[
        Planes::HighFirst { bits: 1 },
        Planes::HighFirst { bits: 2 },
        Planes::HighFirst { bits: 3 },
        Planes::HighFirst { bits: 4 },
        Planes::HighFirst { bits: 8 },
        Planes::LowFirst { bits: 2 },
        Planes::LowFirst { bits: 4 },
        Planes::LowFirst { bits: 8 },
    ];

    /// Whether the layout has this width.
    pub const fn is_valid(self) -> bool {
        match self {
            Planes::HighFirst { bits } => matches!(bits, 1 | 2 | 3 | 4 | 8),
            Planes::LowFirst { bits } => matches!(bits, 2 | 4 | 8),
        }
    }

    /// Bits per code.
    pub const fn bits(self) -> u32 {
        match self {
            Planes::HighFirst { bits } | Planes::LowFirst { bits } => bits,
        }
    }

    /// Bytes of a word: 4 for 3 bits, else 1.
    pub const fn word_bytes(self) -> usize {
        if self.bits() == 3 { 4 } else { 1 }
    }

    /// Planes, which is codes per word: 10 for 3 bits, else `8 / bits`.
    ///
    /// # Panics
    /// If the layout does not have this width.
    pub const fn n_planes(self) -> usize {
        assert!(self.is_valid(), "the layout has no codes of this width");
        if self.bits() == 3 {
            10
        } else {
            8 / self.bits() as usize
        }
    }

    /// Words per plane for `n_rows` rows along the cut axis, in rows: `n_rows / n_planes`, rounded up. What is missing in
    /// the last plane is padding.
    ///
    /// # Panics
    /// If the layout does not have this width.
    pub const fn packed_rows(self, n_rows: usize) -> usize {
        n_rows.div_ceil(self.n_planes())
    }

    /// The lowest bit of `plane`'s codes in a word.
    ///
    /// ```
    /// use safequant_kernels::Planes;
    /// assert_eq!(Planes::HighFirst { bits: 3 }.shift(0), 27);
    /// assert_eq!(Planes::LowFirst { bits: 4 }.shift(0), 0);
    /// ```
    ///
    /// # Panics
    /// If there is no such plane, or the layout does not have this width.
    pub const fn shift(self, plane: usize) -> u32 {
        assert!(plane < self.n_planes(), "there is no such plane");
        let index = match self {
            Planes::HighFirst { .. } => self.n_planes() - 1 - plane,
            Planes::LowFirst { .. } => plane,
        };
        index as u32 * self.bits()
    }

    /// Unpacks the codes that `plane` has in a range of words.
    ///
    /// `words`: `out.len() * word_bytes` bytes.
    /// `out`: one code per byte, in the order of the words.
    ///
    /// ```
    /// use safequant_kernels::Planes;
    /// let mut codes = [0; 2];
    /// Planes::HighFirst { bits: 4 }.unpack(0, &[0x12, 0x34], &mut codes);
    /// assert_eq!(codes, [1, 3]);
    /// ```
    ///
    /// # Panics
    /// If the lengths do not fit, there is no such plane, or the layout does not have this width.
    pub fn unpack(self, plane: usize, words: &[u8], out: &mut [u8]) {
        let (shift, mask) = (self.shift(plane), self.mask());
        self.check(words.len(), out.len());
        if self.word_bytes() == 1 {
            for (code, &word) in out.iter_mut().zip(words) {
                *code = word >> shift & mask;
            }
        } else {
            for (code, &word) in out.iter_mut().zip(words.as_chunks().0) {
                *code = (u32::from_le_bytes(word) >> shift) as u8 & mask;
            }
        }
    }

    /// Puts the codes of `plane` in a range of words; the other planes stay as they are. Bits of a code above the width
    /// are dropped.
    ///
    /// # Panics
    /// As [`Planes::unpack`].
    pub fn pack(self, plane: usize, codes: &[u8], words: &mut [u8]) {
        let (shift, mask) = (self.shift(plane), self.mask());
        self.check(words.len(), codes.len());
        if self.word_bytes() == 1 {
            for (&code, word) in codes.iter().zip(words) {
                *word = *word & !(mask << shift) | (code & mask) << shift;
            }
        } else {
            let mask = u32::from(mask);
            for (&code, word) in codes.iter().zip(words.as_chunks_mut().0) {
                let others = u32::from_le_bytes(*word) & !(mask << shift);
                *word = (others | (u32::from(code) & mask) << shift).to_le_bytes();
            }
        }
    }

    const fn mask(self) -> u8 {
        u8::MAX >> (8 - self.bits())
    }

    fn check(self, words: usize, codes: usize) {
        assert_eq!(
            Some(words),
            codes.checked_mul(self.word_bytes()),
            "bytes of {codes} words"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Packs a matrix of `[n_rows, columns]`, padding with zero rows.
    fn pack_matrix(planes: Planes, codes: &[u8], columns: usize) -> Vec<u8> {
        let n_words = planes.packed_rows(codes.len() / columns) * columns;
        let mut padded = codes.to_vec();
        padded.resize(n_words * planes.n_planes(), 0);
        let mut words = vec![0; n_words * planes.word_bytes()];
        for (plane, codes) in padded.chunks(n_words).enumerate() {
            planes.pack(plane, codes, &mut words);
        }
        words
    }

    /// hqq-quanto.md §2.10, run there.
    #[test]
    fn hqq_and_quanto_differ_in_the_first_plane() {
        let codes = [1, 2];
        assert_eq!(
            pack_matrix(Planes::HighFirst { bits: 4 }, &codes, 1),
            [0x12]
        );
        assert_eq!(pack_matrix(Planes::LowFirst { bits: 4 }, &codes, 1), [0x21]);
    }

    /// hqq-quanto.md §1.9: four rows of the codes 0 0 1 1 2 2 3 3 (2 bits) and 0 1 2 3 4 5 6 7 (3 bits, padded to ten).
    #[test]
    fn hqq_examples() {
        let two = [0, 0, 1, 1, 2, 2, 3, 3].repeat(4);
        let expected = [0x00, 0x00, 0x55, 0x55, 0xaa, 0xaa, 0xff, 0xff];
        assert_eq!(
            pack_matrix(Planes::HighFirst { bits: 2 }, &two, 8),
            expected
        );
        let three = [0, 1, 2, 3, 4, 5, 6, 7].repeat(4);
        let words: Vec<u32> = pack_matrix(Planes::HighFirst { bits: 3 }, &three, 8)
            .as_chunks()
            .0
            .iter()
            .map(|&word| u32::from_le_bytes(word))
            .collect();
        let expected = [
            0x0000_0000,
            0x0924_0000,
            0x1248_0000,
            0x1b6c_0000,
            0x2490_0000,
            0x2db4_0000,
            0x36d8_0000,
            0x3ffc_0000,
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn planes_fill_the_word_once() {
        for &planes in Planes::ALL {
            let mut used = 0u64;
            for plane in 0..planes.n_planes() {
                let bits = u64::from(planes.mask()) << planes.shift(plane);
                assert_eq!(used & bits, 0, "{planes:?}");
                used |= bits;
            }
            let free = if planes.bits() == 3 { 2 } else { 0 };
            assert_eq!(
                used,
                (1 << (8 * planes.word_bytes() - free)) - 1,
                "{planes:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn unpack_after_pack_is_the_identity(
            planes in proptest::sample::select(Planes::ALL),
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            from in 0..20usize,
        ) {
            let n = bytes.len() / planes.n_planes();
            let codes: Vec<u8> = bytes.iter().map(|byte| byte & planes.mask()).collect();
            let mut words = vec![0xa5; n * planes.word_bytes()];
            for plane in 0..planes.n_planes() {
                planes.pack(plane, &bytes[plane * n..][..n], &mut words);
            }
            // Any range of the words can be read by itself.
            let from = from.min(n);
            for plane in 0..planes.n_planes() {
                let mut out = vec![0xff; n - from];
                planes.unpack(plane, &words[from * planes.word_bytes()..], &mut out);
                prop_assert_eq!(&out[..], &codes[plane * n..][from..n]);
            }
        }
    }
}
