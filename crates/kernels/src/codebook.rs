//! Sixteen-entry code books.

/// A table of 16 values that 4-bit codes index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// bitsandbytes NF4, sorted.
    Nf4,
    /// bitsandbytes FP4 (not OCP E2M1): {0, 1/16, 8, 12, 4, 6, 2, 3} / 12, bit 3 is the sign. Code 8 is plus zero, as in
    /// the map that bitsandbytes stores (its CUDA kernel says minus zero).
    BnbFp4,
    /// ggml `IQ4_NL` and `IQ4_XS`: integers from -127 to 113, sorted (gguf.md §4, table K).
    Iq4Nl,
    /// ggml `MXFP4` and `NVFP4`: E2M1 times two; code 8 is plus zero (gguf.md §4, table V).
    DoubledE2M1,
    /// comfy-kitchen's default for `asym_w4a8_int8`, sorted (comfyui.md §3.6). Files may hold another one.
    W4A8,
    /// ggml `IQ2_XXS`: a quarter of 8, 25 and 43, bit 3 is the sign; of eight codes only those together that are in its lattice.
    Iq2Xxs,
    /// ggml `IQ2_XS`: as `Iq2Xxs`, with a lattice of its own.
    Iq2Xs,
    /// ggml `IQ2_S`: as `Iq2Xxs`, with a lattice of its own.
    Iq2S,
    /// ggml `IQ3_XXS`: half of 4, 12, 20, 28, 36, 44, 52 and 62, bit 3 is the sign; a lattice of four codes.
    Iq3Xxs,
    /// ggml `IQ3_S`: twice 1, 3 ... 15, bit 3 is the sign; a lattice of four codes.
    Iq3S,
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

const W4A8: [u32; 16] = [
    0xbf7b_08bc,
    0xbf4b_6641,
    0xbf23_5ec8,
    0xbf00_409e,
    0xbec1_3038,
    0xbe86_c072,
    0xbe1e_ef5f,
    0xbd4f_bfc6, //
    0x3d57_353b,
    0x3e20_c0ad,
    0x3e87_d34e,
    0x3ec2_5226,
    0x3f00_acc1,
    0x3f23_926c,
    0x3f4b_7cfe,
    0x3f7b_0d41,
];
const IQ4_NL: [u32; 16] = integers([
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
]);
const IQ2: [u32; 16] = signed([2.0, 6.25, 10.75, 10.75, 10.75, 10.75, 10.75, 10.75]);
const IQ3_XXS: [u32; 16] = signed([2.0, 6.0, 10.0, 14.0, 18.0, 22.0, 26.0, 31.0]);
const IQ3_S: [u32; 16] = signed([2.0, 6.0, 10.0, 14.0, 18.0, 22.0, 26.0, 30.0]);
const DOUBLED_E2M1: [u32; 16] = integers([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

/// Bit patterns of integers.
const fn integers(values: [i8; 16]) -> [u32; 16] {
    let mut bits = [0; 16];
    let mut i = 0;
    while i < 16 {
        bits[i] = (values[i] as f32).to_bits();
        i += 1;
    }
    bits
}

/// Bit patterns of magnitudes, then of the same with a minus.
const fn signed(magnitudes: [f32; 8]) -> [u32; 16] {
    let mut bits = [0; 16];
    let mut i = 0;
    while i < 8 {
        bits[i] = magnitudes[i].to_bits();
        bits[i + 8] = (-magnitudes[i]).to_bits();
        i += 1;
    }
    bits
}

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

impl Codebook {
    /// Every code book whose sixteen codes stand each for itself.
    pub const ALL: &'static [Codebook] = &[
        Codebook::Nf4,
        Codebook::BnbFp4,
        Codebook::Iq4Nl,
        Codebook::DoubledE2M1,
        Codebook::W4A8,
    ];

    /// The code books of lattices.
    pub const LATTICES: &'static [Codebook] = &[
        Codebook::Iq2Xxs,
        Codebook::Iq2Xs,
        Codebook::Iq2S,
        Codebook::Iq3Xxs,
        Codebook::Iq3S,
    ];

    /// The values, indexed by code.
    pub const fn values(self) -> &'static [f32; 16] {
        static NF4_VALUES: [f32; 16] = table(&NF4);
        static BNB_FP4_VALUES: [f32; 16] = table(&BNB_FP4);
        static IQ4_NL_VALUES: [f32; 16] = table(&IQ4_NL);
        static DOUBLED_E2M1_VALUES: [f32; 16] = table(&DOUBLED_E2M1);
        static W4A8_VALUES: [f32; 16] = table(&W4A8);
        static IQ2_VALUES: [f32; 16] = table(&IQ2);
        static IQ3_XXS_VALUES: [f32; 16] = table(&IQ3_XXS);
        static IQ3_S_VALUES: [f32; 16] = table(&IQ3_S);
        match self {
            Codebook::Nf4 => &NF4_VALUES,
            Codebook::BnbFp4 => &BNB_FP4_VALUES,
            Codebook::Iq4Nl => &IQ4_NL_VALUES,
            Codebook::DoubledE2M1 => &DOUBLED_E2M1_VALUES,
            Codebook::W4A8 => &W4A8_VALUES,
            Codebook::Iq2Xxs | Codebook::Iq2Xs | Codebook::Iq2S => &IQ2_VALUES,
            Codebook::Iq3Xxs => &IQ3_XXS_VALUES,
            Codebook::Iq3S => &IQ3_S_VALUES,
        }
    }

    /// The values for [`crate::Backend::dequantize_table`]: the upper half of the byte is ignored.
    pub const fn table(self) -> &'static [f32; 256] {
        static NF4_TABLE: [f32; 256] = table(&NF4);
        static BNB_FP4_TABLE: [f32; 256] = table(&BNB_FP4);
        static IQ4_NL_TABLE: [f32; 256] = table(&IQ4_NL);
        static DOUBLED_E2M1_TABLE: [f32; 256] = table(&DOUBLED_E2M1);
        static W4A8_TABLE: [f32; 256] = table(&W4A8);
        static IQ2_TABLE: [f32; 256] = table(&IQ2);
        static IQ3_XXS_TABLE: [f32; 256] = table(&IQ3_XXS);
        static IQ3_S_TABLE: [f32; 256] = table(&IQ3_S);
        match self {
            Codebook::Nf4 => &NF4_TABLE,
            Codebook::BnbFp4 => &BNB_FP4_TABLE,
            Codebook::Iq4Nl => &IQ4_NL_TABLE,
            Codebook::DoubledE2M1 => &DOUBLED_E2M1_TABLE,
            Codebook::W4A8 => &W4A8_TABLE,
            Codebook::Iq2Xxs | Codebook::Iq2Xs | Codebook::Iq2S => &IQ2_TABLE,
            Codebook::Iq3Xxs => &IQ3_XXS_TABLE,
            Codebook::Iq3S => &IQ3_S_TABLE,
        }
    }

    /// The code whose value is nearest to `value`, as the library that owns the book finds it. NaN gives a code, no more.
    ///
    /// | book | halfway between two values |
    /// |---|---|
    /// | `Nf4`, `BnbFp4` | thresholds are the F32 midpoints; a value *on* one takes the lower (bitsandbytes.md §6) |
    /// | `Iq4Nl` | distances are compared in F32; the upper |
    /// | `DoubledE2M1` | the smaller magnitude; never code 8 |
    /// | `W4A8` | distances are compared in F32; the lower: [`nearest_level`] |
    /// | those of lattices | the lesser magnitude; zero is plus. No library looks at one code alone |
    ///
    /// `BnbFp4` has two zeros, with a threshold at 0 between them: what is above 0 but nearest to it is code 8, zero and what
    /// is below are code 0 (bitsandbytes 0.50.2, no CUDA).
    pub fn nearest(self, value: f32) -> u8 {
        match self {
            Codebook::Nf4 | Codebook::BnbFp4 => {
                let thresholds = self.thresholds().unwrap_or(&NF4_THRESHOLDS);
                thresholds.order[usize::from(thresholds.count(value))]
            }
            Codebook::Iq4Nl => nearest_upper(self.values(), value),
            Codebook::DoubledE2M1 => crate::E2M1Rule::TowardZeroUnsigned.encode(value / 2.0),
            Codebook::W4A8 => nearest_level(self.values(), value),
            Codebook::Iq2Xxs
            | Codebook::Iq2Xs
            | Codebook::Iq2S
            | Codebook::Iq3Xxs
            | Codebook::Iq3S => {
                let (magnitudes, _) = self.values().split_at(8);
                let is_beyond = |i: &usize| {
                    value.abs() > f32::midpoint(magnitudes[*i], magnitudes[*i + 1])
                        && magnitudes[*i] < magnitudes[*i + 1]
                };
                let digit = (0..7).take_while(is_beyond).count();
                digit as u8 | u8::from(value < 0.0) << 3
            }
        }
    }
}

/// How a book finds the nearest code with comparisons alone.
pub(crate) struct Thresholds {
    /// Midpoints of neighbors, ascending: the number of those below a value ...
    pub(crate) bounds: [f32; 15],
    /// ... is an index into these codes.
    pub(crate) order: [u8; 16],
}

static NF4_THRESHOLDS: Thresholds =
    Thresholds::new(&NF4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
static BNB_FP4_THRESHOLDS: Thresholds = Thresholds::new(
    &BNB_FP4,
    [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
);

impl Thresholds {
    const fn new(values: &[u32; 16], order: [u8; 16]) -> Self {
        let mut bounds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            let low = f32::from_bits(values[order[i] as usize]);
            let high = f32::from_bits(values[order[i + 1] as usize]);
            bounds[i] = f32::midpoint(low, high);
            i += 1;
        }
        Self { bounds, order }
    }

    /// How many bounds lie below `value`: no branch, so that a loop over values is vectorized.
    #[inline(always)]
    pub(crate) fn count(&self, value: f32) -> u8 {
        let mut above = 0u32;
        for bound in self.bounds {
            above += u32::from(value > bound);
        }
        above as u8
    }
}

impl Codebook {
    /// Of the books that compare with midpoints.
    pub(crate) const fn thresholds(self) -> Option<&'static Thresholds> {
        match self {
            Codebook::Nf4 => Some(&NF4_THRESHOLDS),
            Codebook::BnbFp4 => Some(&BNB_FP4_THRESHOLDS),
            Codebook::Iq4Nl
            | Codebook::DoubledE2M1
            | Codebook::W4A8
            | Codebook::Iq2Xxs
            | Codebook::Iq2Xs
            | Codebook::Iq2S
            | Codebook::Iq3Xxs
            | Codebook::Iq3S => None,
        }
    }
}

/// ggml's `best_index_int8`: the upper neighbor unless the lower one is strictly nearer.
fn nearest_upper(values: &[f32; 16], value: f32) -> u8 {
    let upper = values.iter().filter(|&&v| value >= v).count().clamp(1, 15);
    let is_lower = value - values[upper - 1] < values[upper] - value;
    (upper - usize::from(is_lower)) as u8
}

/// The index of the level nearest to `value` among sorted levels, of which some may be equal: the upper neighbor only if it
/// is strictly nearer, in F32 (comfyui.md §3.6).
pub fn nearest_level(levels: &[f32; 16], value: f32) -> u8 {
    let upper = levels.iter().filter(|&&level| level < value).count();
    let lower = upper.saturating_sub(1);
    let upper = upper.min(15);
    let is_upper = (value - levels[upper]).abs() < (value - levels[lower]).abs();
    (if is_upper { upper } else { lower }) as u8
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
                let is_second_zero = code == 8 && value == 0.0;
                let expected = if is_second_zero { 0 } else { code as u8 };
                assert_eq!(book.nearest(value), expected, "{book:?} {code}");
            }
        }
    }

    #[test]
    fn every_code_is_a_nearest_one() {
        for &book in Codebook::ALL.iter().chain(Codebook::LATTICES) {
            let largest = book.values().iter().fold(0f32, |a, v| a.max(v.abs()));
            for step in -1100..=1100 {
                let value = largest * step as f32 / 1000.0;
                let code = book.nearest(value);
                let distance = |v: f32| (f64::from(v) - f64::from(value)).abs();
                let found = distance(book.values()[usize::from(code)]);
                let best = book
                    .values()
                    .iter()
                    .map(|&v| distance(v))
                    .fold(9e9, f64::min);
                assert!(found <= best + 1e-7, "{book:?} {value}: code {code}");
            }
        }
    }

    /// Run with bitsandbytes 0.50.2: ties and the two zeros of FP4.
    #[test]
    fn fp4_has_a_threshold_between_its_zeros() {
        let half = f32::from_bits(0x3b2a_aaab); // half of code 1
        let values = [1e-6, -1e-6, 0.0, -0.0, half, -half, half.next_up()];
        let codes = values.map(|v| Codebook::BnbFp4.nearest(v));
        assert_eq!(codes, [8, 0, 0, 0, 8, 9, 1]);
    }

    #[test]
    fn ties_of_the_other_books() {
        assert_eq!(Codebook::Iq4Nl.nearest(-4.5), 8); // between -10 and 1
        assert_eq!(Codebook::Iq4Nl.nearest(-200.0), 0);
        assert_eq!(Codebook::Iq4Nl.nearest(200.0), 15);
        assert_eq!(Codebook::DoubledE2M1.nearest(-5.0), 12);
        assert_eq!(Codebook::DoubledE2M1.nearest(-0.5), 0);
        let levels = [0.0; 16].map(|_: f32| 1.0);
        assert_eq!(nearest_level(&levels, 1.0), 0);
        assert_eq!(nearest_level(&levels, 2.0), 15);
        assert_eq!(
            nearest_level(
                &[
                    0., 1., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14.
                ],
                1.5
            ),
            2
        );
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
