//! Writing compressed-tensors 0.19: parts and `quantization_config` as llm-compressor writes them.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};
use serde_json::{Map, Value, json};

use super::layout::{self, bits_of};
use super::{ID, sparse};
use crate::binding::matrix_only;
use crate::scheme::E8M0Rule;
use crate::{
    Activations, Code, ConfigEdit, ConventionWriter, Error, Granularity, IntegerEncoding, Preset,
    PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleRule, Scheme, SuperScale,
    WeightCode, Written, ZeroCoding, ZeroPoint,
};

/// The version whose layout is written: dense packing, `scale_dtype` and `zp_dtype` in the arguments.
const VERSION: &str = "0.19.0";
/// The last version that reads `weight_g_idx`.
const VERSION_INDEXED: &str = "0.18.0";

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
        let shape = matrix_only(ID, module, shape, preset.name)?;
        check_divides(module, shape[1], preset)?;
        let scheme = scheme_of(preset, source).map_err(|reason| Error::CannotWrite {
            convention: ID,
            module: module.to_owned(),
            preset: preset.name.to_owned(),
            reason,
        })?;
        let mut layout = layout::lay_out(module, shape, scheme);
        layout.reference_dtype = match layout.scheme.scale {
            ScaleCoding::Float(_) => source,
            _ => layout.reference_dtype,
        };
        Ok(layout)
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        layout::lay_out_like(source)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut groups = groups_of(written);
        if groups.is_empty()
            && let Some(preset) = written.asked.same()
        {
            groups.push((group_of_preset(preset)?, Vec::new()));
        }
        let sparsity = sparse::config_of(written.modules);
        if sparsity.is_some() {
            for (group, _) in &mut groups {
                group.forget_new_keys();
            }
        }
        Ok(ConfigEdit {
            quantization_config: document(written, groups, sparsity),
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
            "W8A16_ASYM",
            "W3A16_ASYM",
            "W2A16_ASYM",
            "W8A8",
            "FP8",
            "FP8_DYNAMIC",
            "FP8_BLOCK",
            "NVFP4A16",
            "MXFP4A16",
            "MXFP8A16",
            "MXFP8",
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

/// The scheme of a preset. The library's choice of format (`can_compress`): integers with quantized activations stay bytes,
/// others are packed.
fn scheme_of(preset: &Preset, source: Float) -> Result<Scheme, String> {
    let granularity = match preset.granularity {
        PresetGranularity::Tensor => Granularity::Tensor,
        PresetGranularity::Channel => Granularity::Channel,
        PresetGranularity::Group { size } => Granularity::Group { size },
        PresetGranularity::Block { rows, columns } => Granularity::Block { rows, columns },
    };
    let integer = |bits: u32| Code::Integer {
        bits,
        encoding: match preset.activations {
            Activations::Dense => IntegerEncoding::Unsigned,
            Activations::DynamicInt8PerToken
            | Activations::DynamicFp8PerToken
            | Activations::DynamicFp8PerGroup { .. }
            | Activations::DynamicFp4PerGroup { .. } => IntegerEncoding::TwosComplement,
        },
    };
    let plain = |code| Scheme::plain(code, granularity, ScaleCoding::Float(source));
    Ok(match preset.weights {
        WeightCode::SymmetricInteger { bits } => Scheme {
            zero_point: ZeroPoint::Fixed(1 << (bits - 1)),
            ..plain(integer(bits))
        },
        WeightCode::AsymmetricInteger { bits } => Scheme {
            zero_point: ZeroPoint::Stored(match (preset.activations, granularity) {
                (Activations::Dense, Granularity::Channel | Granularity::Group { .. }) => {
                    ZeroCoding::Direct
                }
                _ => ZeroCoding::Signed,
            }),
            ..plain(integer(bits))
        },
        WeightCode::Minifloat(Minifloat::E4M3) => plain(Code::Minifloat(Minifloat::E4M3)),
        WeightCode::Nvfp4 => Scheme {
            super_scale: SuperScale::Divide,
            scale: ScaleCoding::Minifloat(Minifloat::E4M3),
            ..plain(Code::Minifloat(Minifloat::E2M1))
        },
        WeightCode::Mx(format @ (Minifloat::E4M3 | Minifloat::E2M1)) => Scheme {
            scale: ScaleCoding::E8M0(E8M0Rule::TopIsInfinity),
            ..plain(Code::Minifloat(format))
        },
        WeightCode::Minifloat(other) | WeightCode::Mx(other) => {
            return Err(format!(
                "its float weights are E4M3 and E2M1, not {other:?}"
            ));
        }
        WeightCode::Codebook(_) | WeightCode::NestedCodebook(_) | WeightCode::Block(_) => {
            return Err(format!("there is no layout for {:?}", preset.weights));
        }
    })
}

/// What one entry of `config_groups` says, but for its targets.
#[derive(PartialEq)]
struct Group {
    format: &'static str,
    weights: Map<String, Value>,
    input_activations: Value,
}

impl Group {
    /// As versions write it that still had sparse formats: they refuse keys that they do not know.
    fn forget_new_keys(&mut self) {
        let all = [
            Some(&mut self.weights),
            self.input_activations.as_object_mut(),
        ];
        for args in all.into_iter().flatten() {
            args.remove("scale_dtype");
            args.remove("zp_dtype");
        }
    }
}

/// The groups of the modules, in the order in which they are met, and the modules of each.
fn groups_of<'w>(written: &Written<'w>) -> Vec<(Group, Vec<&'w str>)> {
    let mut groups: Vec<(Group, Vec<&str>)> = Vec::new();
    for (i, tensor) in written.modules.iter().enumerate() {
        let Some(group) = group_of(tensor, written.asked.of(i)) else {
            continue;
        };
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, modules)) => modules.push(&tensor.module),
            None => groups.push((group, vec![&tensor.module])),
        }
    }
    groups
}

fn group_of_preset(preset: &Preset) -> Result<Group, Error> {
    let refuse = |reason| Error::CannotWrite {
        convention: ID,
        module: "the configuration".to_owned(),
        preset: preset.name.to_owned(),
        reason,
    };
    let scheme = scheme_of(preset, Float::Bf16).map_err(refuse)?;
    let any = layout::lay_out("any", [1, 1], scheme);
    Ok(Group {
        format: format_of(&any),
        weights: weights(&any, Some(preset)),
        input_activations: activations_asked(preset),
    })
}

/// `None` for dense values, which no group describes.
fn group_of(tensor: &QuantizedTensor, preset: Option<&Preset>) -> Option<Group> {
    if matches!(tensor.scheme.code, Code::Dense(_)) {
        return None;
    }
    let asked = preset.filter(|p| scheme_of(p, Float::Bf16).is_ok_and(|s| is_alike(&s, tensor)));
    Some(Group {
        format: format_of(tensor),
        weights: weights(tensor, asked),
        input_activations: match asked {
            Some(preset) => activations_asked(preset),
            None => activations_of(tensor),
        },
    })
}

/// Whether a module has the codes and granularity of a preset.
fn is_alike(scheme: &Scheme, tensor: &QuantizedTensor) -> bool {
    scheme.code == tensor.scheme.code && scheme.granularity == tensor.scheme.granularity
}

fn format_of(tensor: &QuantizedTensor) -> &'static str {
    if tensor
        .parts
        .iter()
        .any(|p| p.name.ends_with(".scale_packed"))
    {
        return "marlin-24";
    }
    match (tensor.scheme.code, tensor.scheme.scale) {
        (
            Code::Integer {
                encoding: IntegerEncoding::Unsigned,
                ..
            },
            _,
        ) => "pack-quantized",
        (Code::Integer { .. }, _) => "int-quantized",
        (Code::Minifloat(Minifloat::E2M1), ScaleCoding::E8M0(_)) => "mxfp4-pack-quantized",
        (Code::Minifloat(Minifloat::E2M1), _) => "nvfp4-pack-quantized",
        (_, ScaleCoding::E8M0(_)) => "mxfp8-quantized",
        // The library's float compressor knows tensors, channels and blocks; it infers the naive one for others.
        _ => match tensor.scheme.granularity {
            Granularity::Tensor | Granularity::Channel | Granularity::Block { .. } => {
                "float-quantized"
            }
            Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. } => "naive-quantized",
        },
    }
}

fn document(
    written: &Written<'_>,
    groups: Vec<(Group, Vec<&str>)>,
    sparsity: Option<Value>,
) -> Map<String, Value> {
    let format = match groups.as_slice() {
        [] => "dense",
        [(group, _)] => group.format,
        [(first, _), rest @ ..] if rest.iter().all(|(g, _)| g.format == first.format) => {
            first.format
        }
        _ => "mixed-precision",
    };
    let is_indexed = |t: &QuantizedTensor| t.part(Role::GroupIndex).is_some();
    let version = if sparsity.is_some() || format == "marlin-24" {
        sparse::VERSION
    } else if written.modules.iter().any(is_indexed) {
        VERSION_INDEXED
    } else {
        VERSION
    };
    let is_single = groups.len() == 1;
    let mut described = Map::new();
    for (i, (group, modules)) in groups.into_iter().enumerate() {
        // Full names win over classes, so that no module falls into the wrong group.
        let targets = if is_single {
            json!(["Linear"])
        } else {
            json!(modules)
        };
        let mut entry = json!({
            "input_activations": group.input_activations,
            "output_activations": null,
            "targets": targets,
            "weights": group.weights,
        });
        if version != sparse::VERSION {
            entry["format"] = json!(group.format);
        }
        described.insert(format!("group_{i}"), entry);
    }
    let mut config = object(json!({
        "config_groups": described,
        "format": format,
        "global_compression_ratio": null,
        "ignore": written.ignored,
        "kv_cache_scheme": null,
        "quant_method": ID,
        "quantization_status": "compressed",
        "sparsity_config": sparsity.unwrap_or_else(|| json!({})),
        "version": version,
    }));
    if version != sparse::VERSION {
        config.insert("transform_config".to_owned(), json!({}));
    }
    config
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

fn weights(tensor: &QuantizedTensor, asked: Option<&Preset>) -> Map<String, Value> {
    let scheme = &tensor.scheme;
    let is_integer = matches!(scheme.code, Code::Integer { .. });
    let kind = if is_integer { "int" } else { "float" };
    let is_symmetric = !matches!(scheme.zero_point, ZeroPoint::Stored(_));
    let has_global = tensor.part(Role::SuperScale).is_some();
    let strategy = match scheme.granularity {
        Granularity::Tensor | Granularity::Strided { .. } => "tensor",
        Granularity::Channel => "channel",
        Granularity::Group { .. } if has_global => "tensor_group",
        Granularity::Group { .. } | Granularity::IndexedGroup { .. } | Granularity::Flat { .. } => {
            "group"
        }
        Granularity::Block { .. } => "block",
    };
    let bits = bits_of(scheme.code);
    let mut map = args(bits, kind, strategy, &json!(is_symmetric), &json!(false));
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    if asked.is_some() {
        // The observer that round-to-nearest without calibration is.
        set("observer", json!("memoryless_minmax"));
    }
    match scheme.granularity {
        Granularity::Group { size } | Granularity::Flat { size } => {
            set("group_size", json!(size));
        }
        Granularity::IndexedGroup { size } => {
            set("group_size", json!(size));
            set("actorder", json!("group"));
        }
        Granularity::Block { rows, columns } => {
            set("block_structure", json!([rows, columns]));
        }
        Granularity::Tensor | Granularity::Channel | Granularity::Strided { .. } => {}
    }
    if let Some(dtype) = scale_dtype(scheme.scale) {
        set("scale_dtype", json!(dtype));
    }
    if !is_symmetric {
        set("zp_dtype", json!("torch.int8"));
    }
    map
}

/// `scale_dtype`, which is only stated where scales are no dense floats.
fn scale_dtype(scale: ScaleCoding) -> Option<&'static str> {
    match scale {
        ScaleCoding::E8M0(_) => Some("torch.uint8"),
        ScaleCoding::Minifloat(_) => Some("torch.float8_e4m3fn"),
        ScaleCoding::Float(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => None,
    }
}

/// What a preset says of activations: of microscaling formats with the same scales as the weights.
fn activations_asked(preset: &Preset) -> Value {
    let mut value = activations(preset.activations);
    if let (WeightCode::Mx(_), Some(map)) = (preset.weights, value.as_object_mut()) {
        map.insert("scale_dtype".to_owned(), json!("torch.uint8"));
    }
    value
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

/// What a module says of activations by its parts; else what readers of its format take for granted.
fn activations_of(tensor: &QuantizedTensor) -> Value {
    let has = |ending: &str| {
        let name = format!("{}.{ending}", tensor.module);
        tensor.parts.iter().any(|p| p.name == name)
    };
    let scheme = &tensor.scheme;
    let is_bytes = tensor
        .part(Role::Codes)
        .is_some_and(|p| p.dtype == Dtype::I8);
    match (scheme.code, scheme.granularity) {
        (Code::Minifloat(Minifloat::E2M1), Granularity::Group { size })
            if has("input_global_scale") =>
        {
            let local = json!("local");
            let mut map = args(4, "float", "tensor_group", &json!(true), &local);
            map.insert("group_size".to_owned(), json!(size));
            map.insert("observer".to_owned(), json!("static_minmax"));
            map.insert("scale_dtype".to_owned(), json!("torch.float8_e4m3fn"));
            map.into()
        }
        (Code::Minifloat(Minifloat::E2M1), _) => Value::Null,
        (Code::Minifloat(_), _) if has("input_scale") => {
            args(8, "float", "tensor", &json!(true), &json!(false)).into()
        }
        (Code::Minifloat(_), Granularity::Tensor | Granularity::Channel) => {
            activations(Activations::DynamicFp8PerToken)
        }
        (Code::Minifloat(_), Granularity::Block { columns, .. }) => {
            activations(Activations::DynamicFp8PerGroup { size: columns })
        }
        (Code::Minifloat(_), Granularity::Group { size })
            if matches!(scheme.scale, ScaleCoding::E8M0(_)) =>
        {
            let mut map = args(8, "float", "group", &json!(true), &json!(true));
            map.insert("group_size".to_owned(), json!(size));
            map.insert("scale_dtype".to_owned(), json!("torch.uint8"));
            map.into()
        }
        (Code::Integer { .. }, _) if is_bytes && has("input_scale") => {
            let symmetric = json!(!has("input_zero_point"));
            args(8, "int", "tensor", &symmetric, &json!(false)).into()
        }
        (Code::Integer { .. }, _) if is_bytes => activations(Activations::DynamicInt8PerToken),
        _ => Value::Null,
    }
}
