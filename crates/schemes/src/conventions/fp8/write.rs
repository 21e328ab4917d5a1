//! Writing FP8 as vLLM and transformers read it: blocks as DeepSeek has them, or one scale per tensor.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};
use serde_json::{Map, Value, json};

use super::ID;
use crate::binding::{matrix_only, planned};
use crate::{
    Axes, Code, ConfigEdit, ConventionWriter, Error, Granularity, Preset, PresetGranularity,
    QuantizedTensor, Role, ScaleCoding, ScaleRule, Scheme, Storage, WeightCode, Written,
};

pub(super) struct Writer;

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        ID
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error> {
        let refuse = |reason: &str| {
            Err(Error::CannotWrite {
                convention: ID,
                module: module.to_owned(),
                preset: preset.name.to_owned(),
                reason: reason.to_owned(),
            })
        };
        let WeightCode::Minifloat(Minifloat::E4M3) = preset.weights else {
            return refuse(
                "it holds E4M3 weights only; compressed-tensors or gptq can hold integers",
            );
        };
        let [rows, columns] = matrix_only(ID, module, shape, preset.name)?;
        let (granularity, name, grid) = match preset.granularity {
            PresetGranularity::Block {
                rows: height,
                columns: width,
            } => {
                let grid = vec![rows.div_ceil(height.max(1)), columns.div_ceil(width.max(1))];
                let granularity = Granularity::Block {
                    rows: height,
                    columns: width,
                };
                (granularity, "weight_scale_inv", grid)
            }
            PresetGranularity::Tensor => (Granularity::Tensor, "weight_scale", Vec::new()),
            PresetGranularity::Channel | PresetGranularity::Group { .. } => {
                return refuse(
                    "readers of quant_method fp8 know scales per block or per tensor; compressed-tensors can hold it",
                );
            }
        };
        let elements = Storage::Elements { axes: Axes::OutIn };
        let weight = format!("{module}.weight");
        let scale = format!("{module}.{name}");
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: weight.clone(),
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme::plain(
                Code::Minifloat(Minifloat::E4M3),
                granularity,
                ScaleCoding::Float(Float::F32),
            ),
            reference_dtype: source,
            parts: vec![
                planned(
                    Role::Codes,
                    weight,
                    Dtype::F8E4M3,
                    vec![rows, columns],
                    elements,
                ),
                planned(Role::Scale, scale, Dtype::F32, grid, elements),
            ],
        })
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let ignored = written.ignored;
        let Some(preset) = written.preset else {
            return Err(Error::CannotWrite {
                convention: self.id(),
                module: "the configuration".to_owned(),
                preset: "codes of another convention".to_owned(),
                reason: "it can only be written when quantizing".to_owned(),
            });
        };
        let config = match preset.granularity {
            PresetGranularity::Block { rows, columns } => json!({
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [rows, columns],
                "modules_to_not_convert": ignored,
            }),
            PresetGranularity::Tensor
            | PresetGranularity::Channel
            | PresetGranularity::Group { .. } => {
                json!({
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "ignored_layers": ignored,
                })
            }
        };
        let quantization_config = match config {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        Ok(ConfigEdit {
            quantization_config,
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &["FP8", "FP8_BLOCK"]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::FineGrainedFp8
    }
}
