//! Forms of FP8 and `ModelOpt` of which there is no fixture, by hand from their readers' sources.

use std::collections::BTreeMap;

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::Backend;
use safequant::schemes::{Decoder, Error, Model, QuantizedTensor, RowsOut};
use serde_json::{Value, json};

use super::fixture::{Dense, Draft};

fn dense(dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Dense {
    let len = usize::try_from(shape.iter().product::<u64>() * dtype.bits() / 8).unwrap();
    assert_eq!(bytes.len(), len);
    Dense {
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

fn checkpoint(tensors: Vec<(&str, Dense)>, quantization: &Value) -> Checkpoint {
    let config = json!({"dtype": "bfloat16", "quantization_config": quantization});
    let tensors = tensors.into_iter().map(|(n, d)| (n.to_owned(), d));
    Draft {
        tensors: tensors.collect(),
        documents: BTreeMap::from([("config.json".into(), serde_json::to_vec(&config).unwrap())]),
    }
    .open()
}

fn values(checkpoint: &Checkpoint, tensor: &QuantizedTensor) -> Vec<f32> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
    let mut out = vec![0.0; n];
    decoder
        .rows(0..tensor.n_rows(), RowsOut::F32(&mut out))
        .unwrap();
    out
}

/// `[2, 32]`: the codes 1 and 2 in turns, 0.5 and 1.
fn halves_and_ones() -> Vec<u8> {
    vec![0x21; 32]
}

/// fp8.md, clause F4a.
#[test]
fn experts_of_deepseek_v4_are_two_codes_to_a_byte() {
    let settings =
        json!({"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"});
    for dtype in [Dtype::F8E8M0, Dtype::U8] {
        let checkpoint = checkpoint(
            vec![
                (
                    "e.0.w1.weight",
                    dense(Dtype::I8, &[2, 16], halves_and_ones()),
                ),
                ("e.0.w1.scale", dense(dtype, &[2, 1], vec![127, 129])),
            ],
            &settings,
        );
        let model = Model::bind(&checkpoint).unwrap();
        let tensor = model.module("e.0.w1").unwrap();
        assert_eq!(tensor.shape, [2, 32]);
        let values = values(&checkpoint, tensor);
        assert_eq!(values[..4], [0.5, 1.0, 0.5, 1.0]);
        assert_eq!(values[32..36], [2.0, 4.0, 2.0, 4.0]);
    }
}

/// fp8.md, clause F7a.
#[test]
fn mxfp8_of_transformers_has_a_power_of_two_for_32_columns() {
    let tensors = || {
        vec![
            ("m.weight", dense(Dtype::F8E4M3, &[2, 64], vec![0x38; 128])),
            (
                "m.weight_scale_inv",
                dense(Dtype::U8, &[2, 2], vec![127, 128, 126, 255]),
            ),
        ]
    };
    for block in [Value::Null, json!([1, 32])] {
        let settings = json!({"quant_method": "mxfp8", "weight_block_size": block});
        let checkpoint = checkpoint(tensors(), &settings);
        let model = Model::bind(&checkpoint).unwrap();
        let values = values(&checkpoint, model.module("m").unwrap());
        let starts = [0, 32, 64, 96].map(|i| values[i]);
        assert_eq!(starts, [1.0, 2.0, 0.5, f32::INFINITY]);
    }
}

/// modelopt.md, clauses MO5 and MO7.
#[test]
fn fused_experts_of_modelopt_may_be_stored_transposed() {
    let settings = json!({"quant_method": "modelopt", "quant_algo": "NVFP4"});
    // Two experts of [3, 16]: stored [2, 8, 3], scales [2, 1, 3].
    let scales = vec![0x38, 0x40, 0x48, 0x38, 0x38, 0x38];
    let seconds = [1.0_f32, 0.5]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    let checkpoint = checkpoint(
        vec![
            ("e.down_proj", dense(Dtype::U8, &[2, 8, 3], vec![0x21; 48])),
            (
                "e.down_proj_weight_scale",
                dense(Dtype::F8E4M3, &[2, 1, 3], scales),
            ),
            (
                "e.down_proj_weight_scale_2",
                dense(Dtype::F32, &[2], seconds),
            ),
        ],
        &settings,
    );
    let model = Model::bind(&checkpoint).unwrap();
    let tensor = model.module("e.down_proj").unwrap();
    assert_eq!(
        (tensor.weight.as_str(), tensor.shape.as_slice()),
        ("e.down_proj", &[2, 3, 16][..])
    );
    let values = values(&checkpoint, tensor);
    let starts: Vec<f32> = values.chunks_exact(16).map(|row| row[0] + row[1]).collect();
    assert_eq!(starts, [1.5, 3.0, 6.0, 0.75, 0.75, 0.75]);
}

/// modelopt.md, clauses MO2, MO3 and MO5.
#[test]
fn modelopt_configurations_that_tensors_deny_are_refused() {
    let tensors = || {
        vec![
            ("m.q.weight", dense(Dtype::F8E4M3, &[2, 32], vec![0x38; 64])),
            (
                "m.q.weight_scale",
                dense(Dtype::F32, &[], vec![0, 0, 128, 63]),
            ),
        ]
    };
    let bind = |settings: Value| Model::bind(&checkpoint(tensors(), &settings));
    let fine = json!({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"m.q": {"quant_algo": "FP8"}}});
    assert_eq!(bind(fine).unwrap().quantized.len(), 1);
    for bad in [
        json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        json!({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["m.*"]}),
        json!({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}),
        json!({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"m": {"quant_algo": "MXFP8"}}}),
    ] {
        let error = bind(bad.clone()).unwrap_err();
        let is_told = matches!(error, Error::Contradiction { .. } | Error::PartShape { .. });
        assert!(
            is_told && error.to_string().contains("m.q"),
            "{bad}: {error}"
        );
    }
}
