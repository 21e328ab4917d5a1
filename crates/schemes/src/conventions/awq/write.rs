//! Writing AWQ in three of its layouts: parts, and the settings in `config.json` (specs/conventions/awq.md, clauses A30 to
//! A36).

use std::collections::BTreeSet;

use safequant_container::Dtype;
use safequant_kernels::Float;
use serde_json::{Map, Value, json};

use super::{Layout, sizes, storages};
use crate::binding::{cannot_write, matrix_only, planned};
use crate::{
    Arithmetic, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity, IntegerEncoding,
    Part, Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleDirection, ScaleRule,
    Scheme, Storage, SuperScale, WeightCode, Written, ZeroCoding, ZeroPoint,
};

/// The only width that every reader takes.
const BITS: u32 = 4;
/// The zero of symmetric codes.
const MIDDLE: u8 = 8;

/// One of the three layouts.
pub(super) struct Writer {
    layout: Layout,
}

pub(super) static GEMM: Writer = Writer {
    layout: Layout::Gemm,
};
pub(super) static GEMV: Writer = Writer {
    layout: Layout::Gemv,
};
pub(super) static GEMV_FAST: Writer = Writer {
    layout: Layout::GemvFast,
};

/// What a module's codes and scales are: all that its parts follow from.
struct Held {
    rows: u64,
    columns: u64,
    group_size: u64,
    zeros: Zeros,
    scale: Float,
}

/// Whether zero points are all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// 8 everywhere, and stored all the same: `AutoAWQ` cannot do without.
    Middle,
    /// Any.
    Stored,
}

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        self.layout.id()
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error> {
        // The packer of this convention stores F16 scales whatever the model was.
        let _ = source;
        let refuse = |reason: String| self.refusal(module, preset.name, reason);
        let [rows, columns] = matrix_only(self.id(), module, shape, preset.name)?;
        let zeros = self.wanted_zeros(preset.weights).map_err(refuse)?;
        let group_size = match preset.granularity {
            PresetGranularity::Group { size } => size,
            PresetGranularity::Channel => columns.max(1),
            PresetGranularity::Tensor | PresetGranularity::Block { .. } => {
                return Err(refuse("its scales are per group or channel".to_owned()));
            }
        };
        let held = Held {
            rows,
            columns,
            group_size,
            zeros,
            scale: Float::F16,
        };
        self.check_size(&held).map_err(refuse)?;
        Ok(self.tensor(module, &held))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        let wanted = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| self.refusal(&source.module, &wanted, reason);
        let [rows, columns] = matrix_only(self.id(), &source.module, &source.shape, &wanted)?;
        plain_integers(&source.scheme).map_err(refuse)?;
        let held = Held {
            rows,
            columns,
            group_size: group_size(source.scheme.granularity, columns).map_err(refuse)?,
            zeros: self.zeros_of(source.scheme.zero_point).map_err(refuse)?,
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
        self.check_size(&held).map_err(refuse)?;
        let mut tensor = self.tensor(&source.module, &held);
        tensor.weight.clone_from(&source.weight);
        Ok(tensor)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let refuse = |reason: String| self.refusal("the configuration", "these modules", reason);
        let group_size = common_group_size(written).map_err(refuse)?;
        let is_head = |name: &str| name == "lm_head" || name.ends_with(".lm_head");
        // Readers leave the head out by themselves.
        let ignored = written.ignored.iter().filter(|name| !is_head(name));
        let ignored: Vec<&str> = ignored.map(String::as_str).collect();
        check_ignored(&ignored, written.modules).map_err(refuse)?;
        let skipped = if ignored.is_empty() {
            Value::Null
        } else {
            json!(ignored)
        };
        let quantizer = concat!("safequant:", env!("CARGO_PKG_VERSION"));
        let entries = [
            ("quant_method", json!("awq")),
            ("version", json!(self.layout.name())),
            ("bits", json!(BITS)),
            ("group_size", json!(group_size)),
            ("zero_point", json!(true)),
            ("modules_to_not_convert", skipped),
            ("format", json!(self.layout.name())),
            ("checkpoint_format", json!(self.layout.name())),
            ("pack_dtype", json!(self.pack_dtype())),
            (
                "lm_head",
                json!(written.modules.iter().any(|m| is_head(&m.module))),
            ),
            ("meta", json!({ "quantizer": [quantizer] })),
        ];
        let map: Map<String, Value> = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Ok(ConfigEdit {
            quantization_config: map,
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        match self.layout {
            Layout::Gemm | Layout::Gemv => &["W4A16", "W4A16_ASYM"],
            // Products of scale and zero point are no constant.
            Layout::GemvFast | Layout::Llm => &["W4A16_ASYM"],
        }
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Awq
    }
}

impl Writer {
    fn refusal(&self, module: &str, wanted: &str, reason: String) -> Error {
        cannot_write(self.id(), module, wanted, reason)
    }

    /// The dtype of packed words, as GPTQModel calls it.
    fn pack_dtype(&self) -> &'static str {
        match self.layout {
            Layout::Gemm | Layout::Gemv => "int32",
            Layout::GemvFast | Layout::Llm => "int16",
        }
    }

    /// The zero points of a preset.
    fn wanted_zeros(&self, weights: WeightCode) -> Result<Zeros, String> {
        match weights {
            WeightCode::SymmetricInteger { bits: BITS } => match self.layout {
                Layout::Gemm | Layout::Gemv => Ok(Zeros::Middle),
                Layout::GemvFast | Layout::Llm => {
                    Err("it is for zero points; awq and awq_gemv can hold it".to_owned())
                }
            },
            WeightCode::AsymmetricInteger { bits: BITS } => Ok(Zeros::Stored),
            WeightCode::SymmetricInteger { bits } | WeightCode::AsymmetricInteger { bits } => {
                Err(wrong_bits(bits))
            }
            WeightCode::Minifloat(_)
            | WeightCode::Nvfp4
            | WeightCode::Mx(_)
            | WeightCode::Codebook(_)
            | WeightCode::NestedCodebook(_)
            | WeightCode::Block(_) => {
                Err("it holds integers only; fp8 or compressed-tensors can hold it".to_owned())
            }
        }
    }

    /// The zero points of codes that are there already.
    fn zeros_of(&self, source: ZeroPoint) -> Result<Zeros, String> {
        let is_constant = match self.layout {
            Layout::Gemm | Layout::Gemv => source == ZeroPoint::Fixed(i32::from(MIDDLE)),
            Layout::GemvFast | Layout::Llm => false,
        };
        match source {
            ZeroPoint::Fixed(_) if is_constant => Ok(Zeros::Middle),
            ZeroPoint::Fixed(_) | ZeroPoint::Stored(_) => Ok(Zeros::Stored),
            ZeroPoint::Offset { .. } => Err(
                "its zero points are floats, and only integers can be stored; \
                 mlx, hqq or quantizing anew can hold it"
                    .to_owned(),
            ),
        }
    }

    /// What packers and kernels assert (clauses A31 and A32).
    fn check_size(&self, held: &Held) -> Result<(), String> {
        let (rows, columns, size) = (held.rows, held.columns, held.group_size);
        if !rows.is_multiple_of(8) {
            return Err(format!(
                "{rows} output features; they must be a multiple of 8 here, gptq and compressed-tensors can hold it"
            ));
        }
        if size == 0 || !columns.is_multiple_of(size) {
            return Err(format!(
                "groups of {size} do not divide {columns} input features; gptq and compressed-tensors can hold it"
            ));
        }
        let multiple = match self.layout {
            Layout::Gemm => return Ok(()),
            Layout::Gemv => 8,
            Layout::GemvFast | Layout::Llm => 64,
        };
        if !columns.is_multiple_of(multiple) {
            return Err(format!(
                "{columns} input features; they must be a multiple of {multiple} here, awq can hold it"
            ));
        }
        if !matches!(size, 16 | 32 | 64 | 128..) {
            return Err(format!(
                "groups of {size}; its kernels have 16, 32, 64 and from 128 on, awq can hold it"
            ));
        }
        Ok(())
    }

    fn tensor(&self, module: &str, held: &Held) -> QuantizedTensor {
        let code = Code::Integer {
            bits: BITS,
            encoding: IntegerEncoding::Unsigned,
        };
        let granularity = Granularity::Group {
            size: held.group_size,
        };
        let is_product = matches!(self.layout, Layout::GemvFast | Layout::Llm);
        let zero_point = match held.zeros {
            Zeros::Middle => ZeroPoint::Fixed(i32::from(MIDDLE)),
            Zeros::Stored if is_product => ZeroPoint::Stored(ZeroCoding::NegatedProduct),
            Zeros::Stored => ZeroPoint::Stored(ZeroCoding::Direct),
        };
        let arithmetic = if is_product {
            Arithmetic::RoundedZero(held.scale)
        } else {
            Arithmetic::ScaledDifference
        };
        QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: self.id(),
            shape: vec![held.rows, held.columns],
            scheme: Scheme {
                zero_point,
                arithmetic,
                ..Scheme::plain(code, granularity, ScaleCoding::Float(held.scale))
            },
            reference_dtype: held.scale,
            parts: self.parts(module, held),
        }
    }

    /// The three tensors of a module.
    fn parts(&self, module: &str, held: &Held) -> Vec<Part> {
        let (rows, columns) = (held.rows, held.columns);
        let groups = columns / held.group_size;
        let padded = sizes::padded_groups(columns, held.group_size);
        let float = crate::scheme::dtype_of(held.scale);
        let (codes, scales, zeros, extent) = match self.layout {
            Layout::Gemm => (
                (Dtype::I32, [columns, rows / 8]),
                [groups, rows],
                (Dtype::I32, [groups, rows / 8]),
                None,
            ),
            Layout::Gemv => (
                (Dtype::I32, [rows, columns / 8]),
                [rows, padded],
                (Dtype::I32, [rows, padded / 8]),
                Some([rows, padded]),
            ),
            Layout::GemvFast | Layout::Llm => (
                (Dtype::I16, [rows / 4, columns]),
                [padded, rows],
                (float, [padded, rows]),
                Some([rows, padded]),
            ),
        };
        let storages = storages(self.layout, BITS);
        let name = |ending: &str| format!("{module}.{ending}");
        let plan = |role, ending, (dtype, shape): (Dtype, [u64; 2]), storage| {
            planned(role, name(ending), dtype, shape.to_vec(), storage)
        };
        let zero_storage = match held.zeros {
            Zeros::Middle => constant(storages.zeros),
            Zeros::Stored => storages.zeros,
        };
        vec![
            plan(Role::Codes, "qweight", codes, storages.codes),
            Part {
                extent,
                ..plan(Role::Scale, "scales", (float, scales), storages.scales)
            },
            Part {
                extent,
                ..plan(Role::ZeroPoint, self.layout.zeros(), zeros, zero_storage)
            },
        ]
    }
}

/// The same words with 8 in every lane; other storages have no lanes.
fn constant(storage: Storage) -> Storage {
    let Storage::Packed {
        axes,
        packing,
        along,
    } = storage
    else {
        return storage;
    };
    Storage::PackedConstant {
        axes,
        packing,
        along,
        lane: MIDDLE,
    }
}

fn wrong_bits(bits: u32) -> String {
    format!("{bits} bits; it has 4, gptq and compressed-tensors can hold it")
}

/// Whether codes are 4-bit integers times a scale each and nothing else.
///
/// # Errors
/// What else they are, for people.
fn plain_integers(scheme: &Scheme) -> Result<(), String> {
    let Code::Integer { bits, .. } = scheme.code else {
        return Err("it holds integers only; fp8 or compressed-tensors may hold it".to_owned());
    };
    if bits != BITS {
        return Err(wrong_bits(bits));
    }
    if scheme.super_scale != SuperScale::None {
        return Err("its scales are scaled themselves, which it cannot store".to_owned());
    }
    if scheme.direction != ScaleDirection::Multiply {
        return Err("its scales divide, and its readers multiply".to_owned());
    }
    if scheme.basis != Basis::WEIGHT {
        return Err("it is stored in another basis (rotated, rescaled or in parts)".to_owned());
    }
    Ok(())
}

/// Its groups are consecutive input features of a row.
fn group_size(source: Granularity, columns: u64) -> Result<u64, String> {
    match source {
        Granularity::Group { size } | Granularity::Block { columns: size, .. } => Ok(size),
        Granularity::Channel | Granularity::Tensor => Ok(columns.max(1)),
        Granularity::Flat { size } if size > 0 && columns.is_multiple_of(size) => Ok(size),
        Granularity::IndexedGroup { .. } => Err(
            "its groups are in activation order, and it has no group index; \
             gptq and compressed-tensors can hold it"
                .to_owned(),
        ),
        Granularity::Flat { .. } | Granularity::Strided { .. } => Err(
            "its groups do not lie within rows, and scales here are per group of a row".to_owned(),
        ),
    }
}

/// The one group size of all modules; −1 where every module has one group and rows differ in length.
///
/// # Errors
/// Why there is none, for people.
fn common_group_size(written: &Written<'_>) -> Result<i64, String> {
    let signed = |size: u64| i64::try_from(size).unwrap_or(-1);
    let size_of = |m: &QuantizedTensor| group_size(m.scheme.granularity, m.in_features());
    let sizes: BTreeSet<u64> = written
        .modules
        .iter()
        .map(size_of)
        .collect::<Result<_, _>>()?;
    let mut distinct = sizes.iter();
    match (distinct.next(), distinct.next(), written.asked.same()) {
        (Some(&size), None, _) => Ok(signed(size)),
        (Some(first), Some(second), _) => {
            let is_row = |m: &QuantizedTensor| size_of(m) == Ok(m.in_features());
            if written.modules.iter().all(is_row) {
                return Ok(-1);
            }
            Err(format!(
                "groups of {first} and of {second} input features; it has one group size for all, \
                 gptq and compressed-tensors can hold several"
            ))
        }
        (None, _, Some(preset)) => Ok(match preset.granularity {
            PresetGranularity::Group { size } => signed(size),
            PresetGranularity::Channel
            | PresetGranularity::Tensor
            | PresetGranularity::Block { .. } => -1,
        }),
        (None, _, None) => Err("no module is quantized".to_owned()),
    }
}

/// Readers look for an entry anywhere in a module's name: one that is also found in a quantized module cannot be written.
fn check_ignored(ignored: &[&str], modules: &[QuantizedTensor]) -> Result<(), String> {
    for entry in ignored {
        if let Some(found) = modules.iter().find(|m| m.module.contains(entry)) {
            return Err(format!(
                "{entry} is left dense and readers of modules_to_not_convert look for it anywhere in a name: they would \
                 find it in {}, which is quantized; quantize both or neither",
                found.module
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convention::Asked;

    fn preset(name: &str) -> Preset {
        Preset::by_name(name).unwrap()
    }

    #[test]
    fn symmetric_zero_points_are_eights_and_padding_is_zero() {
        // Two groups of 128 are padded to eight in gemv.
        for (writer, row) in [(&GEMM, vec![0x88; 8]), (&GEMV, vec![0x88, 0, 0, 0])] {
            let tensor = writer
                .lay_out("m", &[16, 256], &preset("W4A16"), Float::Bf16)
                .unwrap();
            let regions = crate::encode::constant_regions(&tensor);
            assert_eq!(regions.len(), 1);
            let shape = &tensor.parts[regions[0].part].shape;
            let rows = usize::try_from(shape[0]).unwrap();
            assert_eq!(regions[0].bytes, row.repeat(rows), "{}", writer.id());
            assert_eq!(tensor.reference_dtype, Float::F16);
        }
    }

    #[test]
    fn what_it_cannot_hold_is_refused_with_an_alternative() {
        type Case = (
            &'static Writer,
            &'static str,
            [u64; 2],
            Option<i64>,
            &'static str,
        );
        let cases: [Case; 8] = [
            (&GEMM, "W8A16", [16, 256], None, "gptq"),
            (&GEMM, "FP8_BLOCK", [128, 128], None, "compressed-tensors"),
            (&GEMM, "W4A16", [12, 256], None, "multiple of 8"),
            (&GEMM, "W4A16", [16, 192], None, "do not divide"),
            (&GEMV, "W4A16", [16, 96], Some(48), "awq can"),
            (&GEMV_FAST, "W4A16", [16, 256], None, "awq_gemv"),
            (
                &GEMV_FAST,
                "W4A16_ASYM",
                [16, 96],
                Some(32),
                "multiple of 64",
            ),
            (&GEMM, "W4A16", [16, 0], Some(0x7fff_ffff), ""),
        ];
        let mut refused = 0;
        for (writer, name, shape, size, reason) in cases {
            let preset = preset(name).with_group_size(size).unwrap();
            match writer.lay_out("m", &shape, &preset, Float::F16) {
                Ok(tensor) => assert_eq!(shape[1], 0, "{:?}", tensor.shape),
                Err(e) => {
                    refused += 1;
                    assert!(e.to_string().contains(reason), "{e}");
                }
            }
        }
        assert_eq!(refused, 7);
        let stack = GEMM.lay_out("m", &[4, 64, 128], &preset("W4A16"), Float::F16);
        assert!(stack.is_err());
    }

    #[test]
    fn padding_follows_the_group_size() {
        let asym = preset("W4A16_ASYM").with_group_size(Some(32)).unwrap();
        let gemv = GEMV.lay_out("m", &[8, 256], &asym, Float::F16).unwrap();
        let shapes: Vec<_> = gemv.parts.iter().map(|p| p.shape.clone()).collect();
        assert_eq!(shapes, [vec![8, 32], vec![8, 32], vec![8, 4]]);
        let fast = GEMV_FAST
            .lay_out("m", &[8, 256], &asym, Float::F16)
            .unwrap();
        let shapes: Vec<_> = fast.parts.iter().map(|p| p.shape.clone()).collect();
        assert_eq!(shapes, [vec![2, 256], vec![32, 8], vec![32, 8]]);
        assert_eq!(fast.parts[2].dtype, Dtype::F16);
    }

    /// Modules of 8 output features in groups as wide as given.
    fn modules(sizes: &[(&str, u64, i64)]) -> Vec<QuantizedTensor> {
        let lay_out = |&(name, columns, size): &(&str, u64, i64)| {
            let preset = preset("W4A16").with_group_size(Some(size)).unwrap();
            GEMM.lay_out(name, &[8, columns], &preset, Float::F16)
                .unwrap()
        };
        sizes.iter().map(lay_out).collect()
    }

    fn config(modules: &[QuantizedTensor], ignored: &[&str]) -> Result<Map<String, Value>, Error> {
        let ignored: Vec<String> = ignored.iter().map(|&s| s.to_owned()).collect();
        let written = Written {
            modules,
            ignored: &ignored,
            asked: Asked::Nothing,
        };
        GEMM.config(&written).map(|edit| edit.quantization_config)
    }

    #[test]
    fn one_group_size_holds_for_all_modules() {
        let same = config(&modules(&[("a", 256, 64), ("b", 128, 64)]), &[]).unwrap();
        assert_eq!(same["group_size"], 64);
        let rows = config(&modules(&[("a", 256, -1), ("b", 128, -1)]), &[]).unwrap();
        assert_eq!(rows["group_size"], -1);
        let e = config(&modules(&[("a", 256, 64), ("b", 128, 128)]), &[]).unwrap_err();
        assert!(e.to_string().contains("one group size"), "{e}");
        assert!(config(&[], &[]).is_err());
    }

    #[test]
    fn modules_left_dense_are_listed_unless_their_name_is_part_of_another() {
        let modules = modules(&[("model.0.gate_proj", 128, 128)]);
        let listed = config(&modules, &["lm_head", "model.0.router"]).unwrap();
        assert_eq!(listed["modules_to_not_convert"], json!(["model.0.router"]));
        assert_eq!(listed["lm_head"], false);
        let none = config(&modules, &["lm_head"]).unwrap();
        assert_eq!(none["modules_to_not_convert"], Value::Null);
        let e = config(&modules, &["model.0.gate"]).unwrap_err();
        assert!(e.to_string().contains("model.0.gate_proj"), "{e}");
    }
}
