//! Writing the expert stacks of gpt-oss.

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};
use serde_json::{Value, json};

use super::{BLOCK, BLOCK_BYTES, ID, nibbles, scheme};
use crate::binding::planned;
use crate::{
    Axes, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity, Preset, QuantizedTensor,
    Role, ScaleCoding, ScaleRule, Storage, SuperScale, Written,
};

pub(super) struct Writer;

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        ID
    }

    /// Always refused: which rows of a dense stack are gate and which are up, and whether it is stored transposed, its shape
    /// does not say.
    fn lay_out(
        &self,
        module: &str,
        _shape: &[u64],
        preset: &Preset,
        _source: Float,
    ) -> Result<QuantizedTensor, Error> {
        Err(Error::CannotWrite {
            convention: ID,
            module: module.to_owned(),
            preset: preset.name.to_owned(),
            reason: "it holds the expert stacks of gpt-oss only, as they were quantized; \
                     compressed-tensors holds MXFP4 weights of any model"
                .to_owned(),
        })
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        let refuse = |reason: &str| Error::CannotWrite {
            convention: ID,
            module: source.module.clone(),
            preset: format!("{:?}", source.scheme.code),
            reason: reason.to_owned(),
        };
        let from = &source.scheme;
        if from.code != Code::Minifloat(Minifloat::E2M1)
            || from.granularity != (Granularity::Group { size: BLOCK })
            || !matches!(from.scale, ScaleCoding::E8M0(_))
            || from.super_scale != SuperScale::None
        {
            return Err(refuse(
                "it holds E2M1 codes in blocks of 32 with power-of-two scales only",
            ));
        }
        if from.basis != Basis::WEIGHT {
            return Err(refuse("it holds weights in no other basis"));
        }
        let [stack @ .., columns] = source.shape.as_slice() else {
            return Err(refuse("it holds stacks of experts only"));
        };
        if stack.len() < 2 || !columns.is_multiple_of(BLOCK) {
            return Err(refuse(
                "it holds stacks of experts with rows of whole blocks only; compressed-tensors holds single matrices",
            ));
        }
        let grid = [stack, &[columns / BLOCK]].concat();
        let blocks = [grid.as_slice(), &[BLOCK_BYTES]].concat();
        let weight = &source.weight;
        let elements = Storage::Elements { axes: Axes::OutIn };
        Ok(QuantizedTensor {
            convention: ID,
            scheme: scheme(),
            parts: vec![
                planned(
                    Role::Codes,
                    format!("{weight}_blocks"),
                    Dtype::U8,
                    blocks,
                    nibbles(),
                ),
                planned(
                    Role::Scale,
                    format!("{weight}_scales"),
                    Dtype::U8,
                    grid,
                    elements,
                ),
            ],
            ..source.clone()
        })
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut edit = ConfigEdit::default();
        let config = [
            ("modules_to_not_convert", json!(written.ignored)),
            ("quant_method", Value::from(ID)),
        ];
        for (key, value) in config {
            edit.quantization_config.insert(key.to_owned(), value);
        }
        Ok(edit)
    }

    fn presets(&self) -> &'static [&'static str] {
        &[]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::OcpMx
    }
}
