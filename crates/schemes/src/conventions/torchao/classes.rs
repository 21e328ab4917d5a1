//! The tensor subclasses, each from its tensors and attributes (specs/conventions/torchao.md, T5 to T12).

use std::collections::BTreeMap;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat, Tile};

use super::ID;
use super::metadata::Entry;
use crate::binding::{check_dtype, part, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::{Packing, float_of, minifloat_of};
use crate::{
    Arithmetic, Axes, Axis, Basis, Code, ColumnFactor, E8M0Rule, Error, Granularity,
    IntegerEncoding, OffsetForm, Part, QuantizedTensor, Role, ScaleCoding, Scheme, Storage,
    SuperScale, ZeroCoding, ZeroPoint,
};

/// One element per entry, in the order of dense weights.
pub(super) const ELEMENTS: Storage = Storage::Elements { axes: Axes::OutIn };
/// Two codes in a byte, that of the even input feature low.
pub(super) const NIBBLES: Storage = Storage::Packed {
    axes: Axes::OutIn,
    packing: Packing::LsbFirst { bits: 4 },
    along: Axis::In,
};
/// Tensors that belong to activations.
const ACTIVATIONS: [&str; 3] = [
    "act_quant_scale",
    "act_quant_zero_point",
    "act_per_tensor_scale",
];

/// A parameter taken apart.
pub(super) struct Pieces<'a> {
    pub(super) entry: &'a Entry,
    /// By name, without the prefix.
    pub(super) tensors: BTreeMap<&'a str, &'a TensorInfo>,
}

impl<'a> Pieces<'a> {
    /// The weight that it stands for.
    ///
    /// # Errors
    /// A part or attribute that is missing or does not fit; a class whose layout is not known.
    pub(super) fn bind(&self) -> Result<QuantizedTensor, Error> {
        let mut tensor = match self.entry.class.as_str() {
            "Int8Tensor" => self.int8()?,
            "IntxUnpackedToInt8Tensor" => self.intx()?,
            "Float8Tensor" => self.float8()?,
            "MXTensor" => self.mx()?,
            "NVFP4Tensor" => self.nvfp4()?,
            "Int4Tensor" => self.int4()?,
            class @ ("Int4TilePackedTo4dTensor" | "Int4PlainInt32Tensor") => {
                return Err(unsupported(
                    self.module(),
                    &format!("torchao's {class}"),
                    "its codes are in the order of one device's kernel",
                ));
            }
            class => {
                return Err(unsupported(
                    self.module(),
                    &format!("torchao's {}", crate::config::shorten(class)),
                    "",
                ));
            }
        };
        self.check_all_used(&tensor)?;
        self.activations(&mut tensor)?;
        Ok(tensor)
    }

    fn module(&self) -> &str {
        self.entry.module()
    }

    fn get(&self, name: &str) -> Result<&'a TensorInfo, Error> {
        self.tensors
            .get(name)
            .copied()
            .ok_or_else(|| Error::MissingPart {
                module: self.module().to_owned(),
                part: format!("{name}, a part of every {},", self.entry.class),
            })
    }

    /// Attributes that must be there.
    fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::ConfigValue {
            document: self.entry.data.place.clone(),
            key: key.to_owned(),
            expected: format!("an attribute of every {}", self.entry.class),
            found: "null".to_owned(),
        })
    }

    /// A part that this class does not have.
    fn check_all_used(&self, tensor: &QuantizedTensor) -> Result<(), Error> {
        for (name, info) in &self.tensors {
            let is_known = ACTIVATIONS.contains(name)
                || *name == "act_pre_scale"
                || tensor.parts.iter().any(|p| p.name == info.name);
            if !is_known {
                return Err(unsupported(
                    self.module(),
                    &format!("torchao's {} with {name}", self.entry.class),
                    "",
                ));
            }
        }
        Ok(())
    }

    /// What stands beside the weight for its inputs.
    fn activations(&self, tensor: &mut QuantizedTensor) -> Result<(), Error> {
        for name in ACTIVATIONS {
            if let Some(info) = self.tensors.get(name) {
                tensor
                    .parts
                    .push(part(Role::Auxiliary, info, Storage::Vector));
            }
        }
        if let Some(info) = self.tensors.get("act_pre_scale") {
            float_of(info.dtype)
                .ok_or_else(|| wrong_dtype(self.module(), info, "F32, F16 or BF16"))?;
            if info.n_elements() != tensor.in_features() {
                let expected = format!("{} factors", tensor.in_features());
                return Err(wrong_shape(self.module(), info, expected));
            }
            tensor.scheme.basis = Basis {
                columns: ColumnFactor::Inputs,
                ..Basis::WEIGHT
            };
            tensor.parts.push(part(Role::ColumnFactor, info, ELEMENTS));
        }
        Ok(())
    }

    /// `[.., out_features, in_features]`, of codes that take `per_element` of them in one element.
    fn shape(&self, codes: &TensorInfo, per_element: u64) -> Result<Vec<u64>, Error> {
        let mut shape = codes.shape.to_vec();
        if !matches!(shape.len(), 2 | 3) || shape.contains(&0) {
            let expected = "a matrix or a stack of matrices".to_owned();
            return Err(wrong_shape(self.module(), codes, expected));
        }
        if let Some(last) = shape.last_mut() {
            *last = last
                .checked_mul(per_element)
                .ok_or_else(|| Error::TooLarge {
                    module: self.module().to_owned(),
                    what: "a row",
                })?;
        }
        Ok(shape)
    }

    /// What shares one scale, and the shape of the scales: the weight's, divided by `block`.
    fn blocks(&self, shape: &[u64], block: &[u64]) -> Result<(Granularity, Vec<u64>), Error> {
        let bad = |reason: &str| Error::Contradiction {
            module: self.module().to_owned(),
            config: format!("block_size is {block:?}"),
            tensors: format!("the weight is {shape:?}: {reason}"),
        };
        if block.len() != shape.len() {
            return Err(bad("another number of dimensions"));
        }
        if shape.iter().zip(block).any(|(n, b)| !n.is_multiple_of(*b)) {
            return Err(bad("blocks do not divide it"));
        }
        let grid = shape.iter().zip(block).map(|(n, b)| n / b).collect();
        let (stack, matrix) = shape.split_at(shape.len() - 2);
        let (block_stack, block) = block.split_at(block.len() - 2);
        if block_stack
            .iter()
            .zip(stack)
            .any(|(&b, &n)| b != 1 && n != 1)
        {
            return Err(unsupported(
                self.module(),
                "torchao with scales that several matrices of a stack share",
                "",
            ));
        }
        let granularity = match (block[0], block[1]) {
            (1, columns) if columns == matrix[1] => Granularity::Channel,
            (1, size) => Granularity::Group { size },
            (rows, columns) if [rows, columns] == *matrix => Granularity::Tensor,
            (rows, columns) => Granularity::Block { rows, columns },
        };
        Ok((granularity, grid))
    }

    fn check_shape(&self, info: &TensorInfo, expected: &[u64]) -> Result<(), Error> {
        if info.shape == expected {
            return Ok(());
        }
        Err(wrong_shape(self.module(), info, format!("{expected:?}")))
    }

    fn tensor(
        &self,
        shape: Vec<u64>,
        scheme: Scheme,
        reference_dtype: Float,
        parts: Vec<Part>,
    ) -> QuantizedTensor {
        QuantizedTensor {
            module: self.module().to_owned(),
            weight: self.entry.name.clone(),
            convention: ID,
            shape,
            scheme,
            reference_dtype,
            parts,
        }
    }

    fn float_scale(&self, scale: &TensorInfo) -> Result<Float, Error> {
        float_of(scale.dtype).ok_or_else(|| wrong_dtype(self.module(), scale, "F32, F16 or BF16"))
    }

    fn int8(&self) -> Result<QuantizedTensor, Error> {
        let zero = self.tensors.get("zero_point").copied();
        if let Some(zero) = zero {
            check_dtype(self.module(), zero, &[Dtype::I8])?;
        }
        self.integers(8, zero)
    }

    fn intx(&self) -> Result<QuantizedTensor, Error> {
        let target = self.needed("target_dtype", self.entry.dtype("target_dtype")?)?;
        let bits = target
            .strip_prefix("int")
            .and_then(|b| b.parse().ok())
            .filter(|b| (1..=8).contains(b));
        let Some(bits) = bits else {
            return Err(self
                .entry
                .data
                .wrong("target_dtype", "int1 to int8", &target.into()));
        };
        self.integers(bits, Some(self.get("zero_point")?))
    }

    /// One I8 per code.
    fn integers(&self, bits: u32, zero: Option<&TensorInfo>) -> Result<QuantizedTensor, Error> {
        let (codes, scale) = (self.get("qdata")?, self.get("scale")?);
        check_dtype(self.module(), codes, &[Dtype::I8])?;
        let float = self.float_scale(scale)?;
        let reference = self.needed("dtype", self.entry.float("dtype")?)?;
        let shape = self.shape(codes, 1)?;
        let block = self.needed("block_size", self.entry.sizes("block_size")?)?;
        let (granularity, grid) = self.blocks(&shape, &block)?;
        self.check_shape(scale, &grid)?;
        let mut parts = vec![
            part(Role::Codes, codes, ELEMENTS),
            part(Role::Scale, scale, ELEMENTS),
        ];
        let mut arithmetic = Arithmetic::ScaledDifference;
        let half = 1 << (bits - 1);
        let zero_point = match zero {
            None => ZeroPoint::Fixed(half),
            Some(info) => {
                self.check_shape(info, &grid)?;
                if info.dtype == Dtype::I8 {
                    parts.push(part(Role::ZeroPoint, info, ELEMENTS));
                    ZeroPoint::Stored(ZeroCoding::Signed)
                } else {
                    self.check_float_zero(info, float, reference)?;
                    parts.push(part(Role::Offset, info, ELEMENTS));
                    arithmetic = Arithmetic::EachStep(reference);
                    ZeroPoint::Offset {
                        zero: half,
                        form: OffsetForm::BeforeScale,
                    }
                }
            }
        };
        let code = Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        };
        let scheme = Scheme {
            zero_point,
            arithmetic,
            ..Scheme::plain(code, granularity, ScaleCoding::Float(float))
        };
        Ok(self.tensor(shape, scheme, reference, parts))
    }

    /// Differences are rounded to the target dtype; the product only where the scale has that dtype too.
    fn check_float_zero(
        &self,
        zero: &TensorInfo,
        scale: Float,
        reference: Float,
    ) -> Result<(), Error> {
        float_of(zero.dtype)
            .ok_or_else(|| wrong_dtype(self.module(), zero, "I8, F32, F16 or BF16"))?;
        if scale == reference {
            return Ok(());
        }
        Err(unsupported(
            self.module(),
            "torchao with float zero points and scales of another dtype than the weight's",
            "",
        ))
    }

    fn float8(&self) -> Result<QuantizedTensor, Error> {
        let (codes, scale) = (self.get("qdata")?, self.get("scale")?);
        let Some(minifloat) = minifloat_of(codes.dtype) else {
            return Err(wrong_dtype(self.module(), codes, "an 8-bit float"));
        };
        let float = self.float_scale(scale)?;
        // Without the attribute a wrapper has torch's default dtype.
        let reference = self.entry.float("dtype")?.unwrap_or(Float::F32);
        let shape = self.shape(codes, 1)?;
        let block = match self.entry.sizes("block_size")? {
            Some(block) => block,
            // Null or empty: one scale.
            None => shape.clone(),
        };
        let (granularity, grid) = self.blocks(&shape, &block)?;
        // A single scale may have any number of dimensions.
        if scale.n_elements() != 1 || grid.iter().any(|&n| n != 1) {
            self.check_shape(scale, &grid)?;
        }
        let parts = vec![
            part(Role::Codes, codes, ELEMENTS),
            part(Role::Scale, scale, ELEMENTS),
        ];
        let scheme = Scheme::plain(
            Code::Minifloat(minifloat),
            granularity,
            ScaleCoding::Float(float),
        );
        Ok(self.tensor(shape, scheme, reference, parts))
    }

    /// Scales of groups along a row, in the order of the weight or of a kernel's tiles.
    fn group_scales(
        &self,
        scale: &TensorInfo,
        shape: &[u64],
        size: u64,
    ) -> Result<(Granularity, Part), Error> {
        let mut block = vec![1; shape.len()];
        if let Some(last) = block.last_mut() {
            *last = size;
        }
        let (_, grid) = self.blocks(shape, &block)?;
        let granularity = Granularity::Group { size };
        if !self
            .entry
            .data
            .boolean("is_swizzled_scales")?
            .unwrap_or(false)
        {
            self.check_shape(scale, &grid)?;
            return Ok((granularity, part(Role::Scale, scale, ELEMENTS)));
        }
        let tile = Tile::Swizzled;
        let rows = shape[shape.len() - 2];
        let height = crate::storage::to_u64(tile.rows());
        // Tiles run over all rows of a stack: only whole ones end with a matrix.
        if shape.len() > 2 && !rows.is_multiple_of(height) {
            return Err(unsupported(
                self.module(),
                "torchao with swizzled scales of a stack whose matrices do not fill tiles",
                "",
            ));
        }
        Ok((
            granularity,
            part(Role::Scale, scale, Storage::Tiled { tile }),
        ))
    }

    fn mx(&self) -> Result<QuantizedTensor, Error> {
        let (codes, scale) = (self.get("qdata")?, self.get("scale")?);
        check_dtype(self.module(), scale, &[Dtype::F8E8M0])?;
        let element = self.needed("elem_dtype", self.entry.element_dtype("elem_dtype")?)?;
        let (minifloat, storage, dtype) = match element.as_str() {
            "float8_e4m3fn" => (Minifloat::E4M3, ELEMENTS, Dtype::F8E4M3),
            "float8_e5m2" => (Minifloat::E5M2, ELEMENTS, Dtype::F8E5M2),
            "fp6_e2m3" => (Minifloat::E2M3, ELEMENTS, Dtype::U8),
            "fp6_e3m2" => (Minifloat::E3M2, ELEMENTS, Dtype::U8),
            "float4_e2m1fn_x2" => (Minifloat::E2M1, NIBBLES, Dtype::U8),
            _ => {
                return Err(self.entry.data.wrong(
                    "elem_dtype",
                    "an element type of MX",
                    &element.into(),
                ));
            }
        };
        check_dtype(self.module(), codes, &[dtype])?;
        let reference = self.needed("orig_dtype", self.entry.float("orig_dtype")?)?;
        let shape = self.shape(codes, if storage == NIBBLES { 2 } else { 1 })?;
        let size = self.block_size(32)?;
        let (granularity, scale) = self.group_scales(scale, &shape, size)?;
        let scheme = Scheme {
            // Only F16 does not hold every power of two; with it a scale is rounded first.
            arithmetic: match reference {
                Float::F16 => Arithmetic::EachStep(Float::F16),
                Float::F32 | Float::Bf16 => Arithmetic::ScaledDifference,
            },
            ..Scheme::plain(
                Code::Minifloat(minifloat),
                granularity,
                ScaleCoding::E8M0(E8M0Rule::Ocp),
            )
        };
        let parts = vec![part(Role::Codes, codes, storage), scale];
        Ok(self.tensor(shape, scheme, reference, parts))
    }

    /// `block_size` as a number.
    fn block_size(&self, usual: u64) -> Result<u64, Error> {
        let stated = self.entry.data.integer("block_size", 1..=1 << 20)?;
        Ok(stated.map_or(usual, i64::unsigned_abs))
    }

    fn nvfp4(&self) -> Result<QuantizedTensor, Error> {
        let (codes, scale) = (self.get("qdata")?, self.get("scale")?);
        check_dtype(self.module(), codes, &[Dtype::U8])?;
        check_dtype(self.module(), scale, &[Dtype::F8E4M3])?;
        let reference = self.needed("orig_dtype", self.entry.float("orig_dtype")?)?;
        let shape = self.shape(codes, 2)?;
        let size = self.block_size(16)?;
        let (granularity, scale) = self.group_scales(scale, &shape, size)?;
        let mut parts = vec![part(Role::Codes, codes, NIBBLES), scale];
        let mut super_scale = SuperScale::None;
        if let Some(info) = self.tensors.get("per_tensor_scale") {
            check_dtype(self.module(), info, &[Dtype::F32])?;
            let n_matrices: u64 = shape[..shape.len() - 2].iter().product();
            if info.n_elements() != n_matrices {
                let expected = format!("one value for each of {n_matrices} matrices");
                return Err(wrong_shape(self.module(), info, expected));
            }
            parts.push(part(Role::SuperScale, info, ELEMENTS));
            super_scale = SuperScale::Multiply;
        }
        let scheme = Scheme {
            super_scale,
            ..Scheme::plain(
                Code::Minifloat(Minifloat::E2M1),
                granularity,
                ScaleCoding::Minifloat(Minifloat::E4M3),
            )
        };
        Ok(self.tensor(shape, scheme, reference, parts))
    }

    /// Two's complement nibbles; scales and float zero points transposed, `[in_features / group, out_features]`.
    fn int4(&self) -> Result<QuantizedTensor, Error> {
        let (codes, scale) = (self.get("qdata")?, self.get("scale")?);
        let zero = self.get("zero_point")?;
        check_dtype(self.module(), codes, &[Dtype::I8, Dtype::U8])?;
        let float = self.float_scale(scale)?;
        self.float_scale(zero)?;
        let shape = self.shape(codes, 2)?;
        if let Some(stated) = self.entry.sizes("shape")?
            && stated != shape
        {
            return Err(Error::Contradiction {
                module: self.module().to_owned(),
                config: format!("shape is {stated:?}"),
                tensors: format!("{} holds {shape:?}", codes.name),
            });
        }
        let block = self.needed("block_size", self.entry.sizes("block_size")?)?;
        let (granularity, mut grid) = self.blocks(&shape, &block)?;
        if !matches!(
            granularity,
            Granularity::Group { .. } | Granularity::Channel
        ) {
            return Err(self
                .entry
                .data
                .wrong("block_size", "groups along a row", &block.into()));
        }
        let last = grid.len() - 1;
        grid.swap(last - 1, last);
        self.check_shape(scale, &grid)?;
        self.check_shape(zero, &grid)?;
        let transposed = Storage::Elements { axes: Axes::InOut };
        let scheme = Scheme {
            zero_point: ZeroPoint::Offset {
                zero: 8,
                form: OffsetForm::Added,
            },
            ..Scheme::plain(
                Code::Integer {
                    bits: 4,
                    encoding: IntegerEncoding::TwosComplement,
                },
                granularity,
                ScaleCoding::Float(float),
            )
        };
        let parts = vec![
            part(Role::Codes, codes, NIBBLES),
            part(Role::Scale, scale, transposed),
            part(Role::Offset, zero, transposed),
        ];
        Ok(self.tensor(shape, scheme, float, parts))
    }
}
