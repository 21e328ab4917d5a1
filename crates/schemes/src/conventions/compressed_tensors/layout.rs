//! Parts from a scheme: which of the library's formats holds it, and how it lies there.

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};

use super::grids::{FP4_GROUP, MX_GROUP, reference};
use super::{COMPANIONS, ID};
use crate::binding::{matrix_only, planned};
use crate::scheme::{E8M0Rule, Packing, dtype_of};
use crate::storage::{scale_grid, to_u64};
use crate::{
    Axes, Axis, Basis, Code, Error, Granularity, IntegerEncoding, Part, QuantizedTensor, Role,
    ScaleCoding, Scheme, Storage, SuperScale, ZeroCoding, ZeroPoint,
};

const ELEMENTS: Storage = Storage::Elements { axes: Axes::OutIn };

/// The layout that holds a scheme which [`holds`] has made ours.
pub(super) fn lay_out(module: &str, shape: [u64; 2], scheme: Scheme) -> QuantizedTensor {
    let mut parts = vec![codes(module, shape, scheme.code)];
    let name = |ending: &str| format!("{module}.{ending}");
    let (rows, columns) = scale_grid(scheme.granularity, shape[0], shape[1]);
    let grid = match scheme.granularity {
        Granularity::Tensor => vec![1],
        Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => vec![rows, columns],
    };
    let scale = planned(
        Role::Scale,
        name("weight_scale"),
        scale_dtype(scheme.scale),
        grid.clone(),
        ELEMENTS,
    );
    parts.push(scale);
    if let ZeroPoint::Stored(coding) = scheme.zero_point {
        parts.push(zero_points(
            name("weight_zero_point"),
            scheme.code,
            coding,
            grid,
        ));
    }
    if scheme.super_scale == SuperScale::Divide {
        let global = name("weight_global_scale");
        parts.push(planned(
            Role::SuperScale,
            global,
            Dtype::F32,
            vec![1],
            ELEMENTS,
        ));
    }
    if let Granularity::IndexedGroup { .. } = scheme.granularity {
        let index = name("weight_g_idx");
        let length = vec![shape[1]];
        parts.push(planned(
            Role::GroupIndex,
            index,
            Dtype::I32,
            length,
            Storage::Vector,
        ));
    }
    if parts[0].dtype == Dtype::I32 {
        let name = name("weight_shape");
        parts.push(planned(
            Role::Shape,
            name,
            Dtype::I64,
            vec![2],
            Storage::Vector,
        ));
    }
    QuantizedTensor {
        module: module.to_owned(),
        weight: format!("{module}.weight"),
        convention: ID,
        shape: shape.to_vec(),
        reference_dtype: reference(scheme.scale),
        scheme,
        parts,
    }
}

fn codes(module: &str, [rows, columns]: [u64; 2], code: Code) -> Part {
    let packed = |bits: u32, dtype: Dtype| {
        let storage = Storage::Packed {
            axes: Axes::OutIn,
            packing: Packing::LsbFirst { bits },
            along: Axis::In,
        };
        let words = columns
            .saturating_mul(u64::from(bits))
            .div_ceil(dtype.bits());
        let name = format!("{module}.weight_packed");
        planned(Role::Codes, name, dtype, vec![rows, words], storage)
    };
    let unpacked = |dtype: Dtype| {
        let name = format!("{module}.weight");
        planned(Role::Codes, name, dtype, vec![rows, columns], ELEMENTS)
    };
    match code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::Unsigned,
        } => packed(bits, Dtype::I32),
        Code::Integer {
            encoding: IntegerEncoding::TwosComplement,
            ..
        } => unpacked(Dtype::I8),
        Code::Minifloat(Minifloat::E2M1) => packed(4, Dtype::U8),
        Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => {
            unpacked(Dtype::F8E4M3)
        }
    }
}

fn scale_dtype(scale: ScaleCoding) -> Dtype {
    match scale {
        ScaleCoding::Float(float) => dtype_of(float),
        ScaleCoding::E8M0(_) => Dtype::U8,
        ScaleCoding::Minifloat(_) => Dtype::F8E4M3,
        ScaleCoding::StoredTable | ScaleCoding::Integer | ScaleCoding::One => Dtype::F32,
    }
}

/// Zero points: packed along the rows, or signed bytes.
fn zero_points(name: String, code: Code, coding: ZeroCoding, grid: Vec<u64>) -> Part {
    let (&[rows, columns], Code::Integer { bits, .. }, ZeroCoding::Direct) =
        (grid.as_slice(), code, coding)
    else {
        return planned(Role::ZeroPoint, name, Dtype::I8, grid, ELEMENTS);
    };
    let storage = Storage::Packed {
        axes: Axes::OutIn,
        packing: Packing::LsbFirst { bits },
        along: Axis::Out,
    };
    let shape = vec![rows.saturating_mul(u64::from(bits)).div_ceil(32), columns];
    planned(Role::ZeroPoint, name, Dtype::I32, shape, storage)
}

/// What holds the codes of another tensor (clauses W1 to W6).
pub(super) fn lay_out_like(source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
    let codes = source.part(Role::Codes).map(|p| p.storage);
    if matches!(codes, Some(Storage::Sparse { .. })) {
        // Nobody else has these layouts, so they are spelled as here already.
        return Ok(source.clone());
    }
    let wanted = format!("{:?}", source.scheme.code);
    let shape = matrix_only(ID, &source.module, &source.shape, &wanted)?;
    let refuse = |reason: &str| Error::CannotWrite {
        convention: ID,
        module: source.module.clone(),
        preset: wanted.clone(),
        reason: reason.to_owned(),
    };
    let scheme = holds(source, shape).map_err(|reason| refuse(&reason))?;
    let mut layout = lay_out(&source.module, shape, scheme);
    if source.convention == ID {
        keep_spelling(source, &mut layout);
    }
    let is_fp4 = layout.scheme.code == Code::Minifloat(Minifloat::E2M1);
    let companions = source.parts.iter().filter(|part| {
        let ending = part.name.strip_prefix(&format!("{}.", source.module));
        let is_ours = ending.is_some_and(|e| COMPANIONS.contains(&e));
        // `input_scale` of NVFP4 is ModelOpt's, which multiplies.
        let is_foreign = is_fp4 && ending == Some("input_scale");
        part.role == Role::Auxiliary && is_ours && !is_foreign
    });
    layout.parts.extend(companions.cloned());
    Ok(layout)
}

/// Details of older writers, where the source has the very same numbers in them: a shape in I32, scales per channel without a
/// second dimension, codes that do not straddle words, zero points in bytes.
fn keep_spelling(source: &QuantizedTensor, layout: &mut QuantizedTensor) {
    let n = |shape: &[u64]| shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
    for part in &mut layout.parts {
        let Some(other) = source.parts.iter().find(|p| p.name == part.name) else {
            continue;
        };
        let is_descriptor = matches!(part.role, Role::Shape | Role::GroupIndex);
        let is_like = other.role == part.role
            && other.extent.is_none()
            && (other.dtype == part.dtype || is_descriptor);
        let same_bytes = other.storage == part.storage && n(&other.shape) == n(&part.shape);
        if is_like && (same_bytes || differs_in_packing(other, part)) {
            *part = other.clone();
        }
    }
}

/// Whether the only difference is that codes do not straddle words.
fn differs_in_packing(old: &Part, new: &Part) -> bool {
    let (
        Storage::Packed {
            axes,
            along,
            packing: Packing::LsbFirstNoStraddle { bits },
        },
        Storage::Packed {
            axes: new_axes,
            along: new_along,
            packing: Packing::LsbFirst { bits: new_bits },
        },
    ) = (old.storage, new.storage)
    else {
        return false;
    };
    (axes, along, bits) == (new_axes, new_along, new_bits)
}

/// The scheme of ours that is nearest to a tensor's, or why there is none.
fn holds(source: &QuantizedTensor, shape: [u64; 2]) -> Result<Scheme, String> {
    let scheme = &source.scheme;
    if scheme.basis != Basis::WEIGHT {
        return Err("the stored matrix is rotated, rescaled or has a low-rank part".to_owned());
    }
    match scheme.code {
        Code::Integer { bits, encoding } => {
            let code = Code::Integer {
                bits,
                encoding: integer_encoding(source, encoding),
            };
            let granularity = granularity(scheme.granularity, shape)?;
            let scale = ScaleCoding::Float(float_scale(scheme));
            let zero_point = zero_point(source, code, granularity)?;
            Ok(Scheme {
                zero_point,
                ..Scheme::plain(code, granularity, scale)
            })
        }
        Code::Minifloat(Minifloat::E4M3) => fp8(scheme, shape),
        Code::Minifloat(Minifloat::E2M1) => fp4(scheme, shape),
        Code::Minifloat(other) => Err(format!("its float codes are E4M3 and E2M1, not {other:?}")),
        Code::Codebook(_) | Code::StoredCodebook => {
            Err("it has no code books; bitsandbytes can hold it".to_owned())
        }
        Code::Dense(_) => Err("the weight is not quantized".to_owned()),
    }
}

/// Bytes stay bytes; what is packed, or has no sign, is packed.
fn integer_encoding(source: &QuantizedTensor, encoding: IntegerEncoding) -> IntegerEncoding {
    let codes = source.part(Role::Codes).map(|p| p.storage);
    match (encoding, codes) {
        (IntegerEncoding::TwosComplement, Some(Storage::Elements { .. }) | None) => {
            IntegerEncoding::TwosComplement
        }
        (IntegerEncoding::TwosComplement | IntegerEncoding::Unsigned, _) => {
            IntegerEncoding::Unsigned
        }
    }
}

/// The dtype of dense scales: the source's, or F32 where it has none or multiplies several.
fn float_scale(scheme: &Scheme) -> Float {
    match (scheme.scale, scheme.super_scale) {
        (ScaleCoding::Float(float), SuperScale::None) => float,
        _ => Float::F32,
    }
}

fn granularity(of: Granularity, [_, columns]: [u64; 2]) -> Result<Granularity, String> {
    let divides = |size: u64| {
        if columns.checked_rem(size).is_some_and(|rest| rest == 0) {
            return Ok(());
        }
        Err(format!(
            "its readers need groups that divide a row, and {size} does not divide {columns}"
        ))
    };
    match of {
        Granularity::Tensor | Granularity::Channel | Granularity::Block { .. } => Ok(of),
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            divides(size).map(|()| of)
        }
        // Groups of the flattened matrix that end where rows end.
        Granularity::Flat { size } => divides(size).map(|()| Granularity::Group { size }),
        Granularity::Strided { .. } => Err("its groups are of one row".to_owned()),
    }
}

fn zero_point(
    source: &QuantizedTensor,
    code: Code,
    granularity: Granularity,
) -> Result<ZeroPoint, String> {
    let Code::Integer { bits, encoding } = code else {
        return Ok(ZeroPoint::Fixed(0));
    };
    let is_packed = encoding == IntegerEncoding::Unsigned;
    let is_signed = source
        .part(Role::ZeroPoint)
        .is_some_and(|p| p.dtype == Dtype::I8);
    let coding = match granularity {
        Granularity::Channel | Granularity::Group { .. } | Granularity::IndexedGroup { .. }
            if is_packed && !is_signed =>
        {
            ZeroCoding::Direct
        }
        Granularity::Block { .. } if is_packed => {
            return match source.scheme.zero_point {
                ZeroPoint::Fixed(zero) if zero == 1 << (bits - 1) => Ok(ZeroPoint::Fixed(zero)),
                ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) | ZeroPoint::Offset { .. } => {
                    Err("its packed zero points are per channel or group".to_owned())
                }
            };
        }
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => ZeroCoding::Signed,
    };
    match source.scheme.zero_point {
        ZeroPoint::Fixed(zero) if zero == 1 << (bits - 1) => Ok(ZeroPoint::Fixed(zero)),
        ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) => Ok(ZeroPoint::Stored(coding)),
        ZeroPoint::Offset { .. } => {
            Err("its zero points are integers; mlx, hqq and gguf have offsets".to_owned())
        }
    }
}

/// FP8: power-of-two scales of 32 are MXFP8, everything else has dense scales.
fn fp8(scheme: &Scheme, shape: [u64; 2]) -> Result<Scheme, String> {
    let granularity = granularity(scheme.granularity, shape)?;
    let scale = match (scheme.scale, granularity) {
        (ScaleCoding::E8M0(_), Granularity::Group { size: MX_GROUP }) => {
            ScaleCoding::E8M0(E8M0Rule::TopIsInfinity)
        }
        _ => ScaleCoding::Float(float_scale(scheme)),
    };
    let code = Code::Minifloat(Minifloat::E4M3);
    Ok(Scheme::plain(code, granularity, scale))
}

/// FP4: NVFP4 and MXFP4.
fn fp4(scheme: &Scheme, shape: [u64; 2]) -> Result<Scheme, String> {
    let granularity = granularity(scheme.granularity, shape)?;
    let code = Code::Minifloat(Minifloat::E2M1);
    match (scheme.scale, granularity, scheme.super_scale) {
        (ScaleCoding::E8M0(_), Granularity::Group { size: MX_GROUP }, SuperScale::None) => {
            let scale = ScaleCoding::E8M0(E8M0Rule::TopIsInfinity);
            Ok(Scheme::plain(code, granularity, scale))
        }
        (
            ScaleCoding::Minifloat(Minifloat::E4M3),
            Granularity::Group { size: FP4_GROUP },
            SuperScale::None | SuperScale::Multiply | SuperScale::Divide,
        ) => {
            let super_scale = if scheme.super_scale == SuperScale::None {
                SuperScale::None
            } else {
                SuperScale::Divide
            };
            Ok(Scheme {
                super_scale,
                ..Scheme::plain(code, granularity, scheme.scale)
            })
        }
        (scale, granularity, _) => Err(format!(
            "its FP4 has E4M3 scales per {FP4_GROUP} or powers of two per {MX_GROUP}, not {scale:?} for {granularity:?}"
        )),
    }
}

/// Bits of the codes.
pub(super) fn bits_of(code: Code) -> u32 {
    match code {
        Code::Integer { bits, .. } => bits,
        Code::Minifloat(m) => m.bits(),
        Code::Codebook(_) | Code::StoredCodebook => 4,
        Code::Dense(float) => u32::try_from(8 * to_u64(float.size_bytes())).unwrap_or(32),
    }
}
