//! Writing bitsandbytes: 4-bit weights with their states, int8 rows, and what transformers needs in `config.json`.

use safequant_container::Dtype;
use safequant_kernels::{Codebook, DYNAMIC_8BIT, Float};
use serde_json::{Map, Value, json};

use super::state::{Kind, Nested, State};
use super::{ID, book_bytes, n_elements, scheme};
use crate::binding::{cannot_write, constant, matrix_only, planned};
use crate::scheme::Packing;
use crate::{
    Arithmetic, Axes, Basis, Code, ConfigEdit, ConventionWriter, Error, Granularity,
    IntegerEncoding, Part, Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding,
    ScaleRule, Scheme, Storage, SuperScale, WeightCode, Written, ZeroPoint,
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
        let refuse = |reason: &str| refusal(module, preset.name, reason);
        matrix_only(ID, module, shape, preset.name)?;
        match (preset.weights, preset.granularity) {
            (
                WeightCode::Codebook(book) | WeightCode::NestedCodebook(book),
                PresetGranularity::Group { size },
            ) => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.book() == book);
                let kind = kind.ok_or_else(|| refuse("its code books are NF4 and its own FP4"))?;
                let mut state = state(kind, size, shape, source).map_err(|e| refuse(&e))?;
                if let WeightCode::NestedCodebook(_) = preset.weights {
                    state.nested = Some(UNSEEN);
                    return Ok(four_bit(module, &state, Some(dynamic_map())));
                }
                Ok(four_bit(module, &state, None))
            }
            (WeightCode::SymmetricInteger { bits: 8 }, PresetGranularity::Channel) => {
                Ok(int8(module, shape))
            }
            (
                WeightCode::SymmetricInteger { .. }
                | WeightCode::AsymmetricInteger { .. }
                | WeightCode::Minifloat(_)
                | WeightCode::Nvfp4
                | WeightCode::Mx(_)
                | WeightCode::Codebook(_)
                | WeightCode::NestedCodebook(_)
                | WeightCode::Block(_),
                _,
            ) => Err(refuse(
                "it holds NF4 and FP4 in blocks, and symmetric 8-bit integers with a scale per row",
            )),
        }
    }

    fn with_scale_offset(
        &self,
        mut layout: QuantizedTensor,
        offset: f32,
    ) -> Result<QuantizedTensor, Error> {
        let is_of = |kind: &Kind| layout.scheme.code == Code::Codebook(kind.book());
        let kind = Kind::ALL.into_iter().find(is_of);
        let (SuperScale::Nested { size, offset: _ }, Some(kind)) =
            (layout.scheme.super_scale, kind)
        else {
            return Ok(layout);
        };
        layout.scheme.super_scale = SuperScale::Nested { size, offset };
        four_bit_like(&layout, kind).map_err(|e| refusal(&layout.module, kind.name(), &e))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if is_own_spelling(source) {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| refusal(&source.module, &kind, &reason);
        matrix_only(ID, &source.module, &source.shape, &kind)?;
        let scheme = &source.scheme;
        if scheme.basis != Basis::WEIGHT {
            return Err(refuse(
                "its weights are not rotated, rescaled or in parts".to_owned(),
            ));
        }
        match scheme.code {
            Code::Codebook(book @ (Codebook::Nf4 | Codebook::BnbFp4)) => {
                let kind = if book == Codebook::Nf4 {
                    Kind::Nf4
                } else {
                    Kind::Fp4
                };
                four_bit_like(source, kind).map_err(refuse)
            }
            Code::Integer { .. } => match (scheme.zero_point, scheme.granularity) {
                (ZeroPoint::Fixed(_), Granularity::Channel | Granularity::Tensor) => {
                    Ok(int8(&source.module, &source.shape))
                }
                (ZeroPoint::Fixed(_), Granularity::Group { size })
                    if size >= source.in_features() =>
                {
                    Ok(int8(&source.module, &source.shape))
                }
                (ZeroPoint::Fixed(_), _) => Err(refuse(
                    "its integers have one scale per row; compressed-tensors, gptq or mlx can hold groups"
                        .to_owned(),
                )),
                (ZeroPoint::Stored(_) | ZeroPoint::Offset { .. }, _) => Err(refuse(
                    "its integers have no zero points; compressed-tensors, gptq or mlx can hold them"
                        .to_owned(),
                )),
            },
            Code::Codebook(_) | Code::Minifloat(_) | Code::StoredCodebook | Code::Dense(_) => {
                Err(refuse(
                    "its codes are NF4, its own FP4 and 8-bit integers".to_owned(),
                ))
            }
        }
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let is_int8 = |t: &&QuantizedTensor| matches!(t.scheme.code, Code::Integer { .. });
        let n_int8 = written.modules.iter().filter(is_int8).count();
        if n_int8 > 0 && n_int8 < written.modules.len() {
            return Err(refusal(
                "the configuration",
                "4 bits and int8",
                "transformers loads one of the two only",
            ));
        }
        let four_bit = written.modules.iter().find(|t| !is_int8(t));
        let map = settings(written, four_bit);
        Ok(ConfigEdit {
            quantization_config: map,
            metadata: vec![("format".to_owned(), "pt".to_owned())],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &["NF4", "FP4", "NF4_DQ", "FP4_DQ", "INT8"]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Bitsandbytes
    }
}

fn refusal(module: &str, wanted: &str, reason: &str) -> Error {
    cannot_write(ID, module, wanted, reason)
}

/// Whether a tensor was bound by this convention from names that the library itself uses.
fn is_own_spelling(source: &QuantizedTensor) -> bool {
    let scale = source.part(Role::Scale).map(|part| part.name.as_str());
    let names = [
        format!("{}.absmax", source.weight),
        format!("{}.SCB", source.module),
    ];
    source.convention == ID && scale.is_some_and(|name| names.iter().any(|n| n == name))
}

/// Double quantization as the library does it, of a weight that nobody has seen yet: the offset is to come.
const UNSEEN: Nested = Nested {
    block: 256,
    offset: 0.0,
};

/// The table that scale codes index, as it is stored.
fn dynamic_map() -> Vec<u8> {
    let values = DYNAMIC_8BIT.iter();
    values.flat_map(|value| value.to_le_bytes()).collect()
}

/// The state of a weight that is not doubly quantized; the reason where the block size is none.
fn state(kind: Kind, block: u64, shape: &[u64], dtype: Float) -> Result<State, String> {
    if !(32..=4096).contains(&block) || !block.is_power_of_two() {
        return Err(format!(
            "blocks of {block}; it has powers of two from 32 to 4096"
        ));
    }
    if shape.contains(&0) {
        return Err("a weight without elements has no blocks".to_owned());
    }
    Ok(State {
        kind,
        block,
        dtype,
        shape: shape.to_vec(),
        nested: None,
    })
}

/// The layout for the code book codes of another tensor.
fn four_bit_like(source: &QuantizedTensor, kind: Kind) -> Result<QuantizedTensor, String> {
    let scheme = &source.scheme;
    let block = match scheme.granularity {
        Granularity::Group { size } | Granularity::Flat { size } => size,
        Granularity::Channel => source.in_features(),
        Granularity::Tensor
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Strided { .. } => {
            return Err("its scales are per block of consecutive elements".to_owned());
        }
    };
    let is_row = matches!(scheme.granularity, Granularity::Group { .. });
    if is_row && !source.in_features().is_multiple_of(block.max(1)) {
        return Err(format!(
            "groups of {block} end with a row of {}, its blocks do not",
            source.in_features()
        ));
    }
    let mut state = state(kind, block, &source.shape, source.reference_dtype)?;
    let table = source
        .part(Role::ScaleTable)
        .and_then(|part| part.content.clone());
    if let (SuperScale::Nested { size, offset }, Some(_)) = (scheme.super_scale, &table) {
        state.nested = Some(Nested {
            block: size,
            offset,
        });
    }
    Ok(four_bit(&source.module, &state, table))
}

/// A 4-bit weight; `table` is the one that scale codes index, with double quantization.
fn four_bit(module: &str, state: &State, table: Option<Vec<u8>>) -> QuantizedTensor {
    let n = n_elements(&state.shape);
    let n_blocks = n.div_ceil(state.block);
    let weight = format!("{module}.weight");
    let name = |ending: &str| format!("{weight}.{ending}");
    let elements = Storage::Elements { axes: Axes::OutIn };
    let content = |role, ending: &str, bytes: Vec<u8>| Part {
        content: Some(bytes.clone()),
        ..planned(
            role,
            name(ending),
            Dtype::F32,
            vec![crate::storage::to_u64(bytes.len() / 4)],
            elements,
        )
    };
    let flat = Storage::Flat {
        packing: Packing::NibblesHighFirst,
    };
    let scale_dtype = if state.nested.is_some() {
        Dtype::U8
    } else {
        Dtype::F32
    };
    let mut parts = vec![
        planned(
            Role::Codes,
            weight.clone(),
            Dtype::U8,
            vec![n.div_ceil(2), 1],
            flat,
        ),
        planned(
            Role::Scale,
            name("absmax"),
            scale_dtype,
            vec![n_blocks],
            elements,
        ),
        content(Role::Codebook, "quant_map", book_bytes(state.kind)),
    ];
    if let (Some(nested), Some(table)) = (state.nested, table) {
        let above = vec![n_blocks.div_ceil(nested.block)];
        parts.push(planned(
            Role::SuperScale,
            name("nested_absmax"),
            Dtype::F32,
            above,
            elements,
        ));
        parts.push(content(Role::ScaleTable, "nested_quant_map", table));
    }
    let json = state.to_json().into_bytes();
    let ending = format!("quant_state.bitsandbytes__{}", state.kind.name());
    parts.push(Part {
        role: Role::Shape,
        ..constant(
            name(&ending),
            Dtype::U8,
            vec![crate::storage::to_u64(json.len())],
            json,
        )
    });
    let columns = state.shape.last().copied().unwrap_or(1);
    let granularity = if columns.is_multiple_of(state.block) {
        Granularity::Group { size: state.block }
    } else {
        Granularity::Flat { size: state.block }
    };
    QuantizedTensor {
        module: module.to_owned(),
        weight,
        convention: ID,
        shape: state.shape.clone(),
        scheme: scheme(state, granularity),
        reference_dtype: state.dtype,
        parts,
    }
}

/// A weight of int8 rows.
fn int8(module: &str, shape: &[u64]) -> QuantizedTensor {
    let elements = Storage::Elements { axes: Axes::OutIn };
    let rows = shape.first().copied().unwrap_or(0);
    let weight = format!("{module}.weight");
    let code = Code::Integer {
        bits: 8,
        encoding: IntegerEncoding::TwosComplement,
    };
    QuantizedTensor {
        module: module.to_owned(),
        convention: ID,
        shape: shape.to_vec(),
        scheme: Scheme {
            zero_point: ZeroPoint::Fixed(128),
            arithmetic: Arithmetic::Over127,
            ..Scheme::plain(code, Granularity::Channel, ScaleCoding::Float(Float::F32))
        },
        reference_dtype: Float::F32,
        parts: vec![
            planned(
                Role::Codes,
                weight.clone(),
                Dtype::I8,
                shape.to_vec(),
                elements,
            ),
            planned(
                Role::Scale,
                format!("{module}.SCB"),
                Dtype::F32,
                vec![rows],
                elements,
            ),
            constant(
                format!("{module}.weight_format"),
                Dtype::U8,
                Vec::new(),
                vec![0],
            ),
        ],
        weight,
    }
}

/// What `BitsAndBytesConfig.to_dict` writes, in its order; `four_bit` is one of the 4-bit modules, if there are any.
fn settings(written: &Written<'_>, four_bit: Option<&QuantizedTensor>) -> Map<String, Value> {
    let is_head = |name: &str| name == "lm_head" || name.ends_with(".lm_head");
    let has_head = written.modules.iter().any(|t| is_head(&t.module));
    let others = written.ignored.iter().any(|name| !is_head(name));
    // transformers keeps the head dense by itself, but only where no list is given.
    let skipped = (has_head || others).then(|| {
        let mut names = written.ignored.to_vec();
        if !has_head && !names.iter().any(|n| is_head(n)) {
            names.push("lm_head".to_owned());
        }
        names
    });
    let nested = |t: &QuantizedTensor| matches!(t.scheme.super_scale, SuperScale::Nested { .. });
    let is_fp4 = |t: &QuantizedTensor| t.scheme.code == Code::Codebook(Codebook::BnbFp4);
    let compute = four_bit.map_or("float32", |t| match t.reference_dtype {
        Float::Bf16 => "bfloat16",
        Float::F16 => "float16",
        Float::F32 => "float32",
    });
    let config = json!({
        "_load_in_4bit": four_bit.is_some(),
        "_load_in_8bit": four_bit.is_none(),
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": four_bit.map_or("uint8", storage_name),
        "bnb_4bit_quant_type": if four_bit.is_none_or(is_fp4) { "fp4" } else { "nf4" },
        "bnb_4bit_use_double_quant": written.modules.iter().any(nested),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four_bit.is_some(),
        "load_in_8bit": four_bit.is_none(),
        "quant_method": "bitsandbytes",
    });
    config.as_object().cloned().unwrap_or_default()
}

/// torch's name of the dtype that codes are stored in.
fn storage_name(tensor: &QuantizedTensor) -> &'static str {
    let dtype = tensor.part(Role::Codes).map(|part| part.dtype);
    [
        (Dtype::I8, "int8"),
        (Dtype::BF16, "bfloat16"),
        (Dtype::F16, "float16"),
        (Dtype::F32, "float32"),
        (Dtype::F64, "float64"),
    ]
    .into_iter()
    .find(|(stored, _)| dtype == Some(*stored))
    .map_or("uint8", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convention::Asked;

    #[test]
    fn blocks_are_groups_where_they_divide_rows() {
        let preset = Preset::by_name("NF4").unwrap();
        let tensor = Writer
            .lay_out("m", &[3, 128], &preset, Float::Bf16)
            .unwrap();
        assert_eq!(tensor.scheme.granularity, Granularity::Group { size: 64 });
        let odd = Writer.lay_out("m", &[3, 33], &preset, Float::Bf16).unwrap();
        assert_eq!(odd.scheme.granularity, Granularity::Flat { size: 64 });
        let shapes: Vec<_> = odd.parts.iter().map(|p| p.shape.clone()).collect();
        assert_eq!(shapes[..3], [vec![50, 1], vec![2], vec![16]]);
        let json =
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 33]}"#;
        assert_eq!(odd.parts[3].content.as_deref(), Some(json.as_bytes()));
        let wide = preset.with_group_size(Some(96)).unwrap();
        assert!(Writer.lay_out("m", &[3, 96], &wide, Float::Bf16).is_err());
        let w4 = Preset::by_name("W4A16").unwrap();
        assert!(Writer.lay_out("m", &[3, 128], &w4, Float::Bf16).is_err());
    }

    /// bitsandbytes.md B8, B9.
    #[test]
    fn an_offset_stands_in_the_scheme_and_in_the_descriptor() {
        let preset = Preset::by_name("NF4_DQ").unwrap();
        let tensor = Writer
            .lay_out("m", &[257, 64], &preset, Float::Bf16)
            .unwrap();
        let shapes: Vec<_> = tensor.parts.iter().map(|p| p.shape.clone()).collect();
        assert_eq!(
            shapes[..5],
            [vec![8224, 1], vec![257], vec![16], vec![2], vec![256]]
        );
        let moved = Writer.with_scale_offset(tensor.clone(), 0.1).unwrap();
        assert_eq!(
            moved.scheme.super_scale,
            SuperScale::Nested {
                size: 256,
                offset: 0.1
            }
        );
        let json = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [257, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.10000000149011612}"#;
        assert_eq!(moved.parts[5].content.as_deref(), Some(json.as_bytes()));
        assert_eq!(moved.parts[..5], tensor.parts[..5]);
        let back = Writer.with_scale_offset(moved, 0.0).unwrap();
        assert_eq!(back, tensor);
        let plain = Preset::by_name("FP4").unwrap();
        let plain = Writer.lay_out("m", &[2, 64], &plain, Float::F32).unwrap();
        let same = Writer.with_scale_offset(plain.clone(), 0.1).unwrap();
        assert_eq!(same, plain);
    }

    #[test]
    fn the_head_is_told_where_transformers_would_guess_wrong() {
        let preset = Preset::by_name("NF4").unwrap();
        let lay = |name: &str| Writer.lay_out(name, &[2, 64], &preset, Float::F16).unwrap();
        let skipped = |modules: &[QuantizedTensor], ignored: &[&str]| {
            let ignored: Vec<String> = ignored.iter().map(|&s| s.to_owned()).collect();
            let written = Written {
                modules,
                ignored: &ignored,
                asked: Asked::Nothing,
            };
            let edit = Writer.config(&written).unwrap();
            edit.quantization_config["llm_int8_skip_modules"].clone()
        };
        assert_eq!(skipped(&[lay("a")], &["lm_head"]), Value::Null);
        assert_eq!(skipped(&[lay("a"), lay("lm_head")], &[]), json!([]));
        assert_eq!(skipped(&[lay("a")], &["b"]), json!(["b", "lm_head"]));
    }
}
