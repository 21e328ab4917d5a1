//! gpt-oss: stacks of experts in MXFP4, `<m>_blocks` beside `<m>_scales` (specs/conventions/mxfp4.md).

mod config;
mod write;

use std::collections::BTreeSet;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Minifloat};

use self::config::Config;
use crate::binding::{check_dtype, part, required, wrong_shape};
use crate::scheme::Packing;
use crate::{
    Axes, Axis, Code, Convention, ConventionWriter, E8M0Rule, Error, Granularity, Headers,
    QuantizedTensor, Recognized, Role, ScaleCoding, Scheme, Storage,
};

/// See the module.
pub struct Mxfp4;

/// The id.
const ID: &str = "mxfp4";
/// Elements that share a scale, 16 bytes of them.
const BLOCK: u64 = 32;
const BLOCK_BYTES: u64 = 16;

impl Convention for Mxfp4 {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "gpt-oss: stacks of experts in MXFP4, blocks and scales in tensors of their own"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let config = Config::find(headers)?;
        let mut modules = BTreeSet::new();
        for info in headers.tensors().filter(|i| i.dtype == Dtype::U8) {
            if let Some(module) = module_of(headers, info, config.is_some()) {
                modules.insert(module.to_owned());
            }
        }
        if config.is_none() && modules.is_empty() {
            return Ok(None);
        }
        let mut evidence = vec![format!("{} stacks of MXFP4 blocks", modules.len())];
        if let Some(config) = &config {
            config.check_work(modules.len())?;
            evidence.insert(0, format!("{} is of mxfp4", config.place));
        }
        Ok(Some(Box::new(Found {
            headers,
            config,
            reference: headers.model_dtype()?.unwrap_or(Float::Bf16),
            modules: modules.into_iter().collect(),
            evidence,
        })))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// The weight of which a tensor holds blocks or scales; without settings both must be there and look like it.
fn module_of<'i>(headers: Headers<'_>, info: &'i TensorInfo, is_declared: bool) -> Option<&'i str> {
    if is_declared && let Some(module) = info.name.strip_suffix("_scales") {
        return Some(module);
    }
    let module = info.name.strip_suffix("_blocks")?;
    let scales = headers.tensor(&format!("{module}_scales"));
    let looks = scales.is_some_and(|s| s.dtype == Dtype::U8)
        && info.shape.len() >= 3
        && info.shape.last() == Some(&BLOCK_BYTES);
    (is_declared || looks).then_some(module)
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    config: Option<Config>,
    reference: Float,
    modules: Vec<String>,
    evidence: Vec<String>,
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.modules
    }

    fn orphans(&self) -> &[String] {
        &[]
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let codes = required(self.headers, module, &format!("{module}_blocks"))?;
        let scales = required(self.headers, module, &format!("{module}_scales"))?;
        check_dtype(module, codes, &[Dtype::U8])?;
        check_dtype(module, scales, &[Dtype::U8, Dtype::F8E8M0])?;
        if let Some(config) = &self.config
            && let Some(pattern) = config.excludes(module)?
        {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("modules_to_not_convert has `{pattern}`"),
                tensors: "it has blocks and scales".to_owned(),
            });
        }
        let shape = logical(&codes.shape);
        let shape = shape
            .ok_or_else(|| wrong_shape(module, codes, "[experts, rows, blocks, 16]".to_owned()))?;
        if Some(scales.shape.as_slice()) != codes.shape.split_last().map(|(_, s)| s) {
            let expected = format!("{:?} without the last dimension", codes.shape);
            return Err(wrong_shape(module, scales, expected));
        }
        let elements = Storage::Elements { axes: Axes::OutIn };
        Ok(QuantizedTensor {
            module: module.strip_suffix(".weight").unwrap_or(module).to_owned(),
            weight: module.to_owned(),
            convention: ID,
            shape,
            scheme: scheme(),
            reference_dtype: self.reference,
            parts: vec![
                part(Role::Codes, codes, nibbles()),
                part(Role::Scale, scales, elements),
            ],
        })
    }
}

/// E2M1 times a power of two for each block of 32. Byte 255 is infinite, as in transformers, which multiplies by `2 ** (s - 127)`.
fn scheme() -> Scheme {
    Scheme::plain(
        Code::Minifloat(Minifloat::E2M1),
        Granularity::Group { size: BLOCK },
        ScaleCoding::E8M0(E8M0Rule::TopIsInfinity),
    )
}

/// Rows of 16 bytes to a block, the even element in the low nibble.
fn nibbles() -> Storage {
    Storage::Packed {
        axes: Axes::OutIn,
        packing: Packing::LsbFirst { bits: 4 },
        along: Axis::In,
    }
}

/// `[.., rows, blocks, 16]` as `[.., rows, 32 * blocks]`.
fn logical(stored: &[u64]) -> Option<Vec<u64>> {
    let [stack @ .., blocks, BLOCK_BYTES] = stored else {
        return None;
    };
    if stack.len() < 2 {
        return None;
    }
    let mut shape = stack.to_vec();
    shape.push(blocks.checked_mul(BLOCK)?);
    Some(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_blocks_one_after_the_other() {
        assert_eq!(logical(&[4, 192, 2, 16]), Some(vec![4, 192, 64]));
        assert_eq!(logical(&[4, 192, 2, 15]), None);
        assert_eq!(logical(&[192, 2]), None);
        assert_eq!(logical(&[2, 16]), None);
        assert_eq!(logical(&[4, 2, u64::MAX, 16]), None);
    }
}
