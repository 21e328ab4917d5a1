//! The formats of `comfy_quant` by name (specs/conventions/comfyui.md, clauses C14 to C30).

use safequant_container::Dtype;

use super::markers::Layer;
use super::padding::Logical;
use super::{Bound, Module, shape_of};
use crate::binding::{part, unsupported, wrong_dtype};
use crate::scheme::minifloat_of;
use crate::{
    Arithmetic, Axes, Code, Error, Granularity, IntegerEncoding, QuantizedTensor, Role,
    ScaleCoding, Scheme, Storage, ZeroPoint,
};

impl Module<'_> {
    /// A module with a description. `fp8_scales`: whether the file's FP8 layers have scales.
    pub(super) fn described(
        &self,
        layer: &Layer,
        logical: Option<&Logical>,
        fp8_scales: bool,
    ) -> Result<QuantizedTensor, Error> {
        let weight = self.need("weight")?;
        let missing = || unsupported(self.name, "a weight without rows", "");
        let bound = match layer.format()? {
            Some("float8_e4m3fn" | "float8_e5m2") => self.fp8_described(fp8_scales)?,
            Some("int8_tensorwise") => self.int8(layer)?,
            Some("nvfp4") => self.nvfp4(logical.ok_or_else(missing)?)?,
            Some("mxfp8" | "hybrid_mxfp8") => self.mxfp8(logical.ok_or_else(missing)?)?,
            Some("convrot_w4a4") => self.convrot_w4a4(layer)?,
            Some("asym_w4a8_int8") => self.asym_w4a8(layer)?,
            Some("awq_w4a16") => self.awq(layer)?,
            Some("svdquant_w4a4") => self.svdquant()?,
            Some(
                "float8_e4m3fn_rowwise"
                | "float8_e5m2_rowwise"
                | "float8_e4m3fn_blockwise"
                | "float8_e5m2_blockwise"
                | "int8_blockwise",
            ) => self.with_f32_result(layer)?,
            Some(other) => return Err(unsupported(self.name, other, layer.place())),
            None if weight.dtype == Dtype::I8 => self.int8(layer)?,
            None => {
                return Err(unsupported(
                    self.name,
                    "a marker without `format`",
                    &format!("{} beside a weight of {}", layer.place(), weight.dtype),
                ));
            }
        };
        let (stack, ..) = self.matrix(weight)?;
        if let Some(experts) = layer.experts()?
            && weight.shape.len() == 3
            && stack != [experts]
        {
            return Err(Error::Contradiction {
                module: self.name.to_owned(),
                config: format!("num_experts is {experts} ({})", layer.place()),
                tensors: format!("{} has shape {:?}", weight.name, weight.shape),
            });
        }
        self.finish(&weight.name, bound)
    }

    fn fp8_described(&self, fp8_scales: bool) -> Result<Bound, Error> {
        if self.get("weight_scale").is_some() || fp8_scales {
            return self.fp8("weight_scale");
        }
        // No layer of the file has one: the scale is 1.
        let info = self.need("weight")?;
        let minifloat = minifloat_of(info.dtype)
            .ok_or_else(|| wrong_dtype(self.name, info, "F8_E4M3 or F8_E5M2"))?;
        Ok(Bound {
            shape: info.shape.to_vec(),
            scheme: Scheme::plain(
                Code::Minifloat(minifloat),
                Granularity::Tensor,
                ScaleCoding::One,
            ),
            reference: self.compute,
            parts: vec![Self::codes(
                info,
                Storage::Elements { axes: Axes::OutIn },
                None,
            )],
        })
    }

    /// `convert_to_quant`'s own formats: rows or square blocks, and a result in F32.
    fn with_f32_result(&self, layer: &Layer) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        let (code, zero_point) = match minifloat_of(info.dtype) {
            Some(minifloat) => (Code::Minifloat(minifloat), ZeroPoint::Fixed(0)),
            None if info.dtype == Dtype::I8 => {
                let code = Code::Integer {
                    bits: 8,
                    encoding: IntegerEncoding::TwosComplement,
                };
                (code, ZeroPoint::Fixed(128))
            }
            None => return Err(wrong_dtype(self.name, info, "F8_E4M3, F8_E5M2 or I8")),
        };
        let matrix @ (stack, rows, columns) = self.matrix(info)?;
        let scale = self.need("weight_scale")?;
        let (granularity, coding, scale) = match layer.group_size()? {
            Some(side) if layer.format()?.is_some_and(|f| f.ends_with("_blockwise")) => {
                let grid = shape_of(stack, rows / side, columns / side);
                let is_whole = rows.is_multiple_of(side) && columns.is_multiple_of(side);
                if !is_whole || scale.shape != grid {
                    let expected = format!("{grid:?}, blocks of {side} in {rows} x {columns}");
                    return Err(self.shape_error(scale, expected));
                }
                let block = Granularity::Block {
                    rows: side,
                    columns: side,
                };
                let elements = Storage::Elements { axes: Axes::OutIn };
                let coding = ScaleCoding::Float(self.float(scale)?);
                (block, coding, part(Role::Scale, scale, elements))
            }
            _ => self.float_scale(scale, matrix)?,
        };
        Ok(Bound {
            shape: info.shape.to_vec(),
            scheme: Scheme {
                zero_point,
                arithmetic: Arithmetic::ScaledDifference,
                ..Scheme::plain(code, granularity, coding)
            },
            reference: safequant_kernels::Float::F32,
            parts: vec![
                Self::codes(info, Storage::Elements { axes: Axes::OutIn }, None),
                scale,
            ],
        })
    }
}
