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
    Axes, Basis, Code, ConfigEdit, ConventionWriter, E8M0Rule, Error, Granularity, Preset,
    PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleRule, Scheme, Storage, WeightCode,
    Written,
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

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        like(source).map_err(|reason| Error::CannotWrite {
            convention: ID,
            module: source.module.clone(),
            preset: format!("{:?}", source.scheme.code),
            reason,
        })
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let ignored = written.ignored;
        let config = match described(written.modules)? {
            Described::Blocks(rows, columns, scales) => {
                let mut config = json!({
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "fmt": "e4m3",
                    "weight_block_size": [rows, columns],
                    "modules_to_not_convert": ignored,
                });
                if scales == Dtype::F8E8M0 {
                    config["scale_fmt"] = json!("ue8m0");
                }
                config
            }
            Described::Tensor(scheme) => json!({
                "quant_method": "fp8",
                "activation_scheme": scheme,
                "ignored_layers": ignored,
            }),
            Described::Channel => json!({
                "quant_method": "fbgemm_fp8",
                "activation_scale_ub": 1200.0,
                "modules_to_not_convert": ignored,
            }),
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

/// The layout for codes that are there, or why there is none.
fn like(source: &QuantizedTensor) -> Result<QuantizedTensor, String> {
    let from = &source.scheme;
    if from.code != Code::Minifloat(Minifloat::E4M3) {
        return Err(
            "it holds E4M3 codes only; compressed-tensors or gptq hold integers".to_owned(),
        );
    }
    if from.basis != Basis::WEIGHT {
        return Err("it holds weights in no other basis".to_owned());
    }
    let at = source.shape.len().checked_sub(2);
    let Some((stack, &[rows, columns])) = at.map(|i| source.shape.split_at(i)) else {
        return Err("it holds matrices and stacks of them".to_owned());
    };
    let (ending, own) = match from.granularity {
        Granularity::Block {
            rows: height,
            columns: width,
        } => {
            let grid = vec![rows.div_ceil(height.max(1)), columns.div_ceil(width.max(1))];
            ("weight_scale_inv", grid)
        }
        Granularity::Tensor => ("weight_scale", Vec::new()),
        Granularity::Channel => ("weight_scale", vec![rows, 1]),
        Granularity::Group { .. }
        | Granularity::IndexedGroup { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => {
            return Err("its readers know scales per block, channel or tensor; compressed-tensors and modelopt hold MXFP8"
                .to_owned());
        }
    };
    // Powers of two stay: as a dtype of their own, which readers of `scale_fmt` ue8m0 expect.
    let (coding, dtype) = match (from.scale, from.granularity) {
        (ScaleCoding::E8M0(_), Granularity::Block { .. }) => {
            (ScaleCoding::E8M0(E8M0Rule::Ocp), Dtype::F8E8M0)
        }
        _ => (ScaleCoding::Float(Float::F32), Dtype::F32),
    };
    let weight = &source.weight;
    let name = match weight.strip_suffix(".weight") {
        Some(module) => format!("{module}.{ending}"),
        None => format!("{weight}{}", ending.trim_start_matches("weight")),
    };
    let elements = Storage::Elements { axes: Axes::OutIn };
    let grid = [stack, own.as_slice()].concat();
    let mut scale = planned(Role::Scale, name, dtype, grid, elements);
    // A spelling that readers know stays: [1] or [] for a tensor, [N] or [N, 1] for channels.
    let n = |shape: &[u64]| shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
    if let Some(same) = source.part(Role::Scale)
        && same.name == scale.name
        && same.storage == scale.storage
        && n(&same.shape) == n(&scale.shape)
        && !matches!(from.granularity, Granularity::Block { .. })
    {
        scale.shape.clone_from(&same.shape);
    }
    let mut codes = planned(
        Role::Codes,
        weight.clone(),
        Dtype::F8E4M3,
        source.shape.clone(),
        elements,
    );
    if let Some(same) = source.part(Role::Codes)
        && same.name == codes.name
        && same.dtype == codes.dtype
        && matches!(same.storage, Storage::Elements { .. })
    {
        codes = same.clone();
    }
    let mut parts = vec![codes, scale];
    // Static scales of the activations mean the same in every convention that has this name.
    let input = weight
        .strip_suffix(".weight")
        .map(|m| format!("{m}.input_scale"));
    let beside = source.parts.iter().find(|p| {
        p.role == Role::Auxiliary && Some(&p.name) == input.as_ref() && p.dtype == Dtype::F32
    });
    parts.extend(beside.cloned());
    Ok(QuantizedTensor {
        convention: ID,
        scheme: Scheme::plain(from.code, from.granularity, coding),
        parts,
        ..source.clone()
    })
}

/// What one configuration says of all modules.
#[derive(Clone, Debug, PartialEq)]
enum Described {
    /// Sides of the blocks, and the dtype of their scales.
    Blocks(u64, u64, Dtype),
    /// How activations are quantized.
    Tensor(&'static str),
    Channel,
}

/// What the modules have in common; `quant_method` fp8 describes only one form at a time.
fn described(modules: &[QuantizedTensor]) -> Result<Described, Error> {
    let mut common: Option<Described> = None;
    let refuse = |module: &QuantizedTensor, reason: &str| Error::CannotWrite {
        convention: ID,
        module: module.module.clone(),
        preset: format!("{:?}", module.scheme.granularity),
        reason: reason.to_owned(),
    };
    for module in modules {
        let scales = module.part(Role::Scale).map_or(Dtype::F32, |p| p.dtype);
        let has_input = module
            .parts
            .iter()
            .any(|p| p.name.ends_with(".input_scale"));
        let own = match module.scheme.granularity {
            Granularity::Block { rows, columns } => Described::Blocks(rows, columns, scales),
            Granularity::Tensor => Described::Tensor(if has_input { "static" } else { "dynamic" }),
            Granularity::Channel => Described::Channel,
            Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. } => return Err(refuse(module, "no reader knows it")),
        };
        match &common {
            None => common = Some(own),
            Some(first) if *first == own => {}
            Some(first) => {
                let reason = format!(
                    "one configuration describes one form, and other modules have {first:?}; compressed-tensors and \
                     modelopt describe mixed ones"
                );
                return Err(refuse(module, &reason));
            }
        }
    }
    Ok(common.unwrap_or(Described::Tensor("dynamic")))
}
