//! Writing HQQ: planes, scales, zero points and descriptors in the spelling of `HQQLinear.state_dict` for safetensors, and
//! what transformers' `HqqConfig` holds (specs/conventions/hqq.md, clauses H11 to H16).

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_kernels::{Float, Planes};
use serde_json::{Map, Value, json};

use super::module::{DESCRIPTORS, dtype_text};
use super::{ID, scheme};
use crate::binding::{cannot_write, constant, matrix_only, planned};
use crate::scheme::dtype_of;
use crate::storage::to_u64;
use crate::{
    Axes, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity, Part, Preset,
    PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleRule, Storage, WeightCode, Written,
    ZeroPoint,
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
        let refuse = |reason: &str| cannot_write(ID, module, preset.name, reason);
        let [rows, columns] = matrix_only(ID, module, shape, preset.name)?;
        let WeightCode::AsymmetricInteger { bits } = preset.weights else {
            return Err(refuse(
                "its codes are integers with a float zero point (the _ASYM schemes)",
            ));
        };
        let granularity = match preset.granularity {
            PresetGranularity::Channel => Granularity::Channel,
            PresetGranularity::Group { size } => Granularity::Group { size },
            PresetGranularity::Tensor | PresetGranularity::Block { .. } => {
                return Err(refuse("its scales are per group of input features"));
            }
        };
        let wanted = Wanted {
            bits,
            granularity,
            float: source,
            compute: source,
            // Its own choice for 4 bits; its optimizer depends on the device, and is not repeated.
            fit: Fit {
                is_optimized: false,
                is_rounded: bits == 4,
            },
        };
        wanted
            .lay_out(module, [rows, columns])
            .map_err(|reason| refuse(&reason))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if source.convention == ID {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: &str| cannot_write(ID, &source.module, &kind, reason);
        let shape = matrix_only(ID, &source.module, &source.shape, &kind)?;
        if source.scheme.basis != Basis::WEIGHT {
            return Err(refuse("its weights are not rotated, rescaled or in parts"));
        }
        let Code::Integer { bits, .. } = source.scheme.code else {
            return Err(refuse("its codes are integers"));
        };
        let float = match source.scheme.scale {
            ScaleCoding::Float(float) => float,
            ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::StoredTable
            | ScaleCoding::Integer
            | ScaleCoding::One => source.reference_dtype,
        };
        let granularity = held(source).map_err(refuse)?;
        let wanted = Wanted {
            // The only width that the library has not.
            bits: if bits == 7 { 8 } else { bits },
            granularity,
            float,
            compute: source.reference_dtype,
            // As the library's own configuration has it: who chose these scales, and how, is not known here.
            fit: Fit {
                is_optimized: true,
                is_rounded: bits == 4,
            },
        };
        wanted
            .lay_out(&source.module, shape)
            .map_err(|reason| refuse(&reason))
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        // Readers know no configuration of a single module but of all with the same name in their layer; each module
        // describes itself, and that is what is loaded.
        let mut by_tag = BTreeMap::new();
        for tensor in written.modules {
            by_tag
                .entry(tag(&tensor.module))
                .or_insert_with(|| about(tensor));
        }
        let first = by_tag.values().next().cloned();
        let quant_config = match first {
            Some(first) if written.modules.iter().all(|t| about(t) == first) => first,
            Some(_) => json!(by_tag),
            None => Value::Null,
        };
        let mut skipped: Vec<String> = Vec::new();
        for name in written.ignored {
            let name = tag(name);
            if !skipped.contains(&name) && !by_tag.contains_key(&name) {
                skipped.push(name);
            }
        }
        let map = Map::from_iter([
            ("quant_config".to_owned(), quant_config),
            ("quant_method".to_owned(), json!(ID)),
            ("skip_modules".to_owned(), json!(skipped)),
        ]);
        Ok(ConfigEdit {
            quantization_config: map,
            metadata: vec![("format".to_owned(), "pt".to_owned())],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "W4A16_ASYM",
            "W2A16_ASYM",
            "W3A16_ASYM",
            "W5A16_ASYM",
            "W6A16_ASYM",
            "W8A16_ASYM",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Hqq
    }
}

/// What shares a scale there, for what shares one in the source; or why nothing does.
fn held(source: &QuantizedTensor) -> Result<Granularity, &'static str> {
    let columns = source.in_features();
    match source.scheme.granularity {
        Granularity::Group { size } if size >= columns => Ok(Granularity::Channel),
        // A block's scale is repeated for each of its rows.
        Granularity::Block { columns: size, .. } if size >= columns => Ok(Granularity::Channel),
        Granularity::Block { columns: size, .. } => Ok(Granularity::Group { size }),
        Granularity::IndexedGroup { .. } => {
            Err("it has no group index (activation order); gptq has")
        }
        granularity @ (Granularity::Tensor
        | Granularity::Channel
        | Granularity::Group { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. }) => Ok(granularity),
    }
}

/// How scales and zero points were chosen, as descriptors tell it.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// `optimize`.
    is_optimized: bool,
    /// `round_zero`.
    is_rounded: bool,
}

/// What is to be laid out.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    bits: u32,
    granularity: Granularity,
    /// Of scales and zero points as they are stored.
    float: Float,
    /// What readers round them to, and compute in.
    compute: Float,
    fit: Fit,
}

impl Wanted {
    /// The matrix of groups, its axis, and the shape of scales and zero points; or why there is none.
    fn matrix(&self, [rows, columns]: [u64; 2]) -> Result<([u64; 2], u8, Vec<u64>), String> {
        let n = rows
            .checked_mul(columns)
            .filter(|n| *n > 0)
            .ok_or("a weight has elements, and not more than can be counted")?;
        let divided = |size: u64, whole: u64, what: &str| {
            let fits = size > 0 && whole.is_multiple_of(size);
            let reason = || format!("groups of {size} do not divide {whole} {what}");
            fits.then_some(n / size.max(1)).ok_or_else(reason)
        };
        match self.granularity {
            Granularity::Tensor => Ok(([rows, columns], 1, Vec::new())),
            Granularity::Channel => Ok(([rows, columns], 1, vec![rows, 1])),
            Granularity::Group { size } => {
                let groups = divided(size, columns, "input features")?;
                Ok(([groups, size], 1, vec![groups, 1]))
            }
            Granularity::Flat { size } => {
                let groups = divided(size, n, "elements")?;
                Ok(([groups, size], 1, vec![groups, 1]))
            }
            Granularity::Strided { count } => {
                let size = divided(count, n, "elements")?;
                Ok(([size, count], 0, vec![1, count]))
            }
            Granularity::IndexedGroup { .. } | Granularity::Block { .. } => {
                Err("its scales are per group of elements".to_owned())
            }
        }
    }

    fn lay_out(&self, module: &str, shape: [u64; 2]) -> Result<QuantizedTensor, String> {
        let (packing, planes) = packing(self.bits);
        let (matrix, axis, grid) = self.matrix(shape)?;
        let per_word = to_u64(planes.n_planes());
        if planes.word_bytes() == 1 && !matrix[0].is_multiple_of(per_word) {
            return Err(format!(
                "{} bits lie {per_word} to a byte, and readers drop what is left of {} rows of groups",
                self.bits, matrix[0]
            ));
        }
        let words = [matrix[0].div_ceil(per_word), matrix[1]];
        let len = words[0].saturating_mul(words[1]);
        let word = if planes.word_bytes() == 1 {
            Dtype::U8
        } else {
            Dtype::I32
        };
        let elements = Storage::Elements { axes: Axes::OutIn };
        let name = |ending: &str| format!("{module}.{ending}");
        let float = dtype_of(self.float);
        let planned = |role, ending, dtype, shape, storage| {
            planned(role, name(ending), dtype, shape, storage)
        };
        let storage = Storage::Planes { planes, len };
        let mut parts = vec![
            planned(Role::Codes, "W_q", word, words.to_vec(), storage),
            planned(Role::Scale, "scale", float, grid.clone(), elements),
            planned(Role::Offset, "zero", float, grid, elements),
        ];
        let size = if axis == 0 { matrix[0] } else { matrix[1] };
        let size = i32::try_from(size).map_err(|_| format!("groups of {size} are too large"))?;
        parts.extend(DESCRIPTORS.iter().map(|ending| match *ending {
            "nbits" => number(name(ending), i32::try_from(self.bits).unwrap_or_default()),
            "group_size" => number(name(ending), size),
            "axis" => number(name(ending), i32::from(axis)),
            "shape" => planned(Role::Shape, ending, Dtype::I64, vec![2], Storage::Vector),
            "packing" => text(name(ending), packing),
            "unpack_view_dtype" => text(name(ending), view_text(planes)),
            "compute_dtype" => text(name(ending), dtype_text(self.compute)),
            other => flag(name(ending), self.is_set(other)),
        }));
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: name("weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: scheme(self.bits, self.granularity, self.float, self.compute),
            reference_dtype: self.compute,
            parts,
        })
    }

    /// Whether a descriptor that is a flag is set.
    fn is_set(&self, ending: &str) -> bool {
        match ending {
            "channel_wise" => self.granularity != Granularity::Tensor,
            "optimize" => self.fit.is_optimized,
            "round_zero" => self.fit.is_rounded,
            "encoded_state_dict" | "stores_quant_config" => true,
            // view_as_float, quant_scale, quant_zero, offload_meta.
            _ => false,
        }
    }
}

/// The name of the packing of so many bits, and its planes.
fn packing(bits: u32) -> (&'static str, Planes) {
    let (name, bits) = match bits {
        1 => ("1bit_u8", 1),
        2 => ("2bit_u8", 2),
        3 => ("3bit_32", 3),
        4 => ("4bit_u8", 4),
        _ => ("8bit_u8", 8),
    };
    (name, Planes::HighFirst { bits })
}

/// The text of the integer type of a word.
pub(super) fn view_text(planes: Planes) -> &'static str {
    if planes.word_bytes() == 1 {
        "torch.uint8"
    } else {
        "torch.int32"
    }
}

fn number(name: String, value: i32) -> Part {
    constant(name, Dtype::I32, Vec::new(), value.to_le_bytes().to_vec())
}

fn text(name: String, value: &str) -> Part {
    let bytes = value.as_bytes().to_vec();
    constant(name, Dtype::U8, vec![to_u64(bytes.len())], bytes)
}

fn flag(name: String, value: bool) -> Part {
    constant(name, Dtype::U8, Vec::new(), vec![u8::from(value)])
}

/// The linear tag of a module: `model.layers.31.self_attn.k_proj` is `self_attn.k_proj`. (`name_to_linear_tag`)
fn tag(module: &str) -> String {
    let pieces = module.split('.').filter(|piece| {
        let is_number = !piece.is_empty() && piece.chars().all(char::is_numeric);
        !is_number && !matches!(*piece, "model" | "layers")
    });
    pieces.collect::<Vec<_>>().join(".")
}

/// A module as `BaseQuantizeConfig` has it, from its own descriptors.
fn about(tensor: &QuantizedTensor) -> Value {
    let content = |ending: &str| {
        let name = format!("{}.{ending}", tensor.module);
        let part = tensor.parts.iter().find(|part| part.name == name)?;
        Some((part.dtype, part.content.as_deref()?))
    };
    let flag = |ending: &str, default: bool| match content(ending) {
        Some((_, bytes)) => json!(bytes.first().is_some_and(|&b| b != 0)),
        None => json!(default),
    };
    let number = |ending: &str| match content(ending) {
        Some((Dtype::F32, bytes)) => {
            let value = <[u8; 4]>::try_from(bytes).map(f32::from_le_bytes);
            // 1.58, as the library's users write it.
            let shown = value.ok().and_then(|v| v.to_string().parse::<f64>().ok());
            json!(shown)
        }
        Some((_, bytes)) => {
            let value = <[u8; 4]>::try_from(bytes).map(i32::from_le_bytes);
            json!(value.ok())
        }
        None => Value::Null,
    };
    let is_tensor = tensor.scheme.granularity == Granularity::Tensor;
    let is_integral = !matches!(tensor.scheme.zero_point, ZeroPoint::Offset { .. });
    json!({
        "weight_quant_params": {
            "nbits": number("nbits"),
            "channel_wise": flag("channel_wise", !is_tensor),
            "group_size": number("group_size"),
            "optimize": flag("optimize", true),
            "round_zero": flag("round_zero", is_integral),
            "axis": number("axis"),
            "view_as_float": flag("view_as_float", false),
        },
        "scale_quant_params": null,
        "zero_quant_params": null,
        "offload_meta": false,
    })
}
