//! A scheme in one phrase, for people: `int4 asym, group 128, scale BF16`.

use std::fmt;

use safequant_kernels::{Codebook, Float, Minifloat};

use crate::{
    Code, ColumnFactor, Granularity, Rotation, ScaleCoding, Scheme, SuperScale, ZeroPoint,
};

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zero = match self.zero_point {
            ZeroPoint::Fixed(_) => "",
            ZeroPoint::Stored(_) => " asym",
            ZeroPoint::Offset { .. } => " with offsets",
        };
        write!(f, "{}{zero}", code(self.code))?;
        if self.scale != ScaleCoding::One {
            let (granularity, scale) = (granularity(self.granularity), scale(self.scale));
            write!(f, ", {granularity}, scale {scale}")?;
        }
        f.write_str(match self.super_scale {
            SuperScale::None => "",
            SuperScale::Multiply => " times one per tensor",
            SuperScale::Divide => " over one per tensor",
            SuperScale::Nested { .. } => " nested",
            SuperScale::Grouped { .. } => " in super-blocks",
            SuperScale::Channel => " times one per channel",
        })?;
        if self.basis.rotation != Rotation::None {
            f.write_str(", rotated")?;
        }
        if self.basis.columns != ColumnFactor::None {
            f.write_str(", smoothed")?;
        }
        if self.basis.rank > 0 {
            write!(f, ", low rank {}", self.basis.rank)?;
        }
        Ok(())
    }
}

fn scale(coding: ScaleCoding) -> &'static str {
    match coding {
        ScaleCoding::Float(float) => float_name(float),
        ScaleCoding::E8M0(_) => "E8M0",
        ScaleCoding::Minifloat(minifloat) => minifloat_name(minifloat),
        ScaleCoding::StoredTable => "8-bit codes",
        ScaleCoding::Integer => "integers",
        ScaleCoding::One => "1",
    }
}

fn code(code: Code) -> String {
    match code {
        Code::Integer { bits, .. } => format!("int{bits}"),
        Code::Minifloat(minifloat) => minifloat_name(minifloat).to_owned(),
        Code::Codebook(Codebook::Nf4) => "nf4".to_owned(),
        Code::Codebook(Codebook::BnbFp4) => "fp4 (bitsandbytes)".to_owned(),
        Code::Codebook(Codebook::Iq4Nl) => "iq4_nl".to_owned(),
        Code::Codebook(Codebook::DoubledE2M1) => "f4_e2m1 (doubled)".to_owned(),
        Code::Codebook(Codebook::W4A8) => "w4a8".to_owned(),
        Code::Codebook(Codebook::Iq2Xxs) => "iq2_xxs".to_owned(),
        Code::Codebook(Codebook::Iq2Xs) => "iq2_xs".to_owned(),
        Code::Codebook(Codebook::Iq2S) => "iq2_s".to_owned(),
        Code::Codebook(Codebook::Iq3Xxs) => "iq3_xxs".to_owned(),
        Code::Codebook(Codebook::Iq3S) => "iq3_s".to_owned(),
        Code::StoredCodebook => "code book".to_owned(),
        Code::Dense(float) => float_name(float).to_owned(),
    }
}

fn granularity(granularity: Granularity) -> String {
    match granularity {
        Granularity::Tensor => "tensor".to_owned(),
        Granularity::Channel => "channel".to_owned(),
        Granularity::Group { size } => format!("group {size}"),
        Granularity::IndexedGroup { size } => format!("group {size} by index"),
        Granularity::Block { rows, columns } => format!("block {rows}x{columns}"),
        Granularity::Flat { size } => format!("flat group {size}"),
        Granularity::Strided { count } => format!("{count} strided groups"),
    }
}

const fn minifloat_name(minifloat: Minifloat) -> &'static str {
    match minifloat {
        Minifloat::E4M3 => "fp8 E4M3",
        Minifloat::E5M2 => "fp8 E5M2",
        Minifloat::E4M3Fnuz => "fp8 E4M3FNUZ",
        Minifloat::E5M2Fnuz => "fp8 E5M2FNUZ",
        Minifloat::E8M0 => "E8M0",
        Minifloat::E2M3 => "fp6 E2M3",
        Minifloat::E3M2 => "fp6 E3M2",
        Minifloat::E2M1 => "fp4 E2M1",
    }
}

const fn float_name(float: Float) -> &'static str {
    match float {
        Float::F32 => "F32",
        Float::F16 => "F16",
        Float::Bf16 => "BF16",
    }
}
