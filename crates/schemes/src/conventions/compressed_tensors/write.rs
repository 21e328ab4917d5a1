//! Writing compressed-tensors 0.19: parts and `quantization_config` as llm-compressor writes them.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};
use serde_json::{Map, Value, json};

use super::ID;
use crate::binding::{matrix_only, planned};
use crate::scheme::{Packing, dtype_of};
use crate::{
    Activations, Axes, Axis, Code, ConfigEdit, ConventionWriter, Error, Granularity,
    IntegerEncoding, Part, Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding,
    ScaleRule, Scheme, Storage, WeightCode, Written, ZeroCoding, ZeroPoint,
};

/// The version whose layout is written: dense packing, `scale_dtype` and `zp_dtype` in the arguments.
const VERSION: &str = "0.19.0";

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
        let [rows, columns] = matrix_only(ID, module, shape, preset.name)?;
        check_divides(module, columns, preset)?;
        let granularity = granularity(preset.granularity);
        let grid = match granularity {
            Granularity::Tensor => vec![1],
            Granularity::Channel => vec![rows, 1],
            Granularity::Group { size } | Granularity::IndexedGroup { size } => {
                vec![rows, columns.div_ceil(size.max(1))]
            }
            Granularity::Block {
                rows: height,
                columns: width,
            } => {
                vec![rows.div_ceil(height.max(1)), columns.div_ceil(width.max(1))]
            }
            Granularity::Flat { .. } | Granularity::Strided { .. } => Vec::new(),
        };
        let (code, mut parts) = codes(module, [rows, columns], preset)?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        let name = format!("{module}.weight_scale");
        parts.push(planned(
            Role::Scale,
            name,
            dtype_of(source),
            grid.clone(),
            elements,
        ));
        let zero_point = zero_point(module, preset, &grid, &mut parts);
        if parts[0].dtype == Dtype::I32 {
            let name = format!("{module}.weight_shape");
            parts.push(planned(
                Role::Shape,
                name,
                Dtype::I64,
                vec![2],
                Storage::Vector,
            ));
        }
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme {
                zero_point,
                ..Scheme::plain(code, granularity, ScaleCoding::Float(source))
            },
            reference_dtype: source,
            parts,
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
        let format = format_of(preset);
        let group = json!({
            "format": format,
            "input_activations": activations(preset.activations),
            "output_activations": null,
            "targets": ["Linear"],
            "weights": weights(preset),
        });
        let config = json!({
            "config_groups": { "group_0": group },
            "format": format,
            "global_compression_ratio": null,
            "ignore": ignored,
            "kv_cache_scheme": null,
            "quant_method": ID,
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        });
        Ok(ConfigEdit {
            quantization_config: object(config),
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "W4A16",
            "W4A16_ASYM",
            "W8A16",
            "W3A16",
            "W2A16",
            "W8A8",
            "FP8",
            "FP8_DYNAMIC",
            "FP8_BLOCK",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::CompressedTensors
    }
}

/// compressed-tensors refuses to quantize and to decompress groups that do not divide a row (0.19, `dequantize`: "tensor
/// column shape must be divisible by the given group size").
fn check_divides(module: &str, columns: u64, preset: &Preset) -> Result<(), Error> {
    let PresetGranularity::Group { size } = preset.granularity else {
        return Ok(());
    };
    if columns.checked_rem(size).is_none_or(|rest| rest == 0) {
        return Ok(());
    }
    Err(Error::CannotWrite {
        convention: ID,
        module: module.to_owned(),
        preset: preset.name.to_owned(),
        reason: format!(
            "its readers need groups that divide a row, and {size} does not divide {columns}"
        ),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn granularity(preset: PresetGranularity) -> Granularity {
    match preset {
        PresetGranularity::Tensor => Granularity::Tensor,
        PresetGranularity::Channel => Granularity::Channel,
        PresetGranularity::Group { size } => Granularity::Group { size },
        PresetGranularity::Block { rows, columns } => Granularity::Block { rows, columns },
    }
}

/// The library's choice (`can_compress`): integers with quantized activations stay bytes, others are packed.
fn format_of(preset: &Preset) -> &'static str {
    match (preset.weights, preset.activations) {
        (WeightCode::Minifloat(_), _) => "float-quantized",
        (_, Activations::Dense) => "pack-quantized",
        (
            _,
            Activations::DynamicInt8PerToken
            | Activations::DynamicFp8PerToken
            | Activations::DynamicFp8PerGroup { .. }
            | Activations::DynamicFp4PerGroup { .. },
        ) => "int-quantized",
    }
}

fn codes(
    module: &str,
    [rows, columns]: [u64; 2],
    preset: &Preset,
) -> Result<(Code, Vec<Part>), Error> {
    let elements = Storage::Elements { axes: Axes::OutIn };
    let weight = format!("{module}.weight");
    let bits = match preset.weights {
        WeightCode::Minifloat(Minifloat::E4M3) => {
            let part = planned(
                Role::Codes,
                weight,
                Dtype::F8E4M3,
                vec![rows, columns],
                elements,
            );
            return Ok((Code::Minifloat(Minifloat::E4M3), vec![part]));
        }
        WeightCode::Minifloat(other) => {
            return Err(Error::CannotWrite {
                convention: ID,
                module: module.to_owned(),
                preset: preset.name.to_owned(),
                reason: format!("its FP8 weights are E4M3, not {other:?}"),
            });
        }
        WeightCode::Nvfp4 | WeightCode::Mx(_) | WeightCode::Codebook(_) | WeightCode::Block(_) => {
            return Err(Error::CannotWrite {
                convention: ID,
                module: module.to_owned(),
                preset: preset.name.to_owned(),
                reason: format!("there is no layout for {:?}", preset.weights),
            });
        }
        WeightCode::SymmetricInteger { bits } | WeightCode::AsymmetricInteger { bits } => bits,
    };
    if format_of(preset) == "int-quantized" {
        let part = planned(
            Role::Codes,
            weight,
            Dtype::I8,
            vec![rows, columns],
            elements,
        );
        let encoding = IntegerEncoding::TwosComplement;
        return Ok((Code::Integer { bits, encoding }, vec![part]));
    }
    let packing = Packing::LsbFirst { bits };
    let words = columns.saturating_mul(u64::from(bits)).div_ceil(32);
    let storage = Storage::Packed {
        axes: Axes::OutIn,
        packing,
        along: Axis::In,
    };
    let name = format!("{module}.weight_packed");
    let part = planned(Role::Codes, name, Dtype::I32, vec![rows, words], storage);
    Ok((
        Code::Integer {
            bits,
            encoding: IntegerEncoding::Unsigned,
        },
        vec![part],
    ))
}

/// Zero points: packed along the rows beside packed codes with groups or channels, else signed bytes.
fn zero_point(module: &str, preset: &Preset, grid: &[u64], parts: &mut Vec<Part>) -> ZeroPoint {
    let bits = match preset.weights {
        WeightCode::Minifloat(_)
        | WeightCode::Nvfp4
        | WeightCode::Mx(_)
        | WeightCode::Codebook(_)
        | WeightCode::Block(_) => return ZeroPoint::Fixed(0),
        WeightCode::SymmetricInteger { bits } => return ZeroPoint::Fixed(1 << (bits - 1)),
        WeightCode::AsymmetricInteger { bits } => bits,
    };
    let name = format!("{module}.weight_zero_point");
    let (&[rows, columns], "pack-quantized") = (grid, format_of(preset)) else {
        let elements = Storage::Elements { axes: Axes::OutIn };
        parts.push(planned(
            Role::ZeroPoint,
            name,
            Dtype::I8,
            grid.to_vec(),
            elements,
        ));
        return ZeroPoint::Stored(ZeroCoding::Signed);
    };
    let storage = Storage::Packed {
        axes: Axes::OutIn,
        packing: Packing::LsbFirst { bits },
        along: Axis::Out,
    };
    let shape = vec![rows.saturating_mul(u64::from(bits)).div_ceil(32), columns];
    parts.push(planned(Role::ZeroPoint, name, Dtype::I32, shape, storage));
    ZeroPoint::Stored(ZeroCoding::Direct)
}

/// `QuantizationArgs` with every key, as `model_dump` writes them.
fn args(
    bits: u32,
    kind: &str,
    strategy: &str,
    symmetric: &Value,
    dynamic: &Value,
) -> Map<String, Value> {
    object(json!({
        "actorder": null,
        "block_structure": null,
        "dynamic": dynamic,
        "group_size": null,
        "num_bits": bits,
        "observer": null,
        "observer_kwargs": {},
        "scale_dtype": null,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
        "zp_dtype": null,
    }))
}

fn weights(preset: &Preset) -> Map<String, Value> {
    let (kind, symmetric) = match preset.weights {
        WeightCode::SymmetricInteger { .. } => ("int", true),
        WeightCode::AsymmetricInteger { .. } => ("int", false),
        WeightCode::Minifloat(_)
        | WeightCode::Nvfp4
        | WeightCode::Mx(_)
        | WeightCode::Codebook(_)
        | WeightCode::Block(_) => ("float", true),
    };
    let strategy = match preset.granularity {
        PresetGranularity::Tensor => "tensor",
        PresetGranularity::Channel => "channel",
        PresetGranularity::Group { .. } => "group",
        PresetGranularity::Block { .. } => "block",
    };
    let mut map = args(
        preset.bits(),
        kind,
        strategy,
        &json!(symmetric),
        &json!(false),
    );
    // The observer that round-to-nearest without calibration is.
    map.insert("observer".to_owned(), json!("memoryless_minmax"));
    match preset.granularity {
        PresetGranularity::Group { size } => {
            map.insert("group_size".to_owned(), json!(size));
        }
        PresetGranularity::Block { rows, columns } => {
            map.insert("block_structure".to_owned(), json!([rows, columns]));
        }
        PresetGranularity::Tensor | PresetGranularity::Channel => {}
    }
    if !symmetric {
        map.insert("zp_dtype".to_owned(), json!("torch.int8"));
    }
    map
}

fn activations(activations: Activations) -> Value {
    match activations {
        Activations::Dense => Value::Null,
        Activations::DynamicInt8PerToken => {
            args(8, "int", "token", &json!(true), &json!(true)).into()
        }
        Activations::DynamicFp8PerToken => {
            args(8, "float", "token", &json!(true), &json!(true)).into()
        }
        Activations::DynamicFp8PerGroup { size } => {
            let mut map = args(8, "float", "group", &json!(true), &json!(true));
            map.insert("group_size".to_owned(), json!(size));
            map.into()
        }
        Activations::DynamicFp4PerGroup { size } => {
            let mut map = args(4, "float", "group", &json!(true), &json!(true));
            map.insert("group_size".to_owned(), json!(size));
            map.into()
        }
    }
}
