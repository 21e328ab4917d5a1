//! Writing the unified checkpoint of `ModelOpt` 0.47: parts, `hf_quant_config.json` and `quantization_config`
//! (specs/conventions/modelopt.md, clauses MO16 to MO20).

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};
use serde_json::{Map, Value, json};

use super::ID;
use super::shapes::{NIBBLES, block};
use crate::binding::{cannot_write, planned};
use crate::{
    Activations, Arithmetic, Axes, Axis, Code, ColumnFactor, ConfigEdit, ConventionWriter,
    E8M0Rule, Error, Granularity, IntegerEncoding, Part, Preset, PresetGranularity,
    QuantizedTensor, Role, Rotation, ScaleCoding, ScaleDirection, ScaleRule, Scheme, Storage,
    SuperScale, WeightCode, Written, ZeroPoint,
};

/// The version whose documents are written.
const VERSION: &str = "0.47.0";

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
        let refuse = |reason: &str| refusal(module, preset.name, reason);
        let form = match (preset.weights, preset.granularity) {
            (WeightCode::Minifloat(Minifloat::E4M3), PresetGranularity::Channel) => {
                Form::Fp8(Granularity::Channel)
            }
            (
                WeightCode::Minifloat(Minifloat::E4M3),
                PresetGranularity::Block { rows, columns },
            ) => Form::Fp8(Granularity::Block { rows, columns }),
            (WeightCode::Minifloat(Minifloat::E4M3), PresetGranularity::Tensor) => {
                return Err(refuse(
                    "its FP8 per tensor needs scales of the activations, which need calibration data; \
                     FP8_DYNAMIC and FP8_BLOCK do not",
                ));
            }
            (WeightCode::Nvfp4, _) if preset.activations == Activations::Dense => Form::NvFp4,
            (WeightCode::Nvfp4, _) => {
                return Err(refuse(
                    "readers of its NVFP4 load scales of the activations, which need calibration data; \
                     NVFP4A16 does not",
                ));
            }
            (WeightCode::Mx(Minifloat::E4M3), _) if preset.activations != Activations::Dense => {
                Form::MxFp8
            }
            (WeightCode::Mx(Minifloat::E4M3), _) => {
                return Err(refuse(
                    "readers of its MXFP8 quantize the activations at run time: that is MXFP8",
                ));
            }
            (WeightCode::SymmetricInteger { bits: 8 }, granularity)
                if granularity == PresetGranularity::Channel || preset.is_as_named() =>
            {
                Form::Int8(Granularity::Channel)
            }
            (WeightCode::SymmetricInteger { bits: 8 }, _) => {
                return Err(refuse(
                    "its 8-bit integers have one scale per row (group size -1)",
                ));
            }
            (WeightCode::SymmetricInteger { bits: 4 }, PresetGranularity::Group { size }) => {
                Form::Int4(size)
            }
            _ => {
                return Err(refuse(
                    "it is not laid out by this writer; compressed-tensors can hold it",
                ));
            }
        };
        let plain = QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme::plain(
                Code::Minifloat(Minifloat::E4M3),
                Granularity::Tensor,
                ScaleCoding::One,
            ),
            reference_dtype: source,
            parts: Vec::new(),
        };
        form.lay(&plain).map_err(|reason| refuse(&reason))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        let name = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| refusal(&source.module, &name, &reason);
        let form = Form::of(&source.scheme).map_err(refuse)?;
        let mut tensor = form.lay(source).map_err(refuse)?;
        let prefix = prefix(source);
        // What stands beside the weight and means the same here: static activation scales, and the input factors.
        for part in &source.parts {
            let named = |ending: &str| part.name == format!("{prefix}{ending}");
            let is_factor = part.role == Role::ColumnFactor && named("pre_quant_scale");
            let is_scale = part.role == Role::Auxiliary && part.dtype == Dtype::F32;
            let second = matches!(form, Form::Int4(_)) && named("weight_scale_2");
            let is_kept = is_factor || (is_scale && (second || named("input_scale")));
            if is_kept {
                tensor.parts.push(part.clone());
            }
        }
        let factors = tensor.part(Role::ColumnFactor).is_some();
        if factors != (source.scheme.basis.columns == ColumnFactor::Inputs) {
            return Err(refuse("its input factors have another name".to_owned()));
        }
        tensor.scheme.basis = source.scheme.basis;
        Ok(tensor)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut layers = BTreeMap::new();
        for module in written.modules {
            layers.insert(module.module.clone(), layer(module)?);
        }
        let mut kinds: Vec<&Map<String, Value>> = Vec::new();
        for layer in layers.values() {
            if !kinds.contains(&layer) {
                kinds.push(layer);
            }
        }
        let mut details = Map::new();
        details.insert("kv_cache_quant_algo".to_owned(), Value::Null);
        match kinds.as_slice() {
            [] => {
                return Err(refusal(
                    "the configuration",
                    "nothing",
                    "no module is quantized",
                ));
            }
            [one] => {
                details.extend((*one).clone());
                details.insert("exclude_modules".to_owned(), json!(written.ignored));
            }
            _ => {
                details.insert("quant_algo".to_owned(), json!("MIXED_PRECISION"));
                details.insert("quantized_layers".to_owned(), json!(layers));
            }
        }
        let producer = json!({"name": "modelopt", "version": VERSION});
        let document = json!({"producer": producer, "quantization": details});
        let bytes = serde_json::to_vec_pretty(&document).unwrap_or_default();
        Ok(ConfigEdit {
            quantization_config: flat(&details, &producer),
            documents: vec![("hf_quant_config.json".to_owned(), bytes)],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "FP8_DYNAMIC",
            "FP8_BLOCK",
            "NVFP4A16",
            "MXFP8",
            "W4A16",
            "W8A16",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::ModelOpt
    }
}

fn refusal(module: &str, wanted: &str, reason: &str) -> Error {
    cannot_write(ID, module, wanted, reason)
}

/// `<m>.`, or `<m>_` where experts are fused.
fn prefix(tensor: &QuantizedTensor) -> String {
    match tensor.weight.strip_suffix(".weight") {
        Some(module) => format!("{module}."),
        None => format!("{}_", tensor.weight),
    }
}

/// The forms that there are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Per tensor, channel or block.
    Fp8(Granularity),
    MxFp8,
    NvFp4,
    MxFp4,
    /// In groups of so many.
    Int4(u64),
    /// Per tensor or channel.
    Int8(Granularity),
}

impl Form {
    /// The form that holds a scheme's codes, or why there is none.
    fn of(scheme: &Scheme) -> Result<Self, String> {
        let basis = scheme.basis;
        let is_beside = matches!(basis.columns, ColumnFactor::None | ColumnFactor::Inputs);
        if basis.rotation != Rotation::None || basis.rank != 0 || !is_beside {
            return Err("it holds weights in no other basis".to_owned());
        }
        let is_float = matches!(scheme.scale, ScaleCoding::Float(_));
        let is_power = matches!(scheme.scale, ScaleCoding::E8M0(_));
        let is_single = scheme.super_scale == SuperScale::None;
        match (scheme.code, scheme.granularity) {
            (
                Code::Minifloat(Minifloat::E4M3),
                granularity @ (Granularity::Tensor | Granularity::Channel | Granularity::Block { .. }),
            ) if is_float && is_single => Ok(Self::Fp8(granularity)),
            (Code::Minifloat(Minifloat::E4M3), Granularity::Group { size: 32 }) if is_power => {
                Ok(Self::MxFp8)
            }
            (Code::Minifloat(Minifloat::E2M1), Granularity::Group { size: 32 })
                if is_power && is_single =>
            {
                Ok(Self::MxFp4)
            }
            (Code::Minifloat(Minifloat::E2M1), Granularity::Group { size: 16 })
                if scheme.scale == ScaleCoding::Minifloat(Minifloat::E4M3) =>
            {
                Ok(Self::NvFp4)
            }
            (Code::Integer { bits: 4, .. }, Granularity::Group { size })
                if is_float && is_single && scheme.zero_point == ZeroPoint::Fixed(8) =>
            {
                Ok(Self::Int4(size))
            }
            (
                Code::Integer { bits: 8, .. },
                granularity @ (Granularity::Tensor | Granularity::Channel),
            ) if is_float && is_single && scheme.zero_point == ZeroPoint::Fixed(128) => {
                Ok(Self::Int8(granularity))
            }
            _ => Err("it holds E4M3 per tensor, channel or block, MXFP8, MXFP4, NVFP4, and symmetric \
                      integers of 4 bits in groups and of 8 bits per channel; compressed-tensors holds more"
                .to_owned()),
        }
    }

    /// The scheme that readers of this form compute.
    fn scheme(self, reference: Float) -> Scheme {
        let plain = Scheme::plain;
        let power = ScaleCoding::E8M0(E8M0Rule::TopIsInfinity);
        let float = ScaleCoding::Float(Float::F32);
        let encoding = IntegerEncoding::TwosComplement;
        let group = |size| Granularity::Group { size };
        match self {
            Self::Fp8(granularity) => Scheme {
                arithmetic: Arithmetic::EachStep(reference),
                ..plain(Code::Minifloat(Minifloat::E4M3), granularity, float)
            },
            Self::MxFp8 => plain(Code::Minifloat(Minifloat::E4M3), group(32), power),
            Self::MxFp4 => plain(Code::Minifloat(Minifloat::E2M1), group(32), power),
            Self::NvFp4 => Scheme {
                super_scale: SuperScale::Multiply,
                ..plain(
                    Code::Minifloat(Minifloat::E2M1),
                    group(16),
                    ScaleCoding::Minifloat(Minifloat::E4M3),
                )
            },
            Self::Int4(size) => Scheme {
                zero_point: ZeroPoint::Fixed(8),
                direction: ScaleDirection::Multiply,
                ..plain(Code::Integer { bits: 4, encoding }, group(size), float)
            },
            Self::Int8(granularity) => Scheme {
                zero_point: ZeroPoint::Fixed(128),
                ..plain(Code::Integer { bits: 8, encoding }, granularity, float)
            },
        }
    }

    /// The parts of a tensor in this form, or why it has none.
    fn lay(self, source: &QuantizedTensor) -> Result<QuantizedTensor, String> {
        let at = source.shape.len().checked_sub(2);
        let Some((stack, &[rows, columns])) = at.map(|i| source.shape.split_at(i)) else {
            return Err("it holds matrices and stacks of them".to_owned());
        };
        let join = |own: &[u64]| [stack, own].concat();
        let groups = |size: u64| {
            let divides = size > 0 && columns.is_multiple_of(size);
            let reason = format!(
                "its readers need groups that divide a row, and {size} does not divide {columns}"
            );
            divides.then(|| join(&[rows, columns / size])).ok_or(reason)
        };
        let axes = Axes::OutIn;
        let elements = Storage::Elements { axes };
        let nibbles = |along| Storage::Packed {
            axes,
            packing: NIBBLES,
            along,
        };
        let (codes, storage, width, scale) = match self {
            Self::Fp8(granularity) => {
                let scale = match granularity {
                    Granularity::Channel => join(&[rows]),
                    Granularity::Block { .. } => blocks(granularity, [rows, columns], stack)?,
                    Granularity::Tensor
                    | Granularity::Group { .. }
                    | Granularity::IndexedGroup { .. }
                    | Granularity::Flat { .. }
                    | Granularity::Strided { .. } => stack.to_vec(),
                };
                (Dtype::F8E4M3, elements, [rows, columns], scale)
            }
            Self::MxFp8 => (Dtype::F8E4M3, elements, [rows, columns], groups(32)?),
            Self::NvFp4 => (
                Dtype::U8,
                nibbles(Axis::In),
                [rows, columns / 2],
                groups(16)?,
            ),
            Self::MxFp4 => (
                Dtype::U8,
                nibbles(Axis::In),
                [rows, columns / 2],
                groups(32)?,
            ),
            Self::Int4(size) => {
                if !rows.is_multiple_of(2) {
                    return Err(format!("two rows share a byte, and {rows} is odd"));
                }
                (
                    Dtype::U8,
                    nibbles(Axis::Out),
                    [rows / 2, columns],
                    groups(size)?,
                )
            }
            Self::Int8(granularity) => {
                let is_channel = granularity == Granularity::Channel;
                let scale = if is_channel {
                    join(&[rows])
                } else {
                    stack.to_vec()
                };
                (Dtype::I8, elements, [rows, columns], scale)
            }
        };
        let scheme = self.scheme(source.reference_dtype);
        let dtype = match scheme.scale {
            ScaleCoding::E8M0(_) => Dtype::U8,
            ScaleCoding::Minifloat(_) => Dtype::F8E4M3,
            ScaleCoding::Float(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => Dtype::F32,
        };
        let named = |ending: &str| format!("{}{ending}", prefix(source));
        let weight = source.weight.clone();
        let mut parts = vec![
            planned(Role::Codes, weight, codes, join(&width), storage),
            planned(Role::Scale, named("weight_scale"), dtype, scale, elements),
        ];
        if self == Self::NvFp4 {
            let name = named("weight_scale_2");
            parts.push(planned(
                Role::SuperScale,
                name,
                Dtype::F32,
                stack.to_vec(),
                elements,
            ));
        }
        for part in &mut parts {
            keep_spelling(part, source);
        }
        Ok(QuantizedTensor {
            convention: ID,
            scheme,
            parts,
            ..source.clone()
        })
    }
}

/// A part that the source has already, with as many elements, keeps the shape it has there ([1] or [], [N] or [N, 1]), and the
/// orientation of experts that are stored [experts, in, out].
fn keep_spelling(part: &mut Part, source: &QuantizedTensor) {
    // Others use the same names for other shapes.
    if source.convention != ID {
        return;
    }
    let n = |shape: &[u64]| shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
    let same = source
        .part(part.role)
        .filter(|p| p.name == part.name && p.dtype == part.dtype && n(&p.shape) == n(&part.shape));
    let Some(same) = same else { return };
    let turned = match (part.storage, same.storage) {
        (Storage::Elements { .. }, Storage::Elements { .. }) => true,
        (
            Storage::Packed { packing, along, .. },
            Storage::Packed {
                packing: p,
                along: a,
                ..
            },
        ) => packing == p && along == a,
        _ => false,
    };
    if turned {
        part.shape.clone_from(&same.shape);
        part.storage = same.storage;
    }
}

/// The shape of the scales of blocks: readers take 128 x 128, or what divides the weight, from the shape alone.
fn blocks(
    granularity: Granularity,
    [rows, columns]: [u64; 2],
    stack: &[u64],
) -> Result<Vec<u64>, String> {
    let Granularity::Block {
        rows: height,
        columns: width,
    } = granularity
    else {
        return Err("it is not in blocks".to_owned());
    };
    let grid = [rows.div_ceil(height.max(1)), columns.div_ceil(width.max(1))];
    if block([rows, columns], grid) != Some(granularity) {
        return Err(format!(
            "its readers know blocks of 128 x 128, and others only where they divide the weight: {height} x {width} \
             in {rows} x {columns} would be read wrong"
        ));
    }
    Ok([stack, &[grid[0], 1, grid[1], 1]].concat())
}

/// What `process_layer_quant_config` says of a module.
fn layer(tensor: &QuantizedTensor) -> Result<Map<String, Value>, Error> {
    let name = format!("{:?}", tensor.scheme.code);
    let form =
        Form::of(&tensor.scheme).map_err(|reason| refusal(&tensor.module, &name, &reason))?;
    let has = |ending: &str| tensor.parts.iter().any(|p| p.name.ends_with(ending));
    let is_smoothed = tensor.part(Role::ColumnFactor).is_some();
    let (algo, group) = match form {
        Form::Fp8(Granularity::Channel) => ("FP8_PER_CHANNEL_PER_TOKEN", None),
        // In small letters, as the exporter has it.
        Form::Fp8(Granularity::Block { .. }) => ("fp8_pb_wo", None),
        Form::Fp8(_) => ("FP8", None),
        Form::MxFp8 => ("MXFP8", Some(32)),
        Form::NvFp4 if is_smoothed => ("NVFP4_AWQ", Some(16)),
        Form::NvFp4 if has("input_scale") => ("NVFP4", Some(16)),
        Form::NvFp4 => ("W4A16_NVFP4", Some(16)),
        Form::MxFp4 => ("W4A8_MXFP4_FP8", Some(32)),
        Form::Int4(size) if has("weight_scale_2") => ("W4A8_AWQ", Some(size)),
        Form::Int4(size) => ("W4A16_AWQ", Some(size)),
        Form::Int8(_) if has("input_scale") => ("W8A8_SQ_PER_CHANNEL", None),
        Form::Int8(_) => ("W8A16", None),
    };
    let mut map = Map::new();
    map.insert("quant_algo".to_owned(), json!(algo));
    if let Some(size) = group {
        map.insert("group_size".to_owned(), json!(size));
    }
    if matches!(algo, "W4A16_AWQ" | "W4A8_AWQ" | "NVFP4_AWQ") {
        map.insert("has_zero_point".to_owned(), json!(false));
        map.insert("pre_quant_scale".to_owned(), json!(true));
    }
    Ok(map)
}

/// `quantization_config` as `convert_hf_quant_config_format` makes it of the document.
fn flat(details: &Map<String, Value>, producer: &Value) -> Map<String, Value> {
    let text = |map: &Map<String, Value>| {
        let algo = map.get("quant_algo").and_then(Value::as_str);
        algo.unwrap_or_default().to_owned()
    };
    let mut config = Map::new();
    let algo = text(details);
    if let Some(layers) = details.get("quantized_layers").and_then(Value::as_object) {
        config.insert("config_groups".to_owned(), mixed_groups(layers));
        config.insert("quantized_layers".to_owned(), json!(layers));
    } else if matches!(algo.as_str(), "FP8" | "NVFP4" | "W4A16_NVFP4") {
        let mut group = group(&algo, details.get("group_size"));
        group.insert("targets".to_owned(), json!(["Linear"]));
        config.insert("config_groups".to_owned(), json!({"group_0": group}));
    }
    let ignore = details.get("exclude_modules").cloned();
    config.insert("ignore".to_owned(), ignore.unwrap_or_else(|| json!([])));
    config.insert("quant_algo".to_owned(), json!(algo));
    config.insert("producer".to_owned(), producer.clone());
    config.insert("quant_method".to_owned(), json!(ID));
    config
}

/// One group for each kind of layer, in the order in which they come first.
fn mixed_groups(layers: &Map<String, Value>) -> Value {
    let mut kinds: Vec<(&Value, Vec<&str>)> = Vec::new();
    for (name, layer) in layers {
        match kinds.iter_mut().find(|(kind, _)| *kind == layer) {
            Some((_, names)) => names.push(name),
            None => kinds.push((layer, vec![name])),
        }
    }
    let mut groups = Map::new();
    for (i, (kind, names)) in kinds.into_iter().enumerate() {
        let algo = kind.get("quant_algo").and_then(Value::as_str);
        let mut group = group(algo.unwrap_or_default(), kind.get("group_size"));
        group.insert("targets".to_owned(), json!(names));
        groups.insert(format!("group_{i}"), group.into());
    }
    groups.into()
}

/// `_quant_algo_to_group_config`: weights and activations of an algorithm.
fn group(algo: &str, size: Option<&Value>) -> Map<String, Value> {
    let args = |bits: u32, kind: &str, size: Option<&Value>| {
        let mut map = Map::new();
        map.insert("dynamic".to_owned(), json!(false));
        map.insert("num_bits".to_owned(), json!(bits));
        map.insert("type".to_owned(), json!(kind));
        if let Some(size) = size {
            map.insert("group_size".to_owned(), size.clone());
        }
        map
    };
    let (weights, inputs) = match algo {
        "FP8" => (args(8, "float", None), Some(args(8, "float", None))),
        "FP8_PER_CHANNEL_PER_TOKEN" => {
            let mut weights = args(8, "float", None);
            weights.insert("strategy".to_owned(), json!("channel"));
            (weights, Some(args(8, "float", None)))
        }
        "NVFP4" => (args(4, "float", size), Some(args(4, "float", size))),
        "W4A16_NVFP4" => (args(4, "float", size), None),
        "NVFP4_AWQ" | "W4A8_AWQ" => (args(4, "float", size), Some(args(8, "float", size))),
        "W4A8_MXFP4_FP8" => (args(4, "float", size), Some(args(8, "float", None))),
        "W4A16_AWQ" => (args(4, "int", size), None),
        "MXFP8" => (args(8, "float", size), Some(args(8, "float", size))),
        "W8A16" => (args(8, "int", None), None),
        "W8A8_SQ_PER_CHANNEL" => {
            let mut weights = args(8, "int", None);
            weights.insert("strategy".to_owned(), json!("channel"));
            (weights, Some(args(8, "int", None)))
        }
        // The exporter knows no other way to say it.
        other => {
            let mut map = Map::new();
            map.insert("quant_algo".to_owned(), json!(other));
            return map;
        }
    };
    let mut map = Map::new();
    if let Some(inputs) = inputs {
        map.insert("input_activations".to_owned(), inputs.into());
    }
    map.insert("weights".to_owned(), weights.into());
    map
}
