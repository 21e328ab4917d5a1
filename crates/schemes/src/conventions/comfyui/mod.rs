//! ComfyUI and the diffusion community's safetensors: plain FP8 casts, scaled FP8, the formats of `comfy_quant`, and those
//! that `convert_to_quant` and musubi-tuner add (specs/conventions/comfyui.md).

mod blocks;
mod formats;
mod integers;
mod markers;
mod padding;
mod scaled;
mod survey;
mod svdquant;
mod write;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Float;

use self::survey::{Found, Kind};
use crate::binding::{part, required, wrong_dtype, wrong_shape};
use crate::scheme::float_of;
use crate::{
    Axes, Convention, ConventionWriter, Error, Granularity, Headers, Part, QuantizedTensor,
    Recognized, Role, ScaleCoding, Scheme, Storage,
};

/// See the module.
pub struct ComfyUi;

/// The id.
const ID: &str = "comfyui";

/// Endings of tensors that belong to a module, but not to its weight.
const COMPANIONS: [&str; 4] = ["comfy_quant", "input_scale", "scale_input", "weight_scalar"];

impl Convention for ComfyUi {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "ComfyUI, diffusers, convert_to_quant, musubi-tuner: FP8, INT8, NVFP4, MXFP8 and AWQ as comfy_quant; FP8 casts, scaled_fp8, rotated formats and SVDQuant are read, and kept where they are"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let found = Found::find(headers)?;
        Ok(found.map(|f| Box::new(f) as Box<dyn Recognized + 'a>))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.modules
    }

    fn orphans(&self) -> &[String] {
        &self.orphans
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let kind = self.kinds.get(module).ok_or_else(|| Error::MissingPart {
            module: module.to_owned(),
            part: format!("{module}.weight"),
        })?;
        let module = Module {
            headers: self.headers,
            name: module,
            compute: self.compute,
        };
        match kind {
            Kind::Plain { weight } => module.plain(weight),
            Kind::Scaled { scale } => module.scaled(scale),
            Kind::Described { layer, logical } => {
                module.described(layer, logical.as_ref(), self.fp8_scales)
            }
        }
    }
}

/// One module on its way to a tensor.
#[derive(Clone, Copy)]
struct Module<'a> {
    headers: Headers<'a>,
    name: &'a str,
    /// What `ComfyUI` computes in.
    compute: Float,
}

/// What a format comes to.
struct Bound {
    shape: Vec<u64>,
    scheme: Scheme,
    reference: Float,
    parts: Vec<Part>,
}

impl<'a> Module<'a> {
    /// A tensor of the module.
    fn get(&self, ending: &str) -> Option<&'a TensorInfo> {
        self.headers.tensor(&format!("{}.{ending}", self.name))
    }

    /// A tensor of the module that must be there.
    fn need(&self, ending: &str) -> Result<&'a TensorInfo, Error> {
        required(self.headers, self.name, &format!("{}.{ending}", self.name))
    }

    /// The first of these that is there.
    fn need_one(&self, endings: &[&str]) -> Result<&'a TensorInfo, Error> {
        let found = endings.iter().find_map(|e| self.get(e));
        found.map_or_else(|| self.need(endings[0]), Ok)
    }

    /// Matrices of a weight of rank 2 or more, as `(stack, rows, columns)`.
    fn matrix(&self, info: &'a TensorInfo) -> Result<(&'a [u64], u64, u64), Error> {
        match info.shape.as_slice() {
            [stack @ .., rows, columns] => Ok((stack, *rows, *columns)),
            _ => Err(wrong_shape(
                self.name,
                info,
                "a matrix or a stack of matrices".to_owned(),
            )),
        }
    }

    /// The codes, with the padding they have.
    fn codes(info: &TensorInfo, storage: Storage, extent: Option<[u64; 2]>) -> Part {
        Part {
            extent,
            ..part(Role::Codes, info, storage)
        }
    }

    /// A part with one number for each matrix of a stack, or one for all of them.
    fn per_matrix(&self, role: Role, info: &TensorInfo, stack: &[u64]) -> Result<Part, Error> {
        let n_matrices = product(stack);
        let storage = match info.n_elements() {
            n if n == n_matrices => Storage::Elements { axes: Axes::OutIn },
            1 => Storage::Common,
            _ => {
                let expected = format!("one element, or {n_matrices}");
                return Err(wrong_shape(self.name, info, expected));
            }
        };
        Ok(part(role, info, storage))
    }

    /// A scale of dense floats: what shares it, by its shape.
    fn float_scale(
        &self,
        info: &TensorInfo,
        (stack, rows, columns): (&[u64], u64, u64),
    ) -> Result<(Granularity, ScaleCoding, Part), Error> {
        let float = self.float(info)?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        let own = info.shape.strip_prefix(stack).unwrap_or(&info.shape);
        let (granularity, scale) = match own {
            _ if info.n_elements() == 1 || info.shape == stack => (
                Granularity::Tensor,
                self.per_matrix(Role::Scale, info, stack)?,
            ),
            [n] | [n, 1] if *n == rows => (Granularity::Channel, part(Role::Scale, info, elements)),
            [n, blocks, 1] if *n == rows && *blocks > 0 && columns.is_multiple_of(*blocks) => {
                let size = columns / blocks;
                (
                    Granularity::Group { size },
                    part(Role::Scale, info, elements),
                )
            }
            _ => {
                let expected = format!(
                    "[], [1], [{rows}, 1] or [{rows}, blocks that divide {columns}, 1] for each matrix"
                );
                return Err(wrong_shape(self.name, info, expected));
            }
        };
        Ok((granularity, ScaleCoding::Float(float), scale))
    }

    /// The dense float type of a tensor.
    fn float(&self, info: &TensorInfo) -> Result<Float, Error> {
        float_of(info.dtype).ok_or_else(|| wrong_dtype(self.name, info, "F32, F16 or BF16"))
    }

    /// The tensor, with everything that belongs to the module.
    fn finish(&self, weight: &str, bound: Bound) -> Result<QuantizedTensor, Error> {
        let mut parts = bound.parts;
        for ending in COMPANIONS {
            if let Some(info) = self.get(ending) {
                parts.push(self.kept(Role::Auxiliary, info)?);
            }
        }
        if let Some(info) = self.get("weight_orig_shape") {
            parts.push(self.kept(Role::Shape, info)?);
        }
        Ok(QuantizedTensor {
            module: self.name.to_owned(),
            weight: weight.to_owned(),
            convention: ID,
            shape: bound.shape,
            scheme: bound.scheme,
            reference_dtype: bound.reference,
            parts,
        })
    }

    /// A small tensor that stays as it is.
    fn kept(&self, role: Role, info: &TensorInfo) -> Result<Part, Error> {
        let is_small = info.len_bytes() <= self.headers.descriptor_limit();
        let content = if is_small {
            Some(self.headers.descriptor(&info.name)?)
        } else {
            None
        };
        Ok(Part {
            content,
            ..part(role, info, Storage::Vector)
        })
    }

    /// The error for a shape.
    fn shape_error(&self, info: &TensorInfo, expected: String) -> Error {
        wrong_shape(self.name, info, expected)
    }
}

/// Matrices of a stack.
fn product(stack: &[u64]) -> u64 {
    stack.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// The shape of a stack of matrices.
fn shape_of(stack: &[u64], rows: u64, columns: u64) -> Vec<u64> {
    let mut shape = stack.to_vec();
    shape.extend([rows, columns]);
    shape
}

/// Whether a dtype holds FP8 codes as `ComfyUI` knows them.
fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2)
}
