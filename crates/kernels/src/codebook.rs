//! Sixteen-entry code books.

/// A table of 16 values that 4-bit codes index (bitsandbytes.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// bitsandbytes NF4, sorted.
    Nf4,
    /// bitsandbytes FP4 (not OCP E2M1): {0, 1/16, 8, 12, 4, 6, 2, 3} / 12, bit 3 is the sign. Code 8 is plus zero, as in
    /// the map that bitsandbytes stores (its CUDA kernel says minus zero).
    BnbFp4,
}

/// The library's constants as bit patterns: decimals would invite a second rounding.
const NF4: [u32; 16] = [
    0xbf80_0000,
    0xbf32_39b1,
    0xbf06_6b30,
    0xbeca_32a0,
    0xbe91_a24d,
    0xbe3d_353f,
    0xbdba_7871,
    0x0000_0000, //
    0x3da2_faff,
    0x3e24_cae3,
    0x3e7c_04dd,
    0x3ead_033a,
    0x3ee1_a4b8,
    0x3f10_07ab,
    0x3f39_13b3,
    0x3f80_0000,
];
const BNB_FP4: [u32; 16] = [
    0x0000_0000,
    0x3baa_aaab,
    0x3f2a_aaab,
    0x3f80_0000,
    0x3eaa_aaab,
    0x3f00_0000,
    0x3e2a_aaab,
    0x3e80_0000, //
    0x0000_0000,
    0xbbaa_aaab,
    0xbf2a_aaab,
    0xbf80_0000,
    0xbeaa_aaab,
    0xbf00_0000,
    0xbe2a_aaab,
    0xbe80_0000,
];

/// `N` values, repeating the 16: codes above 15 count modulo 16.
const fn table<const N: usize>(bits: &[u32; 16]) -> [f32; N] {
    let mut values = [0.0; N];
    let mut i = 0;
    while i < N {
        values[i] = f32::from_bits(bits[i % 16]);
        i += 1;
    }
    values
}

static NF4_VALUES: [f32; 16] = table(&NF4);
static BNB_FP4_VALUES: [f32; 16] = table(&BNB_FP4);
static NF4_TABLE: [f32; 256] = table(&NF4);
static BNB_FP4_TABLE: [f32; 256] = table(&BNB_FP4);

impl Codebook {
    /// Every code book.
    pub const ALL: &'static [Codebook] = &[Codebook::Nf4, Codebook::BnbFp4];

    /// The values, indexed by code.
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Codebook::Nf4 => &NF4_VALUES,
            Codebook::BnbFp4 => &BNB_FP4_VALUES,
        }
    }

    /// The values for [`crate::Backend::dequantize_table`]: the upper half of the byte is ignored.
    pub const fn table(self) -> &'static [f32; 256] {
        match self {
            Codebook::Nf4 => &NF4_TABLE,
            Codebook::BnbFp4 => &BNB_FP4_TABLE,
        }
    }

    /// The code whose value is nearest to `value`: thresholds are the F32 midpoints of neighboring values, and a value
    /// *on* a threshold takes the lower one (bitsandbytes.md §6). NaN gives the lowest value's code.
    ///
    /// A FP4 zero is always code 0, never 8.
    pub fn nearest(self, value: f32) -> u8 {
        let sorted: &[u8] = match self {
            Codebook::Nf4 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            Codebook::BnbFp4 => &[11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3],
        };
        let at = |i: usize| self.values()[usize::from(sorted[i])];
        let above = (1..sorted.len())
            .filter(|&i| value > f32::midpoint(at(i - 1), at(i)))
            .count();
        sorted[above]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp4_values_are_twelfths() {
        let twelfths = [0.0, 1.0 / 16.0, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0].map(|n: f32| n / 12.0);
        let values = Codebook::BnbFp4.values();
        assert_eq!(values[..8], twelfths);
        assert_eq!(values[9..], twelfths.map(|v| -v)[1..]);
    }

    #[test]
    fn nf4_is_sorted_and_spans_one() {
        let values = Codebook::Nf4.values();
        assert!(values.is_sorted());
        assert_eq!((values[0], values[7], values[15]), (-1.0, 0.0, 1.0));
    }

    #[test]
    fn every_value_is_nearest_to_itself() {
        for &book in Codebook::ALL {
            for (code, &value) in book.values().iter().enumerate() {
                let expected = if value == 0.0 {
                    [7, 0][book as usize]
                } else {
                    code as u8
                };
                assert_eq!(book.nearest(value), expected, "{book:?} {code}");
            }
        }
    }

    /// bitsandbytes.md §13: output of the library for x[i] = (i - 32) / 32, x[5] = 0.3, block of 64.
    #[test]
    fn codes_are_those_of_the_library() {
        let nf4 = "00 00 0b 11 11 11 12 22 22 33 33 44 45 55 66 67 77 88 99 9a aa bb bc cc cd dd de ee ee ee ff ff";
        let fp4 = "bb bb b4 aa aa aa aa dd dd dc cc cf ff ee ee 99 01 16 66 67 77 44 44 55 55 52 22 22 22 23 33 33";
        for (book, bytes) in [(Codebook::Nf4, nf4), (Codebook::BnbFp4, fp4)] {
            let codes: Vec<u32> = bytes.chars().filter_map(|c| c.to_digit(16)).collect();
            assert_eq!(codes.len(), 64);
            for (i, &code) in codes.iter().enumerate() {
                let x = if i == 5 {
                    0.3
                } else {
                    (i as f32 - 32.0) / 32.0
                };
                assert_eq!(u32::from(book.nearest(x)), code, "{book:?} element {i}");
            }
        }
    }
}
