//! What scales and codes of a module must be like: grids by strategy, dtypes, bits.

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat};

use super::config::{Strategy, WeightArgs};
use crate::binding::{wrong_dtype, wrong_shape};
use crate::scheme::{E8M0Rule, float_of};
use crate::{Code, Error, ScaleCoding};

/// Input features per scale of MXFP4 and MXFP8.
pub(super) const MX_GROUP: u64 = 32;
/// Input features per scale of NVFP4.
pub(super) const FP4_GROUP: u64 = 16;

/// How scales of this dtype are read: dense floats; powers of two in U8 and E8M0; E4M3 under a global scale.
pub(super) fn scale_coding(
    module: &str,
    code: Code,
    scale: &TensorInfo,
) -> Result<ScaleCoding, Error> {
    let is_float = matches!(code, Code::Minifloat(_));
    match (float_of(scale.dtype), scale.dtype) {
        (Some(float), _) => Ok(ScaleCoding::Float(float)),
        (None, Dtype::U8 | Dtype::F8E8M0) if is_float => {
            Ok(ScaleCoding::E8M0(E8M0Rule::TopIsInfinity))
        }
        (None, Dtype::F8E4M3) if is_float => Ok(ScaleCoding::Minifloat(Minifloat::E4M3)),
        (None, _) => Err(wrong_dtype(
            module,
            scale,
            "F32, F16 or BF16 (beside FP4 and FP8 also F8_E4M3, U8 or F8_E8M0)",
        )),
    }
}

/// The dtype of the library's decompressed weight: that of the scales, or BF16 where they are no dense floats (clause F5).
pub(super) fn reference(scale: ScaleCoding) -> Float {
    match scale {
        ScaleCoding::Float(float) => float,
        ScaleCoding::E8M0(_)
        | ScaleCoding::Minifloat(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => Float::Bf16,
    }
}

/// The bits of the configuration are those of the float that is stored.
pub(super) fn check_bits(
    module: &str,
    args: &WeightArgs,
    bits: u32,
    codes: &TensorInfo,
) -> Result<(), Error> {
    if args.bits == bits {
        return Ok(());
    }
    Err(Error::Contradiction {
        module: module.to_owned(),
        config: format!("{} bits", args.bits),
        tensors: format!("{} is {}, with {bits}-bit floats", codes.name, codes.dtype),
    })
}

pub(super) fn last(info: &TensorInfo) -> u64 {
    info.shape.last().copied().unwrap_or(1)
}

/// The scale grid of a strategy.
pub(super) fn grid(strategy: Strategy, [rows, columns]: [u64; 2]) -> [u64; 2] {
    match strategy {
        Strategy::Tensor => [1, 1],
        Strategy::Channel => [rows, 1],
        Strategy::Group(size) | Strategy::TensorGroup(size) => {
            [rows, columns.div_ceil(size.max(1))]
        }
        Strategy::Block(height, width) => {
            [rows.div_ceil(height.max(1)), columns.div_ceil(width.max(1))]
        }
    }
}

pub(super) fn check_grid(
    module: &str,
    scale: &TensorInfo,
    strategy: Strategy,
    grid: [u64; 2],
) -> Result<(), Error> {
    let fits = match strategy {
        Strategy::Tensor => scale.n_elements() == 1,
        Strategy::Channel => scale.shape == grid || scale.shape == grid[..1],
        Strategy::Group(_) | Strategy::TensorGroup(_) | Strategy::Block(..) => scale.shape == grid,
    };
    if fits {
        return Ok(());
    }
    Err(wrong_shape(
        module,
        scale,
        format!("{grid:?} for {strategy:?}"),
    ))
}

/// What the scale's shape says, where the configuration leaves it open. Groups must divide the row.
pub(super) fn strategy_of(
    module: &str,
    shape: [u64; 2],
    scale: &TensorInfo,
) -> Result<Strategy, Error> {
    let [rows, columns] = shape;
    match *scale.shape.as_slice() {
        [] | [1] | [1, 1] => Ok(Strategy::Tensor),
        [n, 1] if n == rows => Ok(Strategy::Channel),
        [n, g] if n == rows && g > 0 && columns.is_multiple_of(g) => {
            Ok(Strategy::Group(columns / g))
        }
        [n, g] if n == rows.div_ceil(128) && g == columns.div_ceil(128) => {
            Ok(Strategy::Block(128, 128))
        }
        _ => Err(wrong_scales(module, scale, shape)),
    }
}

/// The error for scales that fit no strategy.
pub(super) fn wrong_scales(module: &str, scale: &TensorInfo, shape: [u64; 2]) -> Error {
    wrong_shape(
        module,
        scale,
        format!("scales of a weight of shape {shape:?}"),
    )
}
