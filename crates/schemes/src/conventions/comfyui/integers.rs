//! The integer formats: rows of INT8, and 4 to 6 bits, most of them rotated.

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat, Packing};

use super::markers::Layer;
use super::{Bound, Module, shape_of};
use crate::binding::{check_dtype, part, wrong_dtype};
use crate::scheme::float_of;
use crate::{
    Arithmetic, Axes, Axis, Basis, Code, Error, Granularity, IntegerEncoding, OffsetForm, Part,
    Role, Rotation, ScaleCoding, Scheme, Storage, SuperScale, ZeroPoint,
};

/// Nibbles, the even column low.
const NIBBLES: Storage = Storage::Packed {
    axes: Axes::OutIn,
    packing: Packing::LsbFirst { bits: 4 },
    along: Axis::In,
};
const BY_ROWS: Storage = Storage::Elements { axes: Axes::OutIn };
const BY_COLUMNS: Storage = Storage::Elements { axes: Axes::InOut };

/// Integers of this many bits.
const fn integer(bits: u32, encoding: IntegerEncoding) -> Code {
    Code::Integer { bits, encoding }
}

impl<'a> Module<'a> {
    pub(super) fn int8(&self, layer: &Layer) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::I8])?;
        let matrix @ (_, rows, columns) = self.matrix(info)?;
        let rotation = self.fitting(info, columns, layer.optional_rotation()?)?;
        let (granularity, coding, scale) = self.float_scale(self.need("weight_scale")?, matrix)?;
        if matches!(granularity, Granularity::Group { .. }) {
            return Err(self.shape_error(
                self.need("weight_scale")?,
                format!("[], [1] or [{rows}, 1] for each matrix"),
            ));
        }
        Ok(Bound {
            shape: info.shape.to_vec(),
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(128),
                basis: rotated(rotation),
                ..Scheme::plain(
                    integer(8, IntegerEncoding::TwosComplement),
                    granularity,
                    coding,
                )
            },
            reference: self.compute,
            parts: vec![Self::codes(info, BY_ROWS, None), scale],
        })
    }

    pub(super) fn convrot_w4a4(&self, layer: &Layer) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::I8, Dtype::U8])?;
        let (stack, rows, bytes) = self.matrix(info)?;
        let columns = bytes.saturating_mul(2);
        let rotation = self.fitting(info, columns, layer.rotation()?)?;
        let scale = self.need("weight_scale")?;
        let float = self.float(scale)?;
        self.expect(scale, &[with(stack, &[rows]), with(stack, &[rows, 1])])?;
        Ok(Bound {
            shape: shape_of(stack, rows, columns),
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(8),
                basis: rotated(rotation),
                ..Scheme::plain(
                    integer(4, IntegerEncoding::TwosComplement),
                    Granularity::Channel,
                    ScaleCoding::Float(float),
                )
            },
            reference: self.compute,
            parts: vec![
                Self::codes(info, NIBBLES, None),
                part(Role::Scale, scale, BY_ROWS),
            ],
        })
    }

    pub(super) fn awq(&self, layer: &Layer) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::I8, Dtype::U8])?;
        let (stack, rows, bytes) = self.matrix(info)?;
        let columns = bytes.saturating_mul(2);
        let size = layer.group_size()?.unwrap_or(64);
        let grid = with(stack, &[columns / size, rows]);
        if !columns.is_multiple_of(size) {
            let expected = format!("a multiple of {size} columns");
            return Err(self.shape_error(info, expected));
        }
        let scale = self.need("weight_scale")?;
        let zeros = self.need_one(&["weight_zeros", "weight_zero"])?;
        let float = self.float(scale)?;
        self.float(zeros)?;
        for info in [scale, zeros] {
            self.expect(info, std::slice::from_ref(&grid))?;
        }
        Ok(Bound {
            shape: shape_of(stack, rows, columns),
            scheme: Scheme {
                zero_point: ZeroPoint::Offset {
                    zero: 8,
                    form: OffsetForm::Added,
                },
                arithmetic: Arithmetic::EachStep(float),
                ..Scheme::plain(
                    integer(4, IntegerEncoding::Unsigned),
                    Granularity::Group { size },
                    ScaleCoding::Float(float),
                )
            },
            // Torch promotes to the dtype of the scales.
            reference: float,
            parts: vec![
                Self::codes(info, NIBBLES, None),
                part(Role::Scale, scale, BY_COLUMNS),
                part(Role::Offset, zeros, BY_COLUMNS),
            ],
        })
    }

    pub(super) fn asym_w4a8(&self, layer: &Layer) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::I8, Dtype::U8])?;
        let (stack, rows, bytes) = self.matrix(info)?;
        let size = layer.group_size()?.unwrap_or(16);
        let scale = self.need("weight_s_rel")?;
        let groups = scale.shape.last().copied().unwrap_or(0);
        let columns = groups.saturating_mul(size);
        self.expect(scale, &[with(stack, &[rows, groups])])?;
        let bits = self.bits_of(info, bytes, columns)?;
        let codebook = self.get("weight_codebook");
        let correction = self.get("weight_correction");
        let is_group = size >= 4 && (size % 16 == 0 || 16 % size == 0);
        let six = columns.is_multiple_of(32) && size % 16 == 0;
        let is_plain = codebook.is_none() && correction.is_none();
        if !is_group || !columns.is_multiple_of(16) || (bits == 6 && !(six && is_plain)) {
            let expected = format!("columns for codes of {bits} bits in groups of {size}");
            return Err(self.shape_error(info, expected));
        }
        let rotation = self.fitting(info, columns, layer.rotation()?)?;
        let channel = self.need("weight_s_channel")?;
        self.float(channel)?;
        self.expect(channel, &[with(stack, &[rows]), with(stack, &[rows, 1])])?;
        let mut parts = vec![
            Self::codes(info, storage_of(bits), None),
            part(Role::Scale, scale, BY_ROWS),
            part(Role::SuperScale, channel, BY_ROWS),
        ];
        let (code, middle) = match codebook {
            Some(book) => {
                parts.push(self.codebook(book)?);
                (Code::StoredCodebook, 0)
            }
            None => (integer(bits, IntegerEncoding::Unsigned), 1 << (bits - 1)),
        };
        let zero_point = match correction {
            Some(info) => {
                self.float(info)?;
                self.expect(info, &[with(stack, &[groups, rows])])?;
                parts.push(part(Role::Offset, info, BY_COLUMNS));
                ZeroPoint::Offset {
                    zero: middle,
                    form: OffsetForm::Added,
                }
            }
            None => ZeroPoint::Fixed(middle),
        };
        Ok(Bound {
            shape: shape_of(stack, rows, columns),
            scheme: Scheme {
                super_scale: SuperScale::Channel,
                zero_point,
                arithmetic: Arithmetic::Int8Grid(self.compute),
                basis: rotated(rotation),
                ..Scheme::plain(code, Granularity::Group { size }, self.relative(scale)?)
            },
            reference: self.compute,
            parts,
        })
    }

    /// 4 or 6 bits, by the width of a row.
    fn bits_of(&self, info: &TensorInfo, bytes: u64, columns: u64) -> Result<u32, Error> {
        let found = [4_u32, 6].into_iter().find(|&bits| {
            columns > 0 && bytes.checked_mul(8) == columns.checked_mul(u64::from(bits))
        });
        found.ok_or_else(|| {
            let expected = format!("{columns} columns in 4 or 6 bits each");
            self.shape_error(info, expected)
        })
    }

    fn codebook(&self, book: &TensorInfo) -> Result<Part, Error> {
        check_dtype(self.name, book, &[Dtype::F32])?;
        self.expect(book, &[vec![16]])?;
        Ok(part(Role::Codebook, book, Storage::Vector))
    }

    fn relative(&self, scale: &TensorInfo) -> Result<ScaleCoding, Error> {
        if matches!(scale.dtype, Dtype::F8E4M3 | Dtype::U8) {
            return Ok(ScaleCoding::Minifloat(Minifloat::E4M3));
        }
        let float: Option<Float> = float_of(scale.dtype);
        float
            .map(ScaleCoding::Float)
            .ok_or_else(|| wrong_dtype(self.name, scale, "F8_E4M3, U8 or F32"))
    }

    /// A rotation whose groups fill rows.
    fn fitting(
        &self,
        info: &TensorInfo,
        columns: u64,
        rotation: Rotation,
    ) -> Result<Rotation, Error> {
        match rotation {
            Rotation::ConvRot { size } if columns == 0 || !columns.is_multiple_of(size) => {
                let expected = format!("rows in groups of {size}, which are rotated");
                Err(self.shape_error(info, expected))
            }
            Rotation::ConvRot { .. } | Rotation::None => Ok(rotation),
        }
    }

    /// One of these shapes.
    pub(super) fn expect(&self, info: &'a TensorInfo, shapes: &[Vec<u64>]) -> Result<(), Error> {
        if shapes.iter().any(|shape| info.shape == *shape) {
            return Ok(());
        }
        let texts: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
        Err(self.shape_error(info, texts.join(" or ")))
    }
}

/// Codes of the 8-bit grid's format.
fn storage_of(bits: u32) -> Storage {
    match bits {
        6 => Storage::LowHigh { low: 4, high: 2 },
        _ => NIBBLES,
    }
}

const fn rotated(rotation: Rotation) -> Basis {
    Basis {
        rotation,
        ..Basis::WEIGHT
    }
}

/// A shape with the dimensions of a stack before it.
pub(super) fn with(stack: &[u64], sides: &[u64]) -> Vec<u64> {
    [stack, sides].concat()
}
