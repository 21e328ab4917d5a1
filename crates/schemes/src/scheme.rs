//! The numeric meaning of a quantized tensor: closed enums, no producer, no name.

use safequant_container::Dtype;
use safequant_kernels::portable::rotate;
use safequant_kernels::{Codebook, Float, Minifloat};

pub use safequant_kernels::{BlockFormat, E8M0Rule, Packing};

pub(crate) use crate::storage::blocks::scheme_of as scheme_of_blocks;

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
    /// What scales themselves are scaled by.
    pub super_scale: SuperScale,
    /// What is subtracted from a code, or added to the product.
    pub zero_point: ZeroPoint,
    /// The operations and their roundings.
    pub arithmetic: Arithmetic,
    /// What is done with whole rows after that: the stored matrix may not be the weight, but a rotated, rescaled or
    /// partial one.
    pub basis: Basis,
}

impl Scheme {
    /// Codes times scale and nothing else: `scale` as a dense float that multiplies, F32 product, one rounding. What
    /// differs is set afterwards (`Scheme { zero_point, ..Scheme::plain(..) }`).
    pub const fn plain(code: Code, granularity: Granularity, scale: ScaleCoding) -> Self {
        Self {
            code,
            granularity,
            scale,
            direction: ScaleDirection::Multiply,
            super_scale: SuperScale::None,
            zero_point: ZeroPoint::Fixed(0),
            arithmetic: Arithmetic::ScaledDifference,
            basis: Basis::WEIGHT,
        }
    }
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
    /// An index into the 16 F32 values of the part with [`crate::Role::Codebook`].
    StoredCodebook,
    /// No code at all: elements of a dense float, two bytes or four each in [`crate::CodeTile::codes`]. Weights that are
    /// stored sparse.
    Dense(Float),
}

impl Code {
    /// Bits of one code.
    pub const fn bits(self) -> u32 {
        match self {
            Code::Integer { bits, .. } => bits,
            Code::Minifloat(minifloat) => minifloat.bits(),
            Code::Codebook(_) | Code::StoredCodebook => 4,
            Code::Dense(Float::F32) => 32,
            Code::Dense(Float::F16 | Float::Bf16) => 16,
        }
    }
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
    /// `size` consecutive elements of the matrix flattened row by row: a group may straddle rows, the last one may be
    /// short. The grid of scales has one column and a row for each group. (bitsandbytes)
    Flat {
        /// Elements per group.
        size: u64,
    },
    /// Element `e` of the matrix flattened row by row belongs to group `e % count`. The grid of scales is one row of
    /// `count`. (HQQ with axis 0)
    Strided {
        /// Groups in the matrix.
        count: u64,
    },
}

impl Granularity {
    /// How many input features of a row share a scale, where it is a number of them.
    pub const fn group_size(self) -> Option<u64> {
        match self {
            Granularity::Group { size }
            | Granularity::IndexedGroup { size }
            | Granularity::Flat { size } => Some(size),
            Granularity::Tensor
            | Granularity::Channel
            | Granularity::Block { .. }
            | Granularity::Strided { .. } => None,
        }
    }
}

/// How a stored scale becomes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleCoding {
    /// A dense float.
    Float(Float),
    /// A power of two, in an `F8_E8M0` or a `U8` tensor.
    E8M0(E8M0Rule),
    /// A small float, in a tensor of its own dtype or of `U8`: NVFP4's block scales.
    Minifloat(Minifloat),
    /// An index into the 256 F32 values of the part with [`crate::Role::ScaleTable`]: bitsandbytes' double quantization.
    StoredTable,
    /// A small integer, as it stands in a block of bytes: ggml's K-quants.
    Integer,
    /// Nothing is stored, the scale is 1: plain casts, dense values.
    One,
}

/// What the scales themselves are scaled by: formats with two levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SuperScale {
    /// Nothing: the stored scale is the scale.
    None,
    /// One F32 per matrix that multiplies: `ModelOpt`'s `weight_scale_2`, torchao, `ComfyUI`.
    Multiply,
    /// One F32 per matrix that *divides*: compressed-tensors' `weight_global_scale`. The reciprocal of the other one only
    /// up to a rounding, so the two are never taken for each other.
    Divide,
    /// One F32 per `size` consecutive scales (in row-major order over the grid), and an offset for all:
    /// `f32(f32(scale * super) + offset)`. bitsandbytes.
    Nested {
        /// Scales that share a super-scale.
        size: u64,
        /// Added to the product.
        offset: f32,
    },
    /// One per `size` consecutive scales of a row: the `d` of ggml's super-blocks. Offsets have one of their own.
    Grouped {
        /// Scales that share a super-scale.
        size: u64,
    },
    /// One per output feature.
    Channel,
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
    /// A float for each scale, in the part with [`crate::Role::Offset`], beside the fixed zero `zero` of the unsigned form.
    Offset {
        /// Subtracted from the code first.
        zero: i32,
        /// Where the float comes in.
        form: OffsetForm,
    },
}

/// Where a float zero point or bias comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffsetForm {
    /// `(code - offset) * scale`: HQQ.
    BeforeScale,
    /// `code * scale + offset`: MLX, ggml's `m`, AWQ `gemv_fast`, torchao's int4.
    Added,
    /// `code * scale - offset`: quanto, ggml's `dmin * m`.
    Subtracted,
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
    /// A dense float, `round(-(scale * zero))` in the part's dtype: AWQ `gemv_fast` and llm-awq. The zero is recovered from
    /// it and the scale; a number that no zero of 0 to `2^bits - 1` gives is refused.
    NegatedProduct,
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
    /// `round(code * scale + round(-(scale * zero)))`: the product of scale and zero is rounded to this dtype, the rest is
    /// F32 and rounded once. For every output dtype. (AWQ `gemv_fast`, whose kernel adds what is stored)
    RoundedZero(Float),
    /// In the reference dtype every input and every result of an operation is rounded to this one: HQQ, quanto, MLX,
    /// torchao's integers, `ComfyUI`. For another output dtype as [`Arithmetic::ScaledDifference`].
    EachStep(Float),
    /// `f32(f32(code * scale) * f32(1/127))`: bitsandbytes' int8, whose scale is the row's absmax.
    Over127,
    /// `f32(code * f32(scale / 127))`: the same int8 as GPTQModel computes it.
    ScaleOver127,
    /// `q = clamp(rne(code * scale), -127, 127)`, then `q * super_scale` (+ offset), in F32: `ComfyUI`'s
    /// `asym_w4a8_int8`; the result is rounded to this dtype before the basis is undone.
    Int8Grid(Float),
    /// With [`ColumnFactor::Divide`]: in the reference dtype the factor is not divided by, but an identity matrix goes
    /// through the quantizer of activations (`a = 1 / factor`, `s = |a| / 7`, `a = rne(a / s) * s`), and the weight is
    /// `code * scale * a`, plus the low-rank product, every step rounded to this dtype: what comfy-kitchen calls the
    /// dequantized weight of `svdquant_w4a4`. For another output dtype as [`Arithmetic::ScaledDifference`].
    Probed(Float),
}

/// What is done with whole rows of products to get the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Basis {
    /// The stored matrix is rotated along the input features.
    pub rotation: Rotation,
    /// A factor per input feature, in the part with [`crate::Role::ColumnFactor`].
    pub columns: ColumnFactor,
    /// A product of two thin matrices is added: `up [out, rank]` and `down [in, rank]`
    /// ([`crate::Role::LowRankUp`], [`crate::Role::LowRankDown`]); the rank, or 0 for none. Added after everything else.
    pub rank: u64,
}

impl Basis {
    /// The stored matrix is the weight.
    pub const WEIGHT: Basis = Basis {
        rotation: Rotation::None,
        columns: ColumnFactor::None,
        rank: 0,
    };
}

/// How a stored matrix is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotation {
    /// It is not.
    None,
    /// `ConvRot` in groups of `size` input features, a power of 4 (formats: comfyui §3.2). Its own inverse.
    ConvRot {
        /// Input features per group.
        size: u64,
    },
}

impl Rotation {
    /// The rotation in groups of `size` input features; `None` if there is none of that size.
    pub fn conv_rot(size: u64) -> Option<Self> {
        let is_group = usize::try_from(size).is_ok_and(rotate::is_group);
        is_group.then_some(Rotation::ConvRot { size })
    }
}

/// What a factor per input feature does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnFactor {
    /// There is none.
    None,
    /// The product is multiplied by it.
    Multiply,
    /// The product is divided by it.
    Divide,
    /// The runtime multiplies the *activations* by it. It stands beside the weight and is not applied: the weight is that of
    /// the rescaled inputs, as the tools that write such files (`ModelOpt`'s `pre_quant_scale`) dequantize it.
    Inputs,
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
