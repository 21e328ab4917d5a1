//! Writing what `ComfyUI` loads: weights with a `comfy_quant` marker each (specs/conventions/comfyui.md, clauses C29 to C35).

mod form;

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat};

use self::form::{Form, Inputs, Shared};
use super::ID;
use super::markers::MARKER;
use crate::binding::cannot_write;
use crate::{
    Activations, Basis, ColumnFactor, ConfigEdit, ConventionWriter, Error, Preset,
    PresetGranularity, QuantizedTensor, Role, ScaleCoding, ScaleRule, WeightCode, Written,
};

pub(super) struct Writer;

/// What can be written, for refusals.
const HOLDS: &str = "it holds FP8 and 8-bit integers per matrix or row, NVFP4, MXFP8, and integers of up to 4 bits in groups";

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
        let form = wanted(preset).map_err(refuse)?;
        let inputs = match preset.activations {
            Activations::Dense => Inputs::Dense,
            Activations::DynamicInt8PerToken
            | Activations::DynamicFp8PerToken
            | Activations::DynamicFp8PerGroup { .. }
            | Activations::DynamicFp4PerGroup { .. } => Inputs::Quantized,
        };
        form.lay(module, shape, source, inputs)
            .map_err(|reason| refuse(&reason))
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        if source.convention == ID {
            return Ok(source.clone());
        }
        let kind = format!("{:?}", source.scheme.code);
        let refuse = |reason: String| refusal(&source.module, &kind, &reason);
        let form = Form::of(source).map_err(refuse)?;
        let factors = source.scheme.basis.columns == ColumnFactor::Inputs;
        let is_weight = Basis {
            columns: ColumnFactor::None,
            ..source.scheme.basis
        } == Basis::WEIGHT;
        if !is_weight || (factors && form != Form::Nvfp4) {
            return Err(refuse(
                "rotated, rescaled and low-rank weights are taken over from itself alone"
                    .to_owned(),
            ));
        }
        let mut tensor = form
            .lay(
                &source.module,
                &source.shape,
                source.reference_dtype,
                Inputs::Quantized,
            )
            .map_err(refuse)?;
        if factors {
            with_factors(&mut tensor, source).map_err(refuse)?;
        }
        with_input_scale(&mut tensor, source, form);
        Ok(tensor)
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        for tensor in written.modules {
            let is_marked = tensor.parts.iter().any(|p| p.name.ends_with(MARKER));
            // A cast needs no description.
            if !is_marked && tensor.scheme.scale != ScaleCoding::One {
                return Err(refusal(
                    &tensor.module,
                    "one part of a file",
                    "it is described for the whole file, in its header or by `scaled_fp8`, which is kept only where every \
                     weight stays as it is",
                ));
            }
        }
        Ok(ConfigEdit {
            metadata: vec![("format".to_owned(), "pt".to_owned())],
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "W8A8",
            "FP8",
            "FP8_DYNAMIC",
            "NVFP4A16",
            "NVFP4",
            "MXFP8A16",
            "MXFP8",
            "INT8",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::ComfyUi
    }
}

fn refusal(module: &str, wanted: &str, reason: &str) -> Error {
    cannot_write(ID, module, wanted, reason)
}

/// The form of a preset, or why there is none.
fn wanted(preset: &Preset) -> Result<Form, &'static str> {
    let shared = match preset.granularity {
        PresetGranularity::Tensor => Some(Shared::Matrix),
        PresetGranularity::Channel => Some(Shared::Row),
        PresetGranularity::Group { .. } | PresetGranularity::Block { .. } => None,
    };
    let group = match preset.granularity {
        PresetGranularity::Group { size } => size,
        PresetGranularity::Tensor
        | PresetGranularity::Channel
        | PresetGranularity::Block { .. } => 0,
    };
    match (preset.weights, shared) {
        (WeightCode::Minifloat(format @ (Minifloat::E4M3 | Minifloat::E5M2)), Some(shared)) => {
            Ok(Form::Fp8(format, shared))
        }
        (WeightCode::Minifloat(_), None) => Err("its FP8 has one scale per matrix or per row"),
        (WeightCode::SymmetricInteger { bits: 8 }, Some(shared)) => Ok(Form::Int8(shared)),
        (WeightCode::Nvfp4, _) if group == form::NVFP4_GROUP => Ok(Form::Nvfp4),
        (WeightCode::Mx(Minifloat::E4M3), _) if group == form::MXFP8_GROUP => Ok(Form::Mxfp8),
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
        ) => Err(
            "it quantizes to FP8 and 8-bit integers per matrix or row, NVFP4 and MXFP8 with their own group sizes",
        ),
    }
}

/// The factors of the inputs, which `ComfyUI` applies as `ModelOpt` does and calls the same.
fn with_factors(tensor: &mut QuantizedTensor, source: &QuantizedTensor) -> Result<(), String> {
    let name = format!("{}.pre_quant_scale", tensor.module);
    let part = source
        .part(Role::ColumnFactor)
        .filter(|part| part.name == name && part.shape == [source.in_features()])
        .ok_or_else(|| "its input factors have another name".to_owned())?;
    tensor.scheme.basis.columns = ColumnFactor::Inputs;
    let at = tensor.parts.len() - 1;
    tensor.parts.insert(at, part.clone());
    Ok(())
}

/// A static scale of the activations has the same name and direction as in `ModelOpt` and compressed-tensors.
fn with_input_scale(tensor: &mut QuantizedTensor, source: &QuantizedTensor, form: Form) {
    let takes = match form {
        Form::Fp8(_, shared) => shared == Shared::Matrix,
        Form::Nvfp4 => true,
        Form::Int8(_) | Form::Mxfp8 | Form::Int4 { .. } => false,
    };
    let name = format!("{}.input_scale", tensor.module);
    let is_one = |shape: &[u64]| shape.iter().product::<u64>() == 1;
    let found = source.parts.iter().find(|part| {
        part.role == Role::Auxiliary
            && part.name == name
            && part.dtype == Dtype::F32
            && is_one(&part.shape)
    });
    if let (true, Some(part)) = (takes, found) {
        tensor.parts.push(part.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convention::Asked;
    use crate::{Granularity, Part};

    fn layout(preset: &str, shape: &[u64]) -> QuantizedTensor {
        let preset = Preset::by_name(preset).unwrap();
        Writer.lay_out("m", shape, &preset, Float::Bf16).unwrap()
    }

    fn parts(tensor: &QuantizedTensor) -> Vec<(&str, Dtype, Vec<u64>)> {
        let of = |p: &'_ Part| (p.dtype, p.shape.clone());
        tensor
            .parts
            .iter()
            .map(|p| (p.name.as_str(), of(p).0, of(p).1))
            .collect()
    }

    fn marker(tensor: &QuantizedTensor) -> String {
        let part = tensor.parts.iter().find(|p| p.name.ends_with(MARKER));
        String::from_utf8(part.unwrap().content.clone().unwrap()).unwrap()
    }

    #[test]
    fn padded_formats_state_the_shape_and_tile_their_scales() {
        let tensor = layout("NVFP4", &[20, 72]);
        assert_eq!(
            parts(&tensor),
            [
                ("m.weight", Dtype::U8, vec![32, 40]),
                ("m.weight_scale", Dtype::F8E4M3, vec![128, 8]),
                ("m.weight_scale_2", Dtype::F32, vec![]),
                ("m.comfy_quant", Dtype::U8, vec![43]),
            ]
        );
        assert_eq!(tensor.parts[0].extent, Some([32, 80]));
        assert_eq!(
            marker(&tensor),
            r#"{"format": "nvfp4", "orig_shape": [20, 72]}"#
        );
        let tensor = layout("MXFP8A16", &[3, 64, 64]);
        assert_eq!(parts(&tensor)[1].2, [3, 128, 4]);
        assert_eq!(tensor.parts[0].extent, None);
        let text = r#"{"format": "mxfp8", "full_precision_matrix_mult": true, "orig_shape": [64, 64], "num_experts": 3}"#;
        assert_eq!(marker(&tensor), text);
    }

    #[test]
    fn scales_per_row_keep_a_dimension_and_switch_fp8_products_off() {
        let tensor = layout("FP8_DYNAMIC", &[8, 16]);
        assert_eq!(
            parts(&tensor)[1],
            ("m.weight_scale", Dtype::F32, vec![8, 1])
        );
        assert_eq!(
            marker(&tensor),
            r#"{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}"#
        );
        let tensor = layout("W8A8", &[8, 16]);
        assert_eq!(marker(&tensor), r#"{"format": "int8_tensorwise"}"#);
        assert_eq!(parts(&tensor)[1].2, [8, 1]);
        assert!(parts(&layout("FP8", &[8, 16]))[1].2.is_empty());
    }

    #[test]
    fn what_the_loader_does_not_know_is_refused() {
        for (preset, shape) in [
            ("FP8_BLOCK", vec![128, 128]),
            ("NF4", vec![8, 64]),
            ("NVFP4", vec![2, 3, 16, 16]),
            ("FP8", vec![8]),
        ] {
            let preset = Preset::by_name(preset).unwrap();
            let refused = Writer.lay_out("m", &shape, &preset, Float::Bf16);
            assert!(refused.is_err(), "{} {shape:?}", preset.name);
        }
        let mut source = layout("FP8", &[128, 128]);
        source.convention = "another";
        source.scheme.granularity = Granularity::Block {
            rows: 64,
            columns: 64,
        };
        let error = Writer.lay_out_like(&source).unwrap_err().to_string();
        assert!(error.contains("per matrix or row"), "{error}");
    }

    #[test]
    fn a_part_of_a_file_needs_a_marker_of_its_own() {
        let mut modules = vec![layout("FP8", &[8, 16])];
        let config = |modules: &[QuantizedTensor]| {
            Writer.config(&Written {
                modules,
                ignored: &[],
                asked: Asked::Nothing,
            })
        };
        let edit = config(&modules).unwrap();
        assert!(edit.quantization_config.is_empty());
        modules[0].parts.retain(|p| !p.name.ends_with(MARKER));
        assert!(config(&modules).is_err());
        modules[0].scheme.scale = ScaleCoding::One;
        config(&modules).unwrap();
    }
}
