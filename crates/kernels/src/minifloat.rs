//! Floats of at most 8 bits: layouts as constants, one exact decoder, one exact integer encoder.

/// A float format of at most 8 bits (specs/dtypes/).
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverflowRule {
    /// The largest finite value with the sign, infinities too (NVIDIA satfinite, `float8` crate).
    Saturate,
    /// torch 2.13 and later: E4M3 saturates (infinities too), E5M2 overflows to infinity, FNUZ to NaN.
    Torch,
    /// `ml_dtypes`, OCP non-saturating: E4M3 overflows to NaN, E5M2 to infinity, FNUZ to NaN.
    NonFinite,
}

/// Which code a NaN becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NanRule {
    /// torch: `7F | sign` (E4M3, E5M2), 80 (FNUZ), FF (E8M0).
    Torch,
    /// `ml_dtypes`: as torch but E5M2 `7E | sign`; E2M1/E2M3/E3M2 minus zero for +NaN, zero for -NaN.
    MlDtypes,
    /// NVIDIA: `7F` without sign; FP4/FP6 the largest positive value.
    Nvidia,
}

impl Minifloat {
    /// Every format.
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

    /// Bits per code.
    pub const fn bits(self) -> u32 {
        unimplemented!()
    }

    /// The largest finite value.
    pub const fn max_finite(self) -> f32 {
        unimplemented!()
    }

    /// The value of a code; bits above [`Minifloat::bits`] are ignored. NaN codes give the quiet NaN 7FC00000.
    pub fn decode(self, _code: u8) -> f32 {
        unimplemented!()
    }

    /// The 256 values, indexed by code.
    pub fn table(self) -> &'static [f32; 256] {
        unimplemented!()
    }

    /// The code nearest to `value`, ties to the even code.
    pub fn encode(self, _value: f32, _overflow: OverflowRule, _nan: NanRule) -> u8 {
        unimplemented!()
    }
}
