//! The numeric meaning of a quantized tensor: closed enums, no producer, no name.

use safequant_container::Dtype;
use safequant_kernels::{Codebook, Float, Minifloat};

pub use safequant_kernels::Packing;

/// What the codes, scales and zero points of a tensor mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheme {
    /// What one code is.
    pub code: Code,
    /// What shares one scale.
    pub granularity: Granularity,
    /// How a scale is stored, and whether it multiplies or divides.
    pub scale: ScaleCoding,
    /// See [`ScaleDirection`].
    pub direction: ScaleDirection,
    /// What is subtracted from a code.
    pub zero_point: ZeroPoint,
    /// The operations and their roundings.
    pub arithmetic: Arithmetic,
}

/// What one code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// An integer of 1 to 8 bits.
    Integer {
        /// Bits per code.
        bits: u32,
        /// How the integer is written in those bits.
        encoding: IntegerEncoding,
    },
    /// A small float.
    Minifloat(Minifloat),
    /// An index into a table of 16 values.
    Codebook(Codebook),
}

/// How an integer is written in the bits of a code.
///
/// Everything here and in the kernels works on the *unsigned form* `u` in `0..2^bits`; the zero point is in that form too
/// (so that `value = u - zero`), whatever the file stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntegerEncoding {
    /// The stored bits are `u`: GPTQ, AWQ, MLX, HQQ; also compressed-tensors' packed codes, which are `q + 2^(bits-1)`.
    Unsigned,
    /// The stored bits are the two's complement of `u - 2^(bits-1)`: I8 weights.
    TwosComplement,
}

/// What shares one scale (and one zero point).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// The whole matrix (each matrix of a stack for itself).
    Tensor,
    /// One row: one output feature.
    Channel,
    /// `size` consecutive input features of a row; the last group may be short.
    Group {
        /// Input features per group.
        size: u64,
    },
    /// Input features with the same entry of the group index ([`crate::Role::GroupIndex`]): activation order.
    IndexedGroup {
        /// Input features per group (the last may have fewer).
        size: u64,
    },
    /// A rectangle of `rows` by `columns`; edge blocks are cut short.
    Block {
        /// Output features per block.
        rows: u64,
        /// Input features per block.
        columns: u64,
    },
}

/// How a stored scale becomes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleCoding {
    /// A dense float.
    Float(Float),
    /// A power of two, in an `F8_E8M0` or a `U8` tensor.
    E8M0,
}

/// Whether a scale multiplies or divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleDirection {
    /// `weight = code * scale`: nearly everyone, `weight_scale_inv` of DeepSeek and transformers included.
    Multiply,
    /// `weight = code / scale`: GPTQModel's FP8.
    Divide,
}

/// What is subtracted from an integer code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// Nothing is stored; the unsigned form has its zero at `value` (`2^(bits-1)` for symmetric integers, 0 for floats).
    Fixed(i32),
    /// One per scale, in the part with [`crate::Role::ZeroPoint`].
    Stored(ZeroCoding),
}

/// How a stored zero point becomes the zero of the unsigned form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroCoding {
    /// The stored lane is the zero: GPTQ v2, AWQ, compressed-tensors packed.
    Direct,
    /// A signed byte `z`; the zero is `z + 2^(bits-1)`: compressed-tensors unpacked.
    Signed,
    /// GPTQ v1 of AutoGPTQ and exllama: `lane + 1`, not masked again.
    MinusOne,
    /// GPTQ v1, 3 bits: `(lane + 1) mod 2^bits`.
    MinusOneModulo,
    /// GPTQ v1 of GPTQModel, 2, 4 and 8 bits: `0x0101..01`-like constant added to the whole word, then the lane.
    MinusOneWord,
}

/// The operations that give a weight, and where they round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `round((code - zero) * scale)`: difference exact, product in F32, one rounding to the output dtype.
    ScaledDifference,
    /// As [`Arithmetic::ScaledDifference`], but the product is first rounded to this dtype (the scale's), and only then
    /// to the output, where that differs.
    RoundedTo(Float),
    /// As [`Arithmetic::ScaledDifference`], but the scale is first rounded to this dtype: GPTQModel's FP8 modules hold
    /// their F32 scales in the model's dtype. Holds for every output dtype, because the module has no other scale.
    RoundedScale(Float),
}

/// The dense float type of a header's dtype, where we compute with it.
pub const fn float_of(dtype: Dtype) -> Option<Float> {
    match dtype {
        Dtype::F32 => Some(Float::F32),
        Dtype::F16 => Some(Float::F16),
        Dtype::BF16 => Some(Float::Bf16),
        Dtype::Bool
        | Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::U8
        | Dtype::I8
        | Dtype::F8E5M2
        | Dtype::F8E4M3
        | Dtype::F8E8M0
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz
        | Dtype::I16
        | Dtype::U16
        | Dtype::I32
        | Dtype::U32
        | Dtype::C64
        | Dtype::F64
        | Dtype::I64
        | Dtype::U64 => None,
    }
}

/// The header's dtype of a dense float type.
pub const fn dtype_of(float: Float) -> Dtype {
    match float {
        Float::F32 => Dtype::F32,
        Float::F16 => Dtype::F16,
        Float::Bf16 => Dtype::BF16,
    }
}

/// The minifloat of an 8-bit float dtype that codes are stored in; not `F8_E8M0`, which holds scales.
pub const fn minifloat_of(dtype: Dtype) -> Option<Minifloat> {
    match dtype {
        Dtype::F8E4M3 => Some(Minifloat::E4M3),
        Dtype::F8E5M2 => Some(Minifloat::E5M2),
        Dtype::F8E4M3Fnuz => Some(Minifloat::E4M3Fnuz),
        Dtype::F8E5M2Fnuz => Some(Minifloat::E5M2Fnuz),
        Dtype::Bool
        | Dtype::F4
        | Dtype::F6E2M3
        | Dtype::F6E3M2
        | Dtype::U8
        | Dtype::I8
        | Dtype::F8E8M0
        | Dtype::I16
        | Dtype::U16
        | Dtype::F16
        | Dtype::BF16
        | Dtype::I32
        | Dtype::U32
        | Dtype::F32
        | Dtype::C64
        | Dtype::F64
        | Dtype::I64
        | Dtype::U64 => None,
    }
}
