//! The forms that are written: from a scheme to parts, and what the marker says of them.

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat, Packing, Tile};

use super::super::markers::MARKER;
use super::super::{ID, shape_of};
use super::HOLDS;
use crate::binding::{constant, planned};
use crate::scheme::dtype_of;
use crate::storage::to_u64;
use crate::{
    Arithmetic, Axes, Axis, Code, E8M0Rule, Granularity, IntegerEncoding, OffsetForm, Part,
    QuantizedTensor, Role, ScaleCoding, Scheme, Storage, SuperScale, ZeroPoint,
};

/// Input features that share a scale in `nvfp4`.
pub(super) const NVFP4_GROUP: u64 = 16;
/// And in `mxfp8`.
pub(super) const MXFP8_GROUP: u64 = 32;

const BY_ROWS: Storage = Storage::Elements { axes: Axes::OutIn };

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    /// A matrix.
    Matrix,
    /// A row.
    Row,
}

/// What `ComfyUI` does with the inputs of a layer, where its device can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inputs {
    /// It quantizes them as the weights are.
    Quantized,
    /// It leaves them, and dequantizes the weight.
    Dense,
}

/// What a weight is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `float8_e4m3fn`, `float8_e5m2`.
    Fp8(Minifloat, Shared),
    /// `int8_tensorwise`.
    Int8(Shared),
    /// `nvfp4`.
    Nvfp4,
    /// `mxfp8`.
    Mxfp8,
    /// `awq_w4a16`.
    Int4 {
        /// Input features that share a scale.
        size: u64,
        /// The dtype of scales and offsets.
        float: Float,
    },
}

/// A matrix, or a bank of them.
#[derive(Clone, Copy)]
struct Sides<'a> {
    stack: &'a [u64],
    rows: u64,
    columns: u64,
}

impl Form {
    /// The form that holds the codes of a tensor, or why none does.
    pub(super) fn of(source: &QuantizedTensor) -> Result<Self, String> {
        let scheme = &source.scheme;
        let group = |size: u64| scheme.granularity == Granularity::Group { size };
        match (scheme.code, scheme.scale) {
            (Code::Integer { bits, .. }, _) if bits <= 4 => {
                let size = group_of(source)?;
                let float = match scheme.scale {
                    ScaleCoding::Float(float) => float,
                    ScaleCoding::E8M0(_)
                    | ScaleCoding::Minifloat(_)
                    | ScaleCoding::StoredTable
                    | ScaleCoding::Integer
                    | ScaleCoding::One => source.reference_dtype,
                };
                Ok(Self::Int4 { size, float })
            }
            (Code::Integer { .. }, _) => match scheme.zero_point {
                ZeroPoint::Fixed(_) => Ok(Self::Int8(shared(source)?)),
                ZeroPoint::Stored(_) | ZeroPoint::Offset { .. } => {
                    Err("its integers of more than 4 bits have no zero points".to_owned())
                }
            },
            (Code::Minifloat(Minifloat::E4M3), ScaleCoding::E8M0(_)) => {
                is_cut(scheme.granularity, MXFP8_GROUP, source.in_features())
                    .then_some(Self::Mxfp8)
                    .ok_or_else(|| HOLDS.to_owned())
            }
            (
                Code::Minifloat(format @ (Minifloat::E4M3 | Minifloat::E5M2)),
                ScaleCoding::Float(_) | ScaleCoding::One,
            ) => Ok(Self::Fp8(format, shared(source)?)),
            (Code::Minifloat(Minifloat::E2M1), ScaleCoding::Minifloat(Minifloat::E4M3))
                if group(NVFP4_GROUP) =>
            {
                if scheme.super_scale == SuperScale::None {
                    return Err("its nvfp4 has a scale for the whole matrix".to_owned());
                }
                Ok(Self::Nvfp4)
            }
            (
                Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_),
                ScaleCoding::Float(_)
                | ScaleCoding::E8M0(_)
                | ScaleCoding::Minifloat(_)
                | ScaleCoding::StoredTable
                | ScaleCoding::Integer
                | ScaleCoding::One,
            ) => Err(HOLDS.to_owned()),
        }
    }

    /// The layout of a weight in this form, or why it has none.
    pub(super) fn lay(
        self,
        module: &str,
        shape: &[u64],
        reference: Float,
        inputs: Inputs,
    ) -> Result<QuantizedTensor, String> {
        let sides = sides(shape)?;
        let mut parts = self.parts(module, sides)?;
        let text = self.marker(sides, inputs).into_bytes();
        let name = format!("{module}{MARKER}");
        parts.push(constant(name, Dtype::U8, vec![to_u64(text.len())], text));
        let reference = match self {
            Form::Int4 { float, .. } => float,
            Form::Fp8(..) | Form::Int8(_) | Form::Nvfp4 | Form::Mxfp8 => reference,
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: self.scheme(reference),
            reference_dtype: reference,
            parts,
        })
    }

    /// The scheme that `ComfyUI` computes.
    fn scheme(self, reference: Float) -> Scheme {
        let float = ScaleCoding::Float(Float::F32);
        let group = |size| Granularity::Group { size };
        let over = |shared| match shared {
            Shared::Matrix => Granularity::Tensor,
            Shared::Row => Granularity::Channel,
        };
        let integer = |bits, encoding| Code::Integer { bits, encoding };
        match self {
            Form::Fp8(format, shared) => Scheme {
                arithmetic: Arithmetic::EachStep(reference),
                ..Scheme::plain(Code::Minifloat(format), over(shared), float)
            },
            Form::Int8(shared) => Scheme {
                zero_point: ZeroPoint::Fixed(128),
                ..Scheme::plain(
                    integer(8, IntegerEncoding::TwosComplement),
                    over(shared),
                    float,
                )
            },
            Form::Nvfp4 => Scheme {
                super_scale: SuperScale::Multiply,
                arithmetic: Arithmetic::EachStep(reference),
                ..Scheme::plain(
                    Code::Minifloat(Minifloat::E2M1),
                    group(NVFP4_GROUP),
                    ScaleCoding::Minifloat(Minifloat::E4M3),
                )
            },
            Form::Mxfp8 => Scheme::plain(
                Code::Minifloat(Minifloat::E4M3),
                group(MXFP8_GROUP),
                ScaleCoding::E8M0(E8M0Rule::ExponentField),
            ),
            Form::Int4 { size, float } => Scheme {
                zero_point: ZeroPoint::Offset {
                    zero: 8,
                    form: OffsetForm::Added,
                },
                arithmetic: Arithmetic::EachStep(float),
                ..Scheme::plain(
                    integer(4, IntegerEncoding::Unsigned),
                    group(size),
                    ScaleCoding::Float(float),
                )
            },
        }
    }

    fn parts(self, module: &str, sides: Sides<'_>) -> Result<Vec<Part>, String> {
        let Sides {
            stack,
            rows,
            columns,
        } = sides;
        let name = |ending: &str| format!("{module}.{ending}");
        let whole = shape_of(stack, rows, columns);
        let codes =
            |dtype, shape, storage| planned(Role::Codes, name("weight"), dtype, shape, storage);
        let scale = |dtype, shape, storage| {
            planned(Role::Scale, name("weight_scale"), dtype, shape, storage)
        };
        let over = |shared| match shared {
            Shared::Matrix => stack.to_vec(),
            Shared::Row => shape_of(stack, rows, 1),
        };
        match self {
            Form::Fp8(format, shared) => {
                let dtype = if format == Minifloat::E5M2 {
                    Dtype::F8E5M2
                } else {
                    Dtype::F8E4M3
                };
                Ok(vec![
                    codes(dtype, whole, BY_ROWS),
                    scale(Dtype::F32, over(shared), BY_ROWS),
                ])
            }
            Form::Int8(shared) => Ok(vec![
                codes(Dtype::I8, whole, BY_ROWS),
                scale(Dtype::F32, over(shared), BY_ROWS),
            ]),
            Form::Nvfp4 => {
                let (stored, grid) = sides.padded(NVFP4_GROUP)?;
                let width = shape_of(stack, stored[0], stored[1] / 2);
                let second = name("weight_scale_2");
                Ok(vec![
                    sides.with_padding(
                        codes(Dtype::U8, width, nibbles(Packing::NibblesHighFirst)),
                        stored,
                    ),
                    scale(Dtype::F8E4M3, grid, SWIZZLED),
                    planned(
                        Role::SuperScale,
                        second,
                        Dtype::F32,
                        stack.to_vec(),
                        BY_ROWS,
                    ),
                ])
            }
            Form::Mxfp8 => {
                let (stored, grid) = sides.padded(MXFP8_GROUP)?;
                let shape = shape_of(stack, stored[0], stored[1]);
                Ok(vec![
                    sides.with_padding(codes(Dtype::F8E4M3, shape, BY_ROWS), stored),
                    // Tools that do not know F8_E8M0 refuse the whole file; ComfyUI views either.
                    scale(Dtype::U8, grid, SWIZZLED),
                ])
            }
            Form::Int4 { size, float } => sides.in_groups(size, float, &name),
        }
    }

    /// What `ComfyUI` writes of such a layer (`comfy/ops.py _quantized_weight_state_dict`), and the shape without padding, as
    /// `convert_to_quant` has it: spelled as Python's `json.dumps` spells it.
    fn marker(self, sides: Sides<'_>, inputs: Inputs) -> String {
        let format = match self {
            Form::Fp8(Minifloat::E5M2, _) => "float8_e5m2",
            Form::Fp8(..) => "float8_e4m3fn",
            Form::Int8(_) => "int8_tensorwise",
            Form::Nvfp4 => "nvfp4",
            Form::Mxfp8 => "mxfp8",
            Form::Int4 { .. } => "awq_w4a16",
        };
        let mut entries = vec![format!("\"format\": \"{format}\"")];
        let is_dense = match self {
            // Products of FP8 take one scale for each side.
            Form::Fp8(_, Shared::Row) => true,
            Form::Fp8(_, Shared::Matrix) | Form::Nvfp4 | Form::Mxfp8 | Form::Int8(_) => {
                inputs == Inputs::Dense
            }
            // It never quantizes inputs.
            Form::Int4 { .. } => false,
        };
        if is_dense {
            entries.push("\"full_precision_matrix_mult\": true".to_owned());
        }
        match self {
            Form::Nvfp4 | Form::Mxfp8 => {
                let shape = [sides.rows, sides.columns];
                entries.push(format!("\"orig_shape\": {shape:?}"));
            }
            Form::Int4 { size, .. } => entries.push(format!("\"group_size\": {size}")),
            Form::Fp8(..) | Form::Int8(_) => {}
        }
        if let [experts] = sides.stack {
            entries.push(format!("\"num_experts\": {experts}"));
        }
        format!("{{{}}}", entries.join(", "))
    }
}

const SWIZZLED: Storage = Storage::Tiled {
    tile: Tile::Swizzled,
};

fn nibbles(packing: Packing) -> Storage {
    Storage::Packed {
        axes: Axes::OutIn,
        packing,
        along: Axis::In,
    }
}

/// The sides of a matrix, or of a bank of experts.
fn sides(shape: &[u64]) -> Result<Sides<'_>, String> {
    let at = shape.len().saturating_sub(2);
    match shape.split_at(at) {
        (stack, &[rows, columns]) if stack.len() <= 1 => Ok(Sides {
            stack,
            rows,
            columns,
        }),
        _ => Err("it holds matrices, and banks of experts in one tensor".to_owned()),
    }
}

impl Sides<'_> {
    /// The stored matrix of whole blocks, and the tiled grid of scales that goes with it.
    fn padded(self, unit: u64) -> Result<([u64; 2], Vec<u64>), String> {
        let up = |n: u64, unit: u64| n.checked_next_multiple_of(unit).filter(|&n| n > 0);
        let found = up(self.rows, unit).zip(up(self.columns, unit));
        let grid = found.and_then(|(rows, columns)| up(rows, 128).zip(up(columns / unit, 4)));
        match (found, grid) {
            (Some((rows, columns)), Some((r, c))) => {
                Ok(([rows, columns], shape_of(self.stack, r, c)))
            }
            _ => Err("a weight without elements has no blocks".to_owned()),
        }
    }

    fn with_padding(self, part: Part, stored: [u64; 2]) -> Part {
        let is_padded = stored != [self.rows, self.columns];
        Part {
            extent: is_padded.then_some(stored),
            ..part
        }
    }

    /// `awq_w4a16`: scales and offsets by groups, transposed.
    fn in_groups(
        self,
        size: u64,
        float: Float,
        name: &dyn Fn(&str) -> String,
    ) -> Result<Vec<Part>, String> {
        let (rows, columns) = (self.rows, self.columns);
        if !self.stack.is_empty() {
            return Err("its 4-bit integers stand in single matrices".to_owned());
        }
        let fits = size > 0 && columns.is_multiple_of(size) && columns.is_multiple_of(2);
        if !fits || columns == 0 {
            return Err(format!(
                "its 4-bit integers have an even number of input features in whole groups, and groups of {size} are not in \
                 {columns}"
            ));
        }
        let grid = vec![columns / size, rows];
        let by_columns = Storage::Elements { axes: Axes::InOut };
        let dtype = dtype_of(float);
        let beside = |role, ending| planned(role, name(ending), dtype, grid.clone(), by_columns);
        let packed = nibbles(Packing::LsbFirst { bits: 4 });
        Ok(vec![
            planned(
                Role::Codes,
                name("weight"),
                Dtype::I8,
                vec![rows, columns / 2],
                packed,
            ),
            beside(Role::Scale, "weight_scale"),
            beside(Role::Offset, "weight_zeros"),
        ])
    }
}

/// What of a matrix or a row shares a scale.
fn shared(source: &QuantizedTensor) -> Result<Shared, String> {
    match source.scheme.granularity {
        Granularity::Tensor => Ok(Shared::Matrix),
        Granularity::Channel => Ok(Shared::Row),
        Granularity::Group { size } if size >= source.in_features() => Ok(Shared::Row),
        Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => Err(HOLDS.to_owned()),
    }
}

/// Whether what shares a scale can be cut into groups of `size` input features.
fn is_cut(granularity: Granularity, size: u64, columns: u64) -> bool {
    match granularity {
        Granularity::Group { size: width } | Granularity::Block { columns: width, .. } => {
            width >= columns || width.is_multiple_of(size)
        }
        Granularity::Channel | Granularity::Tensor => true,
        Granularity::IndexedGroup { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => false,
    }
}

/// Consecutive input features with one scale.
fn group_of(source: &QuantizedTensor) -> Result<u64, String> {
    let columns = source.in_features();
    match source.scheme.granularity {
        Granularity::Tensor | Granularity::Channel => Ok(columns),
        Granularity::Group { size } | Granularity::Block { columns: size, .. } => {
            Ok(size.min(columns))
        }
        Granularity::Flat { size } if size > 0 && columns.is_multiple_of(size) => Ok(size),
        Granularity::IndexedGroup { .. } => {
            Err("it has no group index (activation order); gptq has".to_owned())
        }
        Granularity::Flat { .. } | Granularity::Strided { .. } => {
            Err("its groups are consecutive input features of one row".to_owned())
        }
    }
}
