//! MLX's payload in other spellings, without a configuration, and broken.

use std::collections::BTreeMap;

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::{Backend, Float};
use safequant::schemes::{
    Arithmetic, Decoder, Error, ErrorGroup, Model, RowsOut, Written, convention,
};
use serde_json::{Value, json};

use super::fixture::{self, Dense, Draft, laid_out, refused};

const AFFINE: &str = "mlx/mlx-6bit-g32";
const MXFP4: &str = "mlx/mlx-mxfp4";
const MIXED: &str = "mlx/mlx-mixed";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// Every quantized weight in F32.
fn values(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u32>> {
    let model = Model::bind(checkpoint).unwrap();
    assert!(!model.quantized.is_empty());
    let decode = |tensor: &safequant::schemes::QuantizedTensor| {
        let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
        let len = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
        let mut out = vec![0.0; len];
        decoder
            .rows(0..tensor.n_rows(), RowsOut::F32(&mut out))
            .unwrap();
        let bits = out.into_iter().map(f32::to_bits).collect();
        (tensor.weight.clone(), bits)
    };
    model.quantized.iter().map(decode).collect()
}

fn without_config(name: &str) -> Draft {
    let mut draft = Draft::of(name);
    draft.documents.clear();
    draft
}

/// mlx.md M12.
#[test]
fn float_modes_are_told_by_the_shapes_alone() {
    for name in [MXFP4, "mlx/mlx-mxfp8", "mlx/mlx-nvfp4"] {
        let expected = values(&Draft::of(name).open());
        assert_eq!(values(&without_config(name).open()), expected, "{name}");
    }
}

/// mlx.md M12.
#[test]
fn affine_without_a_configuration_is_refused_with_the_candidates() {
    let e = refused(without_config(AFFINE));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
    let text = e.to_string();
    assert!(
        text.contains("3 bits in groups of 64, 6 bits in groups of 32"),
        "{text}"
    );
    // 1024 is 8 times 128 and nothing else.
    let wide = "mlx/mlx-8bit-g128";
    let expected = values(&Draft::of(wide).open());
    assert_eq!(values(&without_config(wide).open()), expected);
}

/// mlx.md M3, M14.
#[test]
fn the_metal_quantizer_of_transformers_rounds_once() {
    let expected = values(&Draft::of(AFFINE).open());
    let mut draft = Draft::of(AFFINE).configure(|c| {
        c.as_object_mut().unwrap().remove("quantization");
        c["quantization_config"] = json!({"quant_method": "metal", "bits": 6, "group_size": 32});
    });
    for (name, _) in &mut draft.tensors {
        if let Some(module) = name.strip_suffix(".biases") {
            *name = format!("{module}.qbiases");
        }
    }
    let checkpoint = draft.open();
    assert_eq!(values(&checkpoint), expected);
    let model = Model::bind(&checkpoint).unwrap();
    let tensor = model.module(Q).unwrap();
    assert_eq!(tensor.scheme.arithmetic, Arithmetic::ScaledDifference);
    assert_eq!(tensor.reference_dtype, Float::F16);
}

/// mlx.md M4.
#[test]
fn uqff_says_its_sizes_in_tensors() {
    let number = |value: u8| Dense {
        dtype: Dtype::U8,
        shape: vec![],
        bytes: vec![value],
    };
    let draft = |bits: u8, group: u8| {
        let mut draft = without_config(AFFINE);
        let mut modules = Vec::new();
        for (name, _) in &mut draft.tensors {
            if let Some(module) = name.clone().strip_suffix(".biases") {
                *name = format!("{module}.weight.biases");
                modules.push(module.to_owned());
            } else if let Some(module) = name.clone().strip_suffix(".scales") {
                *name = format!("{module}.weight.scales");
            }
        }
        for module in modules {
            draft
                .tensors
                .push((format!("{module}.weight.bits"), number(bits)));
            draft
                .tensors
                .push((format!("{module}.weight.group_size"), number(group)));
        }
        draft
    };
    let expected = values(&Draft::of(AFFINE).open());
    assert_eq!(values(&draft(6, 32).open()), expected);
    let e = refused(draft(40, 32));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
    let e = refused(draft(4, 32));
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
}

/// mlx.md M8 to M11.
#[test]
fn contradictions_name_both_sides() {
    let both = |name: &str, key: &str, value: Value| {
        Draft::of(name).configure(|c| {
            for place in ["quantization", "quantization_config"] {
                c[place][key] = value.clone();
            }
        })
    };
    for (name, key, value) in [
        (AFFINE, "bits", json!(4)),
        (AFFINE, "group_size", json!(64)),
        (AFFINE, "mode", json!("mxfp4")),
        (MXFP4, "mode", json!("affine")),
        (AFFINE, Q, json!(false)),
        (AFFINE, Q, json!({"bits": 6})),
        (AFFINE, "model.norm", json!({"bits": 6, "group_size": 32})),
    ] {
        let e = refused(both(name, key, value.clone()));
        assert!(
            matches!(e, Error::Contradiction { .. }),
            "{name} {key} {value}: {e}"
        );
    }
    let e = refused(both(MXFP4, "group_size", json!(64)));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
    let e = refused(Draft::of(AFFINE).configure(|c| c["quantization"]["bits"] = json!(3)));
    assert!(matches!(e, Error::ConfigsDisagree { .. }), "{e}");
    for value in [json!(0), json!(9), json!("4"), json!(-1), json!(1e9)] {
        let e = refused(both(AFFINE, "bits", value.clone()));
        assert!(matches!(e, Error::ConfigValue { .. }), "{value}: {e}");
    }
}

#[test]
fn missing_and_wrong_parts_are_named() {
    let biases = format!("{Q}.biases");
    let scales = format!("{Q}.scales");
    let e = refused(Draft::of(AFFINE).without(&biases));
    assert!(matches!(e, Error::MissingPart { .. }), "{e}");
    let e = refused(Draft::of(AFFINE).change(&biases, |d| d.dtype = Dtype::BF16));
    assert!(matches!(e, Error::PartDtype { .. }), "{e}");
    for part in [&biases, &scales] {
        let e = refused(Draft::of(AFFINE).change(part, |d| d.shape.reverse()));
        assert!(matches!(e, Error::PartShape { .. }), "{part}: {e}");
    }
    // Without scales nothing says that the words are codes: not dense either.
    let e = refused(Draft::of(AFFINE).without(&scales));
    assert_eq!(e.group(), ErrorGroup::Unsupported, "{e}");
    // A stack whose leading dimensions differ.
    let e = refused(Draft::of(MIXED).change(&scales, |d| d.shape.insert(0, 1)));
    assert!(matches!(e, Error::PartShape { .. }), "{e}");
}

/// mlx.md M17, M18.
#[test]
fn writing_gives_the_parts_and_settings_of_mlx() {
    let mut compared = 0;
    for fixture in fixture::all() {
        if !fixture.name.starts_with("mlx/") {
            continue;
        }
        let model = Model::bind(&fixture.open()).unwrap();
        for tensor in &model.quantized {
            assert_eq!(laid_out(tensor), *tensor, "{}", fixture.name);
            compared += 1;
        }
        let writer = convention("mlx")
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        let written = Written {
            modules: &model.quantized,
            ignored: &[],
            asked: safequant::schemes::Asked::Nothing,
        };
        let edit = writer.config(&written).unwrap();
        let (_, documents) = fixture.files();
        let config: Value = serde_json::from_slice(&documents["config.json"]).unwrap();
        assert_eq!(
            edit.config["quantization"], config["quantization"],
            "{}",
            fixture.name
        );
        let copy = Value::Object(edit.quantization_config);
        assert_eq!(copy, config["quantization_config"], "{}", fixture.name);
    }
    assert!(compared >= 85, "{compared} weights");
}
