//! Writing GPTQ, first and second format: parts, `quantize_config.json`, and the same in `config.json`.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON values are not our enum, and everything but the expected kind is one error"
)]

use safequant_container::Dtype;
use safequant_kernels::Float;
use serde_json::{Map, Value, json};

use super::words;
use crate::binding::{matrix_only, planned};
use crate::scheme::Packing;
use crate::{
    Axes, Axis, Code, ConfigEdit, ConventionWriter, Error, Granularity, IntegerEncoding, Part,
    Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleRule, Scheme, Storage,
    WeightCode, Written, ZeroCoding, ZeroPoint,
};

/// One of the two formats.
pub(super) struct Writer {
    id: &'static str,
    coding: ZeroCoding,
}

pub(super) static V1: Writer = Writer {
    id: "gptq",
    coding: ZeroCoding::MinusOne,
};
pub(super) static V2: Writer = Writer {
    id: "gptq_v2",
    coding: ZeroCoding::Direct,
};

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        self.id
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
        let refuse = |reason: String| Error::CannotWrite {
            convention: self.id,
            module: module.to_owned(),
            preset: preset.name.to_owned(),
            reason,
        };
        let [rows, columns] = matrix_only(self.id, module, shape, preset.name)?;
        let (bits, is_symmetric) = match preset.weights {
            WeightCode::SymmetricInteger { bits } => (bits, true),
            WeightCode::AsymmetricInteger { bits } => (bits, false),
            WeightCode::Minifloat(_)
            | WeightCode::Nvfp4
            | WeightCode::Mx(_)
            | WeightCode::Codebook(_)
            | WeightCode::Block(_) => {
                return Err(refuse(
                    "it holds integers only; fp8 or compressed-tensors can hold it".to_owned(),
                ));
            }
        };
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return Err(refuse(format!("{bits} bits; it has 2, 3, 4 and 8")));
        }
        if bits == 3 && !(rows.is_multiple_of(32) && columns.is_multiple_of(32)) {
            return Err(refuse(format!(
                "3 bits need multiples of 32 on both sides, not {shape:?}"
            )));
        }
        let (granularity, groups) = match preset.granularity {
            PresetGranularity::Group { size } => {
                (Granularity::Group { size }, columns.div_ceil(size.max(1)))
            }
            PresetGranularity::Channel => (Granularity::Channel, 1),
            PresetGranularity::Tensor | PresetGranularity::Block { .. } => {
                return Err(refuse("its scales are per group or channel".to_owned()));
            }
        };
        let zero_point = if is_symmetric {
            ZeroPoint::Fixed(1 << (bits - 1))
        } else {
            ZeroPoint::Stored(self.coding)
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: self.id,
            shape: shape.to_vec(),
            scheme: Scheme {
                zero_point,
                ..Scheme::plain(
                    Code::Integer {
                        bits,
                        encoding: IntegerEncoding::Unsigned,
                    },
                    granularity,
                    ScaleCoding::Float(Float::F16),
                )
            },
            reference_dtype: Float::F16,
            parts: self.parts(module, [rows, columns, groups], bits, zero_point),
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
        let modules = written.modules;
        let size = match preset.granularity {
            PresetGranularity::Group { size } => json!(size),
            PresetGranularity::Channel => json!(-1),
            PresetGranularity::Tensor | PresetGranularity::Block { .. } => {
                return Err(Error::CannotWrite {
                    convention: self.id,
                    module: "the configuration".to_owned(),
                    preset: preset.name.to_owned(),
                    reason: "its scales are per group or channel".to_owned(),
                });
            }
        };
        let is_head = |name: &str| name == "lm_head" || name.ends_with(".lm_head");
        let dynamic: Map<String, Value> = ignored
            .iter()
            .filter(|name| !is_head(name))
            .map(|name| (format!("-:^{}$", escape(name)), json!({})))
            .collect();
        let config = json!({
            "bits": preset.bits(),
            "dynamic": dynamic,
            "group_size": size,
            "desc_act": false,
            "lm_head": modules.iter().any(|m| is_head(&m.module)),
            "method": "gptq",
            "quant_method": "gptq",
            "format": self.id,
            "checkpoint_format": self.id,
            "pack_dtype": "int32",
            "meta": { "quantizer": [concat!("safequant:", env!("CARGO_PKG_VERSION"))] },
            "sym": matches!(preset.weights, WeightCode::SymmetricInteger { .. }),
        });
        let mut map = match config {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        if dynamic_is_empty(&map) {
            map.shift_remove("dynamic");
        }
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
        &["W4A16", "W4A16_ASYM", "W8A16", "W3A16", "W2A16"]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::Gptq
    }
}

impl Writer {
    /// The four tensors of a module: `sizes` are output features, input features, groups.
    fn parts(&self, module: &str, sizes: [u64; 3], bits: u32, zero: ZeroPoint) -> Vec<Part> {
        let [rows, columns, groups] = sizes;
        let (axes, packing) = (Axes::InOut, Packing::LsbFirst { bits });
        let half = 1_u8 << (bits - 1);
        let zeros = match zero {
            ZeroPoint::Fixed(_) => Storage::PackedConstant {
                axes,
                packing,
                along: Axis::Out,
                lane: half - u8::from(self.coding == ZeroCoding::MinusOne),
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
                Dtype::F16,
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

fn dynamic_is_empty(map: &Map<String, Value>) -> bool {
    map.get("dynamic")
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty)
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
            assert_eq!(zeros.bytes, vec![byte; 8], "{}", writer.id);
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
