//! GGUF models: block types of ggml, and F16 or BF16 weights whose reference is F32 too (specs/conventions/gguf.md).

mod architecture;
mod documents;
mod general;
mod hyper_parameters;
mod model_id;
mod names;
mod pre_tokenizer;
mod rope;
mod sentencepiece;
mod special_tokens;
mod spelling;
mod tokenizer;
mod vocabulary;
mod write;

use std::collections::BTreeMap;

use safequant_container::{BlockType, Dtype, GgufValue, TensorInfo};
use safequant_kernels::Float;

use crate::binding::{check_dtype, part, required, unsupported, wrong_shape};
use crate::scheme::{BlockFormat, float_of, scheme_of_blocks};
use crate::{
    Axes, Code, Convention, ConventionWriter, Error, Granularity, Headers, QuantizedTensor,
    Recognized, Role, ScaleCoding, Scheme, Storage, SuperScale,
};

/// See the module.
pub struct Gguf;

/// The id.
const ID: &str = "gguf";

/// How the name of a weight ends.
const WEIGHT: &str = ".weight";

impl Convention for Gguf {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "GGUF of llama.cpp: Q4_0 to Q8_0, K-quants, IQ2 to IQ4, MXFP4 and NVFP4 blocks; IQ1 and ternary blocks are read only"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let Some(metadata) = headers.gguf() else {
            return Ok(None);
        };
        let mut tensors = BTreeMap::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for info in headers.tensors().filter(|info| is_stored_narrow(info)) {
            *counts.entry(type_name(info)).or_default() += 1;
            tensors.insert(module_of(headers, info).to_owned(), info.name.to_string());
        }
        if tensors.is_empty() {
            return Ok(None);
        }
        let architecture = metadata.get("general.architecture");
        let architecture = architecture.and_then(GgufValue::as_str);
        let counts: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let evidence = vec![
            format!(
                "general.architecture is {}",
                architecture.unwrap_or("missing")
            ),
            format!("tensors: {}", counts.join(", ")),
        ];
        Ok(Some(Box::new(Found {
            headers,
            modules: tensors.keys().cloned().collect(),
            tensors,
            orphans: Vec::new(),
            evidence,
        })))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// Whether a tensor's values are read as F32, but not stored so.
fn is_stored_narrow(info: &TensorInfo) -> bool {
    let is_half = matches!(info.dtype, Dtype::F16 | Dtype::BF16) && !info.shape.is_empty();
    info.block.is_some() || is_half
}

fn type_name(info: &TensorInfo) -> &'static str {
    info.block.map_or(info.dtype.name(), |block| block.name)
}

/// The name without `.weight`, unless another tensor has that one.
fn module_of<'i>(headers: Headers<'_>, info: &'i TensorInfo) -> &'i str {
    let name = info.name.as_str();
    match name.strip_suffix(WEIGHT) {
        Some(module) if headers.tensor(module).is_none() => module,
        Some(_) | None => name,
    }
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    /// Tensor by module.
    tensors: BTreeMap<String, String>,
    modules: Vec<String>,
    orphans: Vec<String>,
    evidence: Vec<String>,
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
        let name = self.tensors.get(module).map_or(module, String::as_str);
        let info = required(self.headers, module, name)?;
        let (scheme, storage) = match info.block {
            Some(block) => {
                let format = format_of(module, block)?;
                (scheme_of_blocks(format), Storage::Blocks { format })
            }
            None => (
                dense(module, info)?,
                Storage::Elements { axes: Axes::OutIn },
            ),
        };
        let mut tensor = QuantizedTensor {
            module: module.to_owned(),
            weight: name.to_owned(),
            convention: ID,
            shape: info.logical_shape(),
            scheme,
            reference_dtype: Float::F32,
            parts: vec![part(Role::Codes, info, storage)],
        };
        if info.block.is_some_and(|block| block.name == "NVFP4") {
            self.add_factors(&mut tensor)?;
        }
        Ok(tensor)
    }
}

impl Found<'_> {
    /// The factors beside an NVFP4 weight: `<module>.scale` multiplies, `<module>.input_scale` is for activations.
    fn add_factors(&self, tensor: &mut QuantizedTensor) -> Result<(), Error> {
        let beside = |what: &str| self.headers.tensor(&format!("{}.{what}", tensor.module));
        let (scale, input) = (beside("scale"), beside("input_scale"));
        if let Some(scale) = scale {
            check_dtype(&tensor.module, scale, &[Dtype::F32])?;
            let found = scale.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
            if found != Some(tensor.n_matrices()) {
                let expected = format!("one value for each of {} matrices", tensor.n_matrices());
                return Err(wrong_shape(&tensor.module, scale, expected));
            }
            tensor.scheme.super_scale = SuperScale::Multiply;
            let elements = Storage::Elements { axes: Axes::OutIn };
            tensor.parts.push(part(Role::SuperScale, scale, elements));
        }
        if let Some(input) = input {
            tensor
                .parts
                .push(part(Role::Auxiliary, input, Storage::Vector));
        }
        Ok(())
    }
}

/// A half-precision weight: values, no codes.
fn dense(module: &str, info: &TensorInfo) -> Result<Scheme, Error> {
    let float = float_of(info.dtype)
        .ok_or_else(|| unsupported(module, info.dtype.name(), "it is no dense float"))?;
    Ok(Scheme::plain(
        Code::Dense(float),
        Granularity::Tensor,
        ScaleCoding::One,
    ))
}

fn format_of(module: &str, block: &BlockType) -> Result<BlockFormat, Error> {
    BlockFormat::from_name(block.name).ok_or_else(|| {
        let why = "ggml has this type at run time only, no file should hold it";
        unsupported(module, block.name, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_and_the_kernels_agree_on_block_types() {
        let mut n_formats = 0;
        for block in BlockType::all() {
            let Some(format) = BlockFormat::from_name(block.name) else {
                assert!(["Q8_1", "Q8_K"].contains(&block.name), "{}", block.name);
                assert!(format_of("m", block).is_err());
                continue;
            };
            assert_eq!(format.elements() as u64, block.elements, "{}", block.name);
            assert_eq!(format.bytes() as u64, block.bytes, "{}", block.name);
            n_formats += 1;
        }
        assert_eq!(n_formats, BlockFormat::ALL.len());
    }
}
