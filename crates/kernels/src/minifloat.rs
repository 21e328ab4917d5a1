//! Floats of at most 8 bits: layouts as constants, one exact decoder, one exact integer encoder.
//!
//! The scalar functions here are the definition (specs/dtypes/). The slice encoder of a backend is faster and equals
//! them bit for bit.

/// Where a format spends its codes on things that are not finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Specials {
    /// Every code is a finite number (FP4, FP6).
    None,
    /// The two codes with all magnitude bits set are NaN; there is no infinity (E4M3 "FN").
    NanOnly,
    /// As in IEEE 754: the top exponent holds infinity (mantissa zero) and NaN (E5M2).
    Ieee,
    /// The code of minus zero is the only NaN; no infinity, no minus zero ("FNUZ").
    Fnuz,
}

/// Sign, exponent and mantissa of a small float.
///
/// ```text
///   bit  e+m      e+m-1 .. m      m-1 .. 0
///       +------+----------------+----------+
///       | sign |   exponent E   |    M     |
///       +------+----------------+----------+
///   E > 0:  (-1)^sign * 2^(E - bias) * (1 + M / 2^m)
///   E = 0:  (-1)^sign * 2^(1 - bias) * M / 2^m
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Exponent bits `e`.
    pub exponent_bits: u32,
    /// Mantissa bits `m`, hidden bit not counted.
    pub mantissa_bits: u32,
    /// Exponent bias.
    pub bias: u32,
    /// Code of the largest finite value.
    pub max_code: u8,
    /// What is not a finite number.
    pub specials: Specials,
}

impl Layout {
    /// OCP E4M3 ("FN").
    pub const E4M3: Layout = Layout::new(4, 3, 7, 0x7e, Specials::NanOnly);
    /// OCP E5M2.
    pub const E5M2: Layout = Layout::new(5, 2, 15, 0x7b, Specials::Ieee);
    /// E4M3FNUZ.
    pub const E4M3_FNUZ: Layout = Layout::new(4, 3, 8, 0x7f, Specials::Fnuz);
    /// E5M2FNUZ.
    pub const E5M2_FNUZ: Layout = Layout::new(5, 2, 16, 0x7f, Specials::Fnuz);
    /// OCP E2M3.
    pub const E2M3: Layout = Layout::new(2, 3, 1, 0x1f, Specials::None);
    /// OCP E3M2.
    pub const E3M2: Layout = Layout::new(3, 2, 3, 0x1f, Specials::None);
    /// OCP E2M1.
    pub const E2M1: Layout = Layout::new(2, 1, 1, 0x07, Specials::None);

    const fn new(e: u32, m: u32, bias: u32, max_code: u8, specials: Specials) -> Layout {
        Layout {
            exponent_bits: e,
            mantissa_bits: m,
            bias,
            max_code,
            specials,
        }
    }

    /// Bits per code, the sign included.
    pub const fn bits(&self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    const fn largest(&self) -> f32 {
        self.decode(self.max_code)
    }

    /// The value of a code; see [`Minifloat::decode`].
    const fn decode(&self, code: u8) -> f32 {
        let sign_shift = self.exponent_bits + self.mantissa_bits;
        let magnitude = code as u32 & ((1 << sign_shift) - 1);
        let sign = (code as u32 >> sign_shift) & 1;
        let fnuz = matches!(self.specials, Specials::Fnuz);
        if fnuz && sign == 1 && magnitude == 0 {
            return QUIET_NAN;
        }
        if magnitude > self.max_code as u32 {
            let infinity = self.max_code as u32 + 1;
            return match self.specials {
                Specials::Ieee if magnitude == infinity => {
                    f32::from_bits(sign << 31 | F32_INFINITY)
                }
                Specials::Ieee | Specials::NanOnly => QUIET_NAN,
                // Their largest finite value has all magnitude bits set.
                Specials::None | Specials::Fnuz => unreachable!(),
            };
        }
        let exponent = magnitude >> self.mantissa_bits;
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        let absolute = if exponent == 0 {
            // An integer times a power of two: exact.
            mantissa as f32 * f32::from_bits((128 - self.bias - self.mantissa_bits) << 23)
        } else {
            f32::from_bits(
                (exponent + 127 - self.bias) << 23 | mantissa << (23 - self.mantissa_bits),
            )
        };
        f32::from_bits(absolute.to_bits() | sign << 31)
    }

    /// The code nearest to `value`: float-codecs.md §2 with integers only.
    const fn encode(&self, value: f32, special: SpecialCodes) -> u8 {
        let bits = value.to_bits();
        let negative = bits >> 31 == 1;
        let a = bits & F32_MAGNITUDE;
        if a > F32_INFINITY {
            return if negative {
                special.nan_negative
            } else {
                special.nan_positive
            };
        }
        let code = self.round_magnitude(a);
        let code = if code > self.max_code as u32 {
            special.overflow
        } else {
            code as u8
        };
        if code == 0 && matches!(self.specials, Specials::Fnuz) {
            return 0;
        }
        code | (negative as u8) << (self.exponent_bits + self.mantissa_bits)
    }

    /// Rounds the magnitude bits of an F32 that is no NaN; may exceed `max_code`.
    const fn round_magnitude(&self, a: u32) -> u32 {
        if a < 1 << 23 {
            return 0; // F32 subnormals are far below half of every smallest value
        }
        let m = self.mantissa_bits;
        let exponent = (a >> 23) as i32 - 127;
        let significand = (a & 0x7f_ffff) | 1 << 23;
        let min_exponent = 1 - self.bias as i32;
        let below = if exponent < min_exponent {
            (min_exponent - exponent) as u32
        } else {
            0
        };
        let above = if exponent > min_exponent {
            (exponent - min_exponent) as u32
        } else {
            0
        };
        let shift = 23 - m + below;
        if shift > 24 {
            return 0; // below half of the smallest subnormal: at 25 the largest remainder is < 1/2
        }
        let kept = significand >> shift;
        let remainder = significand & ((1 << shift) - 1);
        let half = 1 << (shift - 1);
        let up = remainder > half || (remainder == half && kept & 1 == 1);
        // The hidden bit in `kept` adds one to the exponent field, and a carry goes into it as it should.
        (above << m) + kept + up as u32
    }
}

/// The F32 bit pattern that every decoded NaN has. Payloads are not portable between libraries (float-codecs.md §3).
const QUIET_NAN: f32 = f32::from_bits(0x7fc0_0000);
const F32_MAGNITUDE: u32 = 0x7fff_ffff;
const F32_INFINITY: u32 = 0x7f80_0000;
/// The mantissa bits of halfway between two powers of two; with exponent field 0 they are 2^-127.
const HALF: u32 = 0x40_0000;

/// What the two rules mean for one format, looked up once per call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpecialCodes {
    /// Without the sign (FNUZ: with it, the OR of the sign then changes nothing).
    pub(crate) overflow: u8,
    pub(crate) nan_positive: u8,
    pub(crate) nan_negative: u8,
}

/// A float format of at most 8 bits (specs/dtypes/).
///
/// | format | s/e/m | bias | largest (code) | smallest normal | smallest subnormal | infinity | NaN | minus zero |
/// |---|---|---|---|---|---|---|---|---|
/// | E4M3 | 1/4/3 | 7 | 448 (7E) | 2^-6 | 2^-9 | none | 7F FF | 80 |
/// | E5M2 | 1/5/2 | 15 | 57344 (7B) | 2^-14 | 2^-16 | 7C FC | 7D-7F FD-FF | 80 |
/// | E4M3FNUZ | 1/4/3 | 8 | 240 (7F) | 2^-7 | 2^-10 | none | 80 | none |
/// | E5M2FNUZ | 1/5/2 | 16 | 57344 (7F) | 2^-15 | 2^-17 | none | 80 | none |
/// | E8M0 | 0/8/0 | 127 | 2^127 (FE) | 2^-127 | none | none | FF | none, and no zero |
/// | E2M3 | 1/2/3 | 1 | 7.5 (1F) | 1 | 0.125 | none | none | 20 |
/// | E3M2 | 1/3/2 | 3 | 28 (1F) | 0.25 | 0.0625 | none | none | 20 |
/// | E2M1 | 1/2/1 | 1 | 6 (7) | 1 | 0.5 | none | none | 8 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Minifloat {
    /// OCP E4M3 ("FN"): bias 7, no infinities, NaN 7F and FF, largest 448.
    E4M3,
    /// OCP E5M2: bias 15, infinities, largest 57344.
    E5M2,
    /// AMD E4M3: bias 8, NaN 80 only, no minus zero, largest 240.
    E4M3Fnuz,
    /// AMD E5M2: bias 16, NaN 80 only, no minus zero, largest 57344.
    E5M2Fnuz,
    /// Power-of-two scale: 2^(code - 127), FF is NaN, no zero, no sign.
    E8M0,
    /// OCP E2M3, 6 bits, largest 7.5.
    E2M3,
    /// OCP E3M2, 6 bits, largest 28.
    E3M2,
    /// OCP E2M1, 4 bits, largest 6.
    E2M1,
}

/// What a finite value beyond the largest one, or an infinity, becomes.
///
/// A value is beyond the largest one if it *rounds* beyond it with an unbounded exponent: above 464 for E4M3 (464
/// itself ties to 448), from 61440 for E5M2 and E5M2FNUZ, from 248 for E4M3FNUZ, from 1.5 * 2^127 for E8M0.
///
/// | rule | E4M3 | E5M2 | FNUZ | E8M0 | FP4, FP6 |
/// |---|---|---|---|---|---|
/// | `Saturate` | 7E | 7B | 7F | FE | largest |
/// | `Torch` | 7E | 7C (infinity) | 80 (NaN) | FF (NaN) | largest |
/// | `NonFinite` | 7F (NaN) | 7C (infinity) | 80 (NaN) | FF (NaN) | largest |
///
/// The sign is kept where the format has one. FP4 and FP6 have nothing else to become: they saturate under every rule.
/// torch before 2.13 is `NonFinite`. Source: float-codecs.md §2, §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverflowRule {
    /// The largest finite value with the sign, infinities too (NVIDIA satfinite, `float8` crate).
    Saturate,
    /// torch 2.13 and later: E4M3 saturates (infinities too), E5M2 overflows to infinity, FNUZ to NaN.
    Torch,
    /// `ml_dtypes`, OCP non-saturating: E4M3 overflows to NaN, E5M2 to infinity, FNUZ to NaN.
    NonFinite,
}

/// Which code a NaN becomes; for E8M0 also what a value without a power of two (zero, negative) becomes.
///
/// | rule | E4M3 +/- | E5M2 +/- | FNUZ | E8M0 NaN | E8M0 zero, negative | FP4, FP6 + / - |
/// |---|---|---|---|---|---|---|
/// | `Torch` | 7F FF | 7F FF | 80 | FF | 00, sign ignored | largest, with the sign |
/// | `MlDtypes` | 7F FF | 7E FE | 80 | FF | FF | minus zero / zero |
/// | `Nvidia` | 7F 7F | 7F 7F | 80 | FF | 00, sign ignored | largest / largest |
///
/// torch itself has no cast to FP4 or FP6, and torchao's turns a NaN into an arbitrary number; the largest value with the
/// sign is our choice there. A writer of ours refuses NaN before it gets this far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NanRule {
    /// torch: `7F | sign` (E4M3, E5M2), 80 (FNUZ), FF (E8M0).
    Torch,
    /// `ml_dtypes`: as torch but E5M2 `7E | sign`; E2M1/E2M3/E3M2 minus zero for +NaN, zero for -NaN.
    MlDtypes,
    /// NVIDIA: `7F` without sign; FP4/FP6 the largest positive value.
    Nvidia,
}

impl OverflowRule {
    /// Every rule.
    pub const ALL: &'static [OverflowRule] = &[
        OverflowRule::Saturate,
        OverflowRule::Torch,
        OverflowRule::NonFinite,
    ];
}

impl NanRule {
    /// Every rule.
    pub const ALL: &'static [NanRule] = &[NanRule::Torch, NanRule::MlDtypes, NanRule::Nvidia];
}

/// How a magnitude between two powers of two becomes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum E8M0Rounding {
    /// To the nearest, halfway (1.5 * 2^k) up; at the bottom, 2^-127 itself is code 0 and everything above it code 1.
    /// torch and `ml_dtypes`.
    Nearest,
    /// To the power of two at or below; what lies below 2^-126 becomes code 0. NVIDIA `cudaRoundZero`, MX "floor".
    TowardZero,
    /// To the power of two at or above. NVIDIA `cudaRoundPosInf`, MX "ceil".
    Up,
}

impl E8M0Rounding {
    /// Every rounding.
    pub const ALL: &'static [E8M0Rounding] = &[
        E8M0Rounding::Nearest,
        E8M0Rounding::TowardZero,
        E8M0Rounding::Up,
    ];
}

/// The E8M0 code of the magnitude of `value`: the sign is ignored, zero becomes 00, NaN FF.
///
/// Overflow (an infinity, or a finite value that rounds to 2^128) becomes FE with [`OverflowRule::Saturate`] and FF with
/// the others.
pub const fn encode_e8m0(value: f32, rounding: E8M0Rounding, overflow: OverflowRule) -> u8 {
    let a = value.to_bits() & F32_MAGNITUDE;
    if a > F32_INFINITY {
        return 0xff;
    }
    let exponent = a >> 23;
    let mantissa = a & 0x7f_ffff;
    let up = match rounding {
        E8M0Rounding::Nearest => mantissa > HALF || (mantissa == HALF && exponent > 0),
        E8M0Rounding::TowardZero => false,
        // With exponent 0 the value is `mantissa * 2^-149`, and 2^-127 is at mantissa 400000.
        E8M0Rounding::Up => mantissa > if exponent == 0 { HALF } else { 0 },
    };
    let code = exponent + up as u32;
    if code < 0xff {
        return code as u8;
    }
    match overflow {
        OverflowRule::Saturate => 0xfe,
        OverflowRule::Torch | OverflowRule::NonFinite => 0xff,
    }
}

const fn decode_e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000), // 2^-127 is subnormal in F32
        0xff => QUIET_NAN,
        exponent => f32::from_bits((exponent as u32) << 23),
    }
}

/// The tables of all formats, in the order of [`Minifloat::ALL`]; computed by the compiler.
static TABLES: [[f32; 256]; Minifloat::ALL.len()] = {
    let mut tables = [[0.0; 256]; Minifloat::ALL.len()];
    let mut f = 0;
    while f < tables.len() {
        let mut code = 0;
        while code < 256 {
            tables[f][code] = Minifloat::ALL[f].decode(code as u8);
            code += 1;
        }
        f += 1;
    }
    tables
};

impl Minifloat {
    /// Every format, in the order of the declaration.
    pub const ALL: &'static [Minifloat] = &[
        Minifloat::E4M3,
        Minifloat::E5M2,
        Minifloat::E4M3Fnuz,
        Minifloat::E5M2Fnuz,
        Minifloat::E8M0,
        Minifloat::E2M3,
        Minifloat::E3M2,
        Minifloat::E2M1,
    ];

    /// Sign, exponent and mantissa; `None` for E8M0, which has neither sign nor mantissa nor zero.
    pub const fn layout(self) -> Option<Layout> {
        match self {
            Minifloat::E4M3 => Some(Layout::E4M3),
            Minifloat::E5M2 => Some(Layout::E5M2),
            Minifloat::E4M3Fnuz => Some(Layout::E4M3_FNUZ),
            Minifloat::E5M2Fnuz => Some(Layout::E5M2_FNUZ),
            Minifloat::E8M0 => None,
            Minifloat::E2M3 => Some(Layout::E2M3),
            Minifloat::E3M2 => Some(Layout::E3M2),
            Minifloat::E2M1 => Some(Layout::E2M1),
        }
    }

    /// Bits per code.
    pub const fn bits(self) -> u32 {
        match self.layout() {
            Some(layout) => layout.bits(),
            None => 8,
        }
    }

    /// The largest finite value.
    #[inline]
    pub const fn max_finite(self) -> f32 {
        // Rules ask for every group: the values are constants of the arms.
        match self {
            Minifloat::E4M3 => const { Layout::E4M3.largest() },
            Minifloat::E5M2 => const { Layout::E5M2.largest() },
            Minifloat::E4M3Fnuz => const { Layout::E4M3_FNUZ.largest() },
            Minifloat::E5M2Fnuz => const { Layout::E5M2_FNUZ.largest() },
            Minifloat::E8M0 => const { decode_e8m0(0xfe) },
            Minifloat::E2M3 => const { Layout::E2M3.largest() },
            Minifloat::E3M2 => const { Layout::E3M2.largest() },
            Minifloat::E2M1 => const { Layout::E2M1.largest() },
        }
    }

    /// The value of a code; bits above [`Minifloat::bits`] are ignored. NaN codes give the quiet NaN 7FC00000.
    ///
    /// ```
    /// use safequant_kernels::Minifloat;
    /// assert_eq!(Minifloat::E4M3.decode(0x7e), 448.0);
    /// assert!(Minifloat::E4M3.decode(0x7f).is_nan());
    /// ```
    pub const fn decode(self, code: u8) -> f32 {
        match self.layout() {
            Some(layout) => layout.decode(code),
            None => decode_e8m0(code),
        }
    }

    /// The 256 values, indexed by code: [`Minifloat::decode`] of each.
    pub fn table(self) -> &'static [f32; 256] {
        &TABLES[self as usize]
    }

    /// The code nearest to `value`, ties to the even code (E8M0: ties up, as torch and `ml_dtypes` round).
    ///
    /// ```
    /// use safequant_kernels::{Minifloat, NanRule, OverflowRule};
    /// let code = Minifloat::E4M3.encode(1e30, OverflowRule::NonFinite, NanRule::MlDtypes);
    /// assert_eq!(code, 0x7f);
    /// ```
    pub const fn encode(self, value: f32, overflow: OverflowRule, nan: NanRule) -> u8 {
        match self.layout() {
            Some(layout) => layout.encode(value, self.special_codes(overflow, nan)),
            None => encode_e8m0_cast(value, overflow, nan),
        }
    }

    /// The two rules of [`OverflowRule`] and [`NanRule`] as codes. Not for E8M0.
    pub(crate) const fn special_codes(self, overflow: OverflowRule, nan: NanRule) -> SpecialCodes {
        let (largest, saturates) = match self {
            Minifloat::E4M3 => (0x7e, !matches!(overflow, OverflowRule::NonFinite)),
            Minifloat::E5M2 => (0x7b, matches!(overflow, OverflowRule::Saturate)),
            Minifloat::E4M3Fnuz | Minifloat::E5M2Fnuz => {
                (0x7f, matches!(overflow, OverflowRule::Saturate))
            }
            Minifloat::E2M3 | Minifloat::E3M2 => (0x1f, true),
            Minifloat::E2M1 => (0x07, true),
            Minifloat::E8M0 => (0xfe, matches!(overflow, OverflowRule::Saturate)),
        };
        let sign = 1 << (self.bits() - 1);
        let (nan_positive, nan_negative) = match (self, nan) {
            (Minifloat::E4M3, NanRule::Torch | NanRule::MlDtypes)
            | (Minifloat::E5M2, NanRule::Torch) => (0x7f, 0xff),
            (Minifloat::E5M2, NanRule::MlDtypes) => (0x7e, 0xfe),
            (Minifloat::E4M3 | Minifloat::E5M2, NanRule::Nvidia) => (0x7f, 0x7f),
            (Minifloat::E4M3Fnuz | Minifloat::E5M2Fnuz, _) => (0x80, 0x80),
            (Minifloat::E8M0, _) => (0xff, 0xff),
            (Minifloat::E2M3 | Minifloat::E3M2 | Minifloat::E2M1, nan) => match nan {
                NanRule::Torch => (largest, largest | sign),
                NanRule::MlDtypes => (sign, 0),
                NanRule::Nvidia => (largest, largest),
            },
        };
        // One past the largest code: NaN (E4M3), infinity (E5M2), the NaN of FNUZ.
        let overflow = if saturates { largest } else { largest + 1 };
        SpecialCodes {
            overflow,
            nan_positive,
            nan_negative,
        }
    }
}

/// E8M0 as the libraries cast to it.
const fn encode_e8m0_cast(value: f32, overflow: OverflowRule, nan: NanRule) -> u8 {
    let bits = value.to_bits();
    match nan {
        NanRule::MlDtypes if bits == 0 || bits >> 31 == 1 => 0xff,
        NanRule::Torch | NanRule::MlDtypes | NanRule::Nvidia => {
            encode_e8m0(value, E8M0Rounding::Nearest, overflow)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_the_order_of_the_declaration() {
        for &format in Minifloat::ALL {
            for code in 0..=255 {
                let value = format.table()[usize::from(code)];
                assert_eq!(
                    value.to_bits(),
                    format.decode(code).to_bits(),
                    "{format:?} {code:02x}"
                );
            }
        }
    }

    #[test]
    fn largest_values_are_those_of_the_formats() {
        let largest = Minifloat::ALL.iter().map(|f| f.max_finite());
        let expected = [
            448.0,
            57344.0,
            240.0,
            57344.0,
            2f32.powi(127),
            7.5,
            28.0,
            6.0,
        ];
        assert!(largest.eq(expected));
    }

    #[test]
    fn bits_above_the_format_are_ignored() {
        assert_eq!(Minifloat::E2M1.decode(0xf7), 6.0);
        assert_eq!(Minifloat::E2M3.decode(0xc1), 0.125);
    }

    #[test]
    fn every_finite_code_encodes_to_itself() {
        let mut checked = 0;
        for &format in Minifloat::ALL {
            for code in 0..(1u32 << format.bits()) {
                let value = format.decode(code as u8);
                if value.is_finite() {
                    let again = format.encode(value, OverflowRule::NonFinite, NanRule::MlDtypes);
                    assert_eq!(u32::from(again), code, "{format:?}");
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, 254 + 248 + 255 + 255 + 255 + 64 + 64 + 16);
    }
}
