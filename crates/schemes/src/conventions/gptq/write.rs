//! Writing GPTQ in its three formats: parts, `quantize_config.json`, and the same in `config.json`.

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_kernels::Float;
use serde_json::{Map, Value, json};

use super::config::Format;
use super::words;
use crate::binding::{cannot_write, integer_bits, matrix_only, planned};
use crate::scheme::Packing;
use crate::{
    Axes, Axis, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity, IntegerEncoding,
    Part, Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleDirection, ScaleRule,
    Scheme, Storage, SuperScale, WeightCode, Written, ZeroCoding, ZeroPoint,
};

/// One of the three formats.
pub(super) struct Writer {
    format: Format,
}

pub(super) static V1: Writer = Writer { format: Format::V1 };
pub(super) static V2: Writer = Writer { format: Format::V2 };
pub(super) static PLANAR: Writer = Writer {
    format: Format::Planar,
};

/// What a module's codes and scales are: all that its parts follow from.
struct Held {
    rows: u64,
    columns: u64,
    bits: u32,
    granularity: Granularity,
    zero_point: ZeroPoint,
    scale: Float,
}

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        match self.format {
            Format::V1 => "gptq",
            Format::V2 => "gptq_v2",
            Format::Planar => "gptq_p",
        }
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error> {
        // Packers of this convention always store F16 scales, and readers take the dtype from them.
        let _ = source;
        let refuse = |reason: String| self.refusal(module, preset.name, reason);
        let [rows, columns] = matrix_only(self.id(), module, shape, preset.name)?;
        let (bits, is_symmetric) = match preset.weights {
            WeightCode::SymmetricInteger { bits } => (bits, true),
            WeightCode::AsymmetricInteger { bits } => (bits, false),
            WeightCode::Minifloat(_)
            | WeightCode::Nvfp4
            | WeightCode::Mx(_)
            | WeightCode::Codebook(_)
            | WeightCode::NestedCodebook(_)
            | WeightCode::Block(_) => {
                return Err(refuse(
                    "it holds integers only; fp8 or compressed-tensors can hold it".to_owned(),
                ));
            }
        };
        self.check_size(bits, [rows, columns]).map_err(refuse)?;
        let granularity = match preset.granularity {
            PresetGranularity::Group { size } => Granularity::Group { size },
            PresetGranularity::Channel => Granularity::Channel,
            PresetGranularity::Tensor | PresetGranularity::Block { .. } => {
                return Err(refuse("its scales are per group or channel".to_owned()));
            }
        };
        let zero_point = if is_symmetric {
            ZeroPoint::Fixed(1 << (bits - 1))
        } else {
            ZeroPoint::Stored(self.coding(bits))
        };
        let held = Held {
            rows,
            columns,
            bits,
            granularity,
            zero_point,
            scale: Float::F16,
        };
        Ok(self.tensor(module, &held))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        let wanted = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| self.refusal(&source.module, &wanted, reason);
        let [rows, columns] = matrix_only(self.id(), &source.module, &source.shape, &wanted)?;
        let bits = plain_integers(&source.scheme).map_err(refuse)?;
        self.check_size(bits, [rows, columns]).map_err(refuse)?;
        let held = Held {
            rows,
            columns,
            bits,
            granularity: granularity(source.scheme.granularity, columns).map_err(refuse)?,
            zero_point: self
                .zero_point(source.scheme.zero_point, bits)
                .map_err(refuse)?,
            scale: match source.scheme.scale {
                ScaleCoding::Float(Float::Bf16) => Float::Bf16,
                ScaleCoding::Float(Float::F16 | Float::F32)
                | ScaleCoding::E8M0(_)
                | ScaleCoding::Minifloat(_)
                | ScaleCoding::StoredTable
                | ScaleCoding::Integer
                | ScaleCoding::One => Float::F16,
            },
        };
        let mut tensor = self.tensor(&source.module, &held);
        tensor.weight.clone_from(&source.weight);
        Ok(tensor)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let common = Common::of(written)
            .map_err(|reason| self.refusal("the configuration", "no module", reason))?;
        let is_head = |name: &str| name == "lm_head" || name.ends_with(".lm_head");
        let skipped = written.ignored.iter().filter(|name| !is_head(name));
        let skipped = skipped.map(|name| (format!("-:^{}$", escape(name)), json!({})));
        let mut dynamic: Map<String, Value> = skipped.collect();
        for module in written.modules {
            if let Some(differing) = common.differing(module) {
                dynamic.insert(format!("+:^{}$", escape(&module.module)), differing);
            }
        }
        let mut map = Map::new();
        map.insert("bits".to_owned(), json!(common.bits));
        if !dynamic.is_empty() {
            map.insert("dynamic".to_owned(), Value::Object(dynamic));
        }
        let heads = written.modules.iter().any(|m| is_head(&m.module));
        let quantizer = quantizers(written.modules)
            .map_err(|reason| self.refusal("the configuration", "these modules", reason))?;
        let entries = [
            ("group_size", json!(common.group_size)),
            ("desc_act", json!(common.is_indexed)),
            ("lm_head", json!(heads)),
            ("method", json!("gptq")),
            ("quant_method", json!("gptq")),
            ("format", json!(self.id())),
            ("checkpoint_format", json!(self.id())),
            ("pack_dtype", json!("int32")),
            ("meta", json!({ "quantizer": quantizer })),
            ("sym", json!(common.is_symmetric)),
        ];
        map.extend(entries.map(|(key, value)| (key.to_owned(), value)));
        let document = serde_json::to_vec_pretty(&map).map_err(|e| Error::Document {
            document: "quantize_config.json".to_owned(),
            problem: e.to_string(),
        })?;
        Ok(ConfigEdit {
            quantization_config: map,
            documents: vec![("quantize_config.json".to_owned(), document)],
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
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Gptq
    }
}

impl Writer {
    fn refusal(&self, module: &str, wanted: &str, reason: String) -> Error {
        cannot_write(self.id(), module, wanted, reason)
    }

    /// Widths, and where the packers need whole blocks of 32.
    fn check_size(&self, bits: u32, [rows, columns]: [u64; 2]) -> Result<(), String> {
        let is_stream = matches!(bits, 2 | 3 | 4 | 8);
        match self.format {
            Format::V1 | Format::V2 if !is_stream => {
                let other = if (2..=8).contains(&bits) {
                    "; gptq_p can hold it"
                } else {
                    ""
                };
                return Err(format!("{bits} bits; it has 2, 3, 4 and 8{other}"));
            }
            Format::Planar if !(2..=8).contains(&bits) => {
                return Err(format!("{bits} bits; it has 2 to 8"));
            }
            Format::V1 | Format::V2 | Format::Planar => {}
        }
        let in_blocks = bits == 3 || self.format == Format::Planar;
        if in_blocks && !(rows.is_multiple_of(32) && columns.is_multiple_of(32)) {
            return Err(format!(
                "{bits} bits need multiples of 32 on both sides, not [{rows}, {columns}]"
            ));
        }
        Ok(())
    }

    fn packing(&self, bits: u32) -> Packing {
        match self.format {
            Format::V1 | Format::V2 => Packing::LsbFirst { bits },
            Format::Planar => Packing::Planar { bits },
        }
    }

    /// How zero points are stored that are not all the same. Of 3 bits every reader takes 7 for 0 or for 8.
    fn coding(&self, bits: u32) -> ZeroCoding {
        match self.format {
            Format::V1 if bits == 3 => ZeroCoding::MinusOneModulo,
            Format::V1 => ZeroCoding::MinusOne,
            Format::V2 | Format::Planar => ZeroCoding::Direct,
        }
    }

    fn zero_point(&self, source: ZeroPoint, bits: u32) -> Result<ZeroPoint, String> {
        match source {
            ZeroPoint::Fixed(zero) if zero == 1 << (bits - 1) => Ok(source),
            ZeroPoint::Stored(ZeroCoding::MinusOneWord)
                if self.format == Format::V1 && bits != 3 =>
            {
                Ok(source)
            }
            ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) => Ok(ZeroPoint::Stored(self.coding(bits))),
            ZeroPoint::Offset { .. } => Err(
                "its zero points are floats, and only integers can be stored; \
                 mlx, hqq or quantizing anew can hold it"
                    .to_owned(),
            ),
        }
    }

    fn tensor(&self, module: &str, held: &Held) -> QuantizedTensor {
        let code = Code::Integer {
            bits: held.bits,
            encoding: IntegerEncoding::Unsigned,
        };
        QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: self.id(),
            shape: vec![held.rows, held.columns],
            scheme: Scheme {
                zero_point: held.zero_point,
                ..Scheme::plain(code, held.granularity, ScaleCoding::Float(held.scale))
            },
            reference_dtype: held.scale,
            parts: self.parts(module, held),
        }
    }

    /// The four tensors of a module.
    fn parts(&self, module: &str, held: &Held) -> Vec<Part> {
        let (axes, packing) = (Axes::InOut, self.packing(held.bits));
        let (rows, columns) = (held.rows, held.columns);
        let (_, groups) = crate::storage::scale_grid(held.granularity, rows, columns);
        let half = 1_u8 << (held.bits - 1);
        let zeros = match held.zero_point {
            ZeroPoint::Fixed(_) => Storage::PackedConstant {
                axes,
                packing,
                along: Axis::Out,
                lane: half - u8::from(self.format == Format::V1),
            },
            ZeroPoint::Stored(_) | ZeroPoint::Offset { .. } => Storage::Packed {
                axes,
                packing,
                along: Axis::Out,
            },
        };
        let codes = Storage::Packed {
            axes,
            packing,
            along: Axis::In,
        };
        let name = |ending: &str| format!("{module}.{ending}");
        let zero_shape = vec![groups, words(packing, rows, 4)];
        let code_shape = vec![words(packing, columns, 4), rows];
        let scales = Storage::Elements { axes };
        vec![
            planned(Role::Codes, name("qweight"), Dtype::I32, code_shape, codes),
            planned(
                Role::ZeroPoint,
                name("qzeros"),
                Dtype::I32,
                zero_shape,
                zeros,
            ),
            planned(
                Role::Scale,
                name("scales"),
                crate::scheme::dtype_of(held.scale),
                vec![groups, rows],
                scales,
            ),
            planned(
                Role::GroupIndex,
                name("g_idx"),
                Dtype::I32,
                vec![columns],
                Storage::Vector,
            ),
        ]
    }
}

/// The bytes of symmetric zero points of `[groups, out_features]` in a format; `None` where it has none of this width.
pub(super) fn symmetric_zeros(
    format: Format,
    bits: u32,
    [groups, out]: [u64; 2],
    dtype: Dtype,
) -> Option<Vec<u8>> {
    let writer = Writer { format };
    if !matches!(bits, 2..=8) || (format != Format::Planar && !matches!(bits, 2 | 3 | 4 | 8)) {
        return None;
    }
    let held = Held {
        rows: out,
        columns: groups,
        bits,
        granularity: Granularity::Group { size: 1 },
        zero_point: ZeroPoint::Fixed(1 << (bits - 1)),
        scale: Float::F16,
    };
    let mut tensor = writer.tensor("", &held);
    tensor.parts.retain(|part| part.role == Role::ZeroPoint);
    let word = dtype.bits() / 8;
    for part in &mut tensor.parts {
        part.dtype = dtype;
        part.shape = vec![groups, words(writer.packing(bits), out, word)];
    }
    crate::binding::first_constant(&tensor)
}

/// The width of codes that are integers times a scale each and nothing else.
///
/// # Errors
/// What else they are, for people.
fn plain_integers(scheme: &Scheme) -> Result<u32, String> {
    let Code::Integer { bits, .. } = scheme.code else {
        return Err("it holds integers only; fp8 or compressed-tensors may hold it".to_owned());
    };
    if scheme.super_scale != SuperScale::None {
        return Err("its scales are scaled themselves, which it cannot store".to_owned());
    }
    if scheme.direction != ScaleDirection::Multiply {
        return Err("its scales divide, and its readers multiply".to_owned());
    }
    if scheme.basis != Basis::WEIGHT {
        return Err("it is stored in another basis (rotated, rescaled or in parts)".to_owned());
    }
    Ok(bits)
}

/// How it spells what shares a scale.
fn granularity(source: Granularity, columns: u64) -> Result<Granularity, String> {
    match source {
        Granularity::Channel | Granularity::Group { .. } | Granularity::IndexedGroup { .. } => {
            Ok(source)
        }
        Granularity::Tensor => Ok(Granularity::Channel),
        Granularity::Block { columns: size, .. } => Ok(Granularity::Group { size }),
        Granularity::Flat { size } if size > 0 && columns.is_multiple_of(size) => {
            Ok(Granularity::Group { size })
        }
        Granularity::Flat { .. } | Granularity::Strided { .. } => Err(
            "its groups do not lie within rows, and scales here are per group of a row".to_owned(),
        ),
    }
}

/// What holds for all modules but those with an entry in `dynamic`.
struct Common {
    bits: u32,
    /// −1: whole rows.
    group_size: i64,
    is_symmetric: bool,
    is_indexed: bool,
}

impl Common {
    /// # Errors
    /// Why not, for people: there is nothing to tell it from.
    fn of(written: &Written<'_>) -> Result<Self, String> {
        let modules = written.modules;
        if let (true, Some(preset)) = (modules.is_empty(), written.asked.same()) {
            return Ok(Self {
                bits: preset.bits(),
                group_size: match preset.granularity {
                    PresetGranularity::Group { size } => i64::try_from(size).unwrap_or(-1),
                    PresetGranularity::Channel
                    | PresetGranularity::Tensor
                    | PresetGranularity::Block { .. } => -1,
                },
                is_symmetric: matches!(preset.weights, WeightCode::SymmetricInteger { .. }),
                is_indexed: false,
            });
        }
        let several = modules.iter().filter(|m| groups_of(m) > 1).map(group_size);
        let group_size = most_frequent(several)
            .or_else(|| most_frequent(modules.iter().map(group_size)))
            .ok_or("no module is quantized")?;
        let scheme = |m: &QuantizedTensor| m.scheme.clone();
        Ok(Self {
            bits: most_frequent(modules.iter().map(integer_bits))
                .ok_or("no module is quantized")?,
            group_size,
            is_symmetric: modules
                .iter()
                .all(|m| matches!(scheme(m).zero_point, ZeroPoint::Fixed(_))),
            is_indexed: modules
                .iter()
                .any(|m| matches!(scheme(m).granularity, Granularity::IndexedGroup { .. })),
        })
    }

    /// What a module needs to have said of itself.
    fn differing(&self, module: &QuantizedTensor) -> Option<Value> {
        let mut map = Map::new();
        let bits = integer_bits(module);
        if bits != self.bits {
            map.insert("bits".to_owned(), json!(bits));
        }
        let size = group_size(module);
        // A single group is one by any size that is not smaller than the row.
        let covers = u64::try_from(self.group_size).map_or(true, |s| s >= module.in_features());
        if size != self.group_size && !(groups_of(module) == 1 && covers) {
            map.insert("group_size".to_owned(), json!(size));
        }
        (!map.is_empty()).then_some(Value::Object(map))
    }
}

/// Input features per group; −1 for a whole row.
fn group_size(module: &QuantizedTensor) -> i64 {
    match module.scheme.granularity {
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            i64::try_from(size).unwrap_or(-1)
        }
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => -1,
    }
}

fn groups_of(module: &QuantizedTensor) -> u64 {
    match u64::try_from(group_size(module)) {
        Ok(size) => module.in_features().div_ceil(size.max(1)),
        Err(_) => 1,
    }
}

/// Who is said to have written the file: readers take the zero points of v1 by whole words if `GPTQModel` is among them.
///
/// # Errors
/// Why nobody can be named, for people.
fn quantizers(modules: &[QuantizedTensor]) -> Result<Vec<&'static str>, String> {
    const OURS: &str = concat!("safequant:", env!("CARGO_PKG_VERSION"));
    let is_stored = |m: &&QuantizedTensor, coding| m.scheme.zero_point == ZeroPoint::Stored(coding);
    let by_word = modules
        .iter()
        .find(|m| is_stored(m, ZeroCoding::MinusOneWord));
    let by_lane = modules.iter().find(|m| is_stored(m, ZeroCoding::MinusOne));
    match (by_word, by_lane) {
        (Some(a), Some(b)) => Err(format!(
            "the zero points of {} are stored minus one by words and those of {} lane by lane, and one file has one way; \
             gptq_v2 can hold both",
            a.module, b.module
        )),
        (Some(_), None) => Ok(vec![OURS, "gptqmodel:7.7.0"]),
        (None, _) => Ok(vec![OURS]),
    }
}

/// The value that occurs most often; of several the largest.
fn most_frequent<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0_usize) += 1;
    }
    let most = counts.into_iter().max_by_key(|&(_, count)| count);
    most.map(|(value, _)| value)
}

/// A name as a regular expression that matches just it.
fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if !c.is_alphanumeric() && c != '_' && c != '-' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_dynamic() {
        assert_eq!(
            escape("model.layers.0.mlp-x_y"),
            r"model\.layers\.0\.mlp-x_y"
        );
    }

    #[test]
    fn symmetric_zero_points_are_constant_and_minus_one_in_v1() {
        let preset = Preset::by_name("W4A16").unwrap();
        let lanes = [(&V1, 0x77_u8), (&V2, 0x88)];
        for (writer, byte) in lanes {
            let tensor = writer
                .lay_out("m", &[8, 256], &preset, Float::Bf16)
                .unwrap();
            let zeros = crate::encode::constant_regions(&tensor);
            let zeros = zeros
                .iter()
                .find(|r| tensor.parts[r.part].role == Role::ZeroPoint)
                .unwrap();
            assert_eq!(zeros.bytes, vec![byte; 8], "{}", writer.id());
            assert_eq!((zeros.rows.clone(), zeros.columns.clone()), (0..2, 0..4));
        }
    }

    #[test]
    fn what_it_cannot_hold_is_refused_with_an_alternative() {
        let fp8 = Preset::by_name("FP8_BLOCK").unwrap();
        let e = V1.lay_out("m", &[128, 128], &fp8, Float::Bf16).unwrap_err();
        assert!(e.to_string().contains("compressed-tensors"), "{e}");
        let w3 = Preset::by_name("W3A16").unwrap();
        assert!(V1.lay_out("m", &[36, 128], &w3, Float::Bf16).is_err());
        assert!(V2.lay_out("m", &[4, 64, 128], &w3, Float::Bf16).is_err());
    }
}
