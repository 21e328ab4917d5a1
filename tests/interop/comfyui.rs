//! `ComfyUI`'s defective files end in an error that names the defect, or in the behavior that the spec page states
//! (specs/conventions/comfyui.md); hostile markers and shapes never get through.

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::{Backend, Float};
use safequant::schemes::{Decoder, Error, Model, RowsOut};

use super::fixture::{self, Dense, Fixture};

fn defective(name: &str) -> Fixture {
    let folder = fixture::root().join("comfyui-audit").join(name);
    let text = std::fs::read(folder.join("fixture.json")).unwrap();
    Fixture {
        name: name.to_owned(),
        folder,
        about: serde_json::from_slice(&text).unwrap(),
    }
}

/// Decodes every weight in F32; by name.
fn decode(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<f32>)>, Error> {
    let model = Model::bind(checkpoint)?;
    let mut weights = Vec::new();
    for tensor in &model.quantized {
        let len = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
        let mut values = vec![0.0; len];
        let decoder = Decoder::new(tensor, checkpoint, Backend::detect())?;
        decoder.rows(0..tensor.n_rows(), RowsOut::F32(&mut values))?;
        weights.push((tensor.weight.clone(), values));
    }
    Ok(weights)
}

#[test]
fn defective_files_are_refused_with_the_reason() {
    let cases = [
        ("bad-rotation", "config_value", "convrot_groupsize"),
        ("header-conflict", "configs_disagree", "convrot"),
        (
            "missing-scale",
            "missing_part",
            "blocks.0.attn.q.weight_scale",
        ),
        ("nul-marker", "config_json", "blocks.0.attn.q.comfy_quant"),
        (
            "prefix-mismatch",
            "contradiction",
            "model.diffusion_model.blocks.0.attn",
        ),
        ("unknown-format", "unsupported_format", "int7_magic"),
        (
            "unmarked-layer",
            "contradiction",
            "blocks.0.attn.q.weight_scale",
        ),
        ("unswizzled-nvfp4", "part_shape", "the tiled grid [256, 4]"),
    ];
    for (name, code, text) in cases {
        let e = decode(&defective(name).open()).unwrap_err();
        assert_eq!(e.code(), code, "{name}: {e}");
        assert!(e.to_string().contains(text), "{name}: {e}");
    }
}

/// The other five: what they decode to is what the spec page says.
#[test]
fn defects_that_leave_the_weights_readable_are_told_or_decoded_as_stored() {
    let evidence = |name: &str| {
        let model = Model::bind(&defective(name).open()).unwrap();
        (model.conventions[0].1.join("; "), model.orphans)
    };
    let (told, orphans) = evidence("orphan-scale");
    assert!(
        told.contains("blocks.9.ghost.weight_scale has no weight"),
        "{told}"
    );
    assert_eq!(orphans, ["blocks.9.ghost.weight_scale"]);
    let (told, orphans) = evidence("dummy-scale");
    assert!(
        told.contains("final.scale_weight is 1 and stands beside a BF16 weight"),
        "{told}"
    );
    assert_eq!(orphans, ["final.scale_weight", "scaled_fp8"]);
    let weights = |name: &str| decode(&defective(name).open()).unwrap();
    let q = |name: &str| {
        weights(name)
            .into_iter()
            .find(|w| w.0 == "blocks.0.attn.q.weight")
            .unwrap()
            .1
    };
    assert!(q("fp8-nan")[0].is_nan());
    assert!(q("inf-scale").iter().all(|v| !v.is_finite()));
    // Padding is not read, whatever it holds: 20 rows and 72 columns.
    assert_eq!(q("dirty-padding").len(), 20 * 72);
}

fn draft(tensors: Vec<(&str, Dtype, Vec<u64>, Vec<u8>)>) -> Checkpoint {
    let tensors = tensors
        .into_iter()
        .map(|(name, dtype, shape, mut bytes)| {
            let len = shape.iter().product::<u64>() * dtype.bits() / 8;
            bytes.resize(usize::try_from(len).unwrap(), 0);
            (
                name.to_owned(),
                Dense {
                    dtype,
                    shape,
                    bytes,
                },
            )
        })
        .collect();
    let draft = fixture::Draft {
        tensors,
        documents: std::collections::BTreeMap::new(),
    };
    draft.open()
}

fn marker(text: &str) -> (&'static str, Dtype, Vec<u64>, Vec<u8>) {
    (
        "m.comfy_quant",
        Dtype::U8,
        vec![u64::try_from(text.len()).unwrap()],
        text.as_bytes().to_vec(),
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn hostile_markers_and_shapes_are_refused() {
    let weight = |dtype, shape: &[u64]| ("m.weight", dtype, shape.to_vec(), Vec::new());
    let part = |name: &'static str, dtype, shape: &[u64]| (name, dtype, shape.to_vec(), Vec::new());
    let scale = || part("m.weight_scale", Dtype::F32, &[8, 1]);
    let cases = vec![
        vec![marker("["), weight(Dtype::I8, &[8, 16]), scale()],
        vec![marker("[]"), weight(Dtype::I8, &[8, 16]), scale()],
        vec![
            marker("{\"format\": 4}"),
            weight(Dtype::I8, &[8, 16]),
            scale(),
        ],
        vec![
            marker("{\"format\": \"int8_tensorwise\", \"convrot\": 1}"),
            weight(Dtype::I8, &[8, 16]),
            scale(),
        ],
        vec![
            marker(
                "{\"format\": \"int8_tensorwise\", \"convrot\": true, \"convrot_groupsize\": 9223372036854775807}",
            ),
            weight(Dtype::I8, &[8, 16]),
            scale(),
        ],
        vec![
            marker(
                "{\"format\": \"int8_tensorwise\", \"convrot\": true, \"convrot_groupsize\": 16}",
            ),
            weight(Dtype::I8, &[8, 20]),
            scale(),
        ],
        vec![
            marker(
                "{\"format\": \"int8_tensorwise\", \"convrot\": true, \"convrot_groupsize\": 16}",
            ),
            weight(Dtype::I8, &[8, 0]),
            scale(),
        ],
        vec![
            marker("{\"format\": \"int8_tensorwise\"}"),
            weight(Dtype::BF16, &[8, 16]),
            scale(),
        ],
        vec![
            marker("{\"format\": \"int8_tensorwise\"}"),
            weight(Dtype::I8, &[8, 16]),
            part("m.weight_scale", Dtype::F32, &[7, 1]),
        ],
        vec![
            marker("{\"format\": \"int8_tensorwise\"}"),
            weight(Dtype::I8, &[128]),
            part("m.weight_scale", Dtype::F32, &[]),
        ],
        vec![marker("{}"), weight(Dtype::U8, &[8, 16]), scale()],
        vec![
            marker("{\"format\": \"nvfp4\"}"),
            weight(Dtype::U8, &[16, 8]),
            part("m.weight_scale", Dtype::F8E4M3, &[128, 4]),
        ],
        vec![
            marker("{\"format\": \"nvfp4\"}"),
            weight(Dtype::U8, &[15, 8]),
        ],
        vec![
            marker("{\"format\": \"nvfp4\"}"),
            weight(Dtype::U8, &[0, 8]),
        ],
        vec![
            marker("{\"format\": \"nvfp4\", \"orig_shape\": [18446744073709551615, 16]}"),
            weight(Dtype::U8, &[16, 8]),
        ],
        vec![
            marker("{\"format\": \"nvfp4\", \"orig_shape\": [17, 16]}"),
            weight(Dtype::U8, &[16, 8]),
        ],
        vec![
            marker("{\"format\": \"asym_w4a8_int8\", \"group_size\": 0}"),
            weight(Dtype::I8, &[8, 128]),
        ],
        vec![
            marker("{\"format\": \"asym_w4a8_int8\", \"group_size\": 2147483647}"),
            weight(Dtype::I8, &[8, 128]),
            part("m.weight_s_rel", Dtype::F32, &[8, 16]),
        ],
        vec![
            marker("{\"format\": \"awq_w4a16\", \"group_size\": 3}"),
            weight(Dtype::I8, &[8, 32]),
            part("m.weight_scale", Dtype::F32, &[21, 8]),
            part("m.weight_zeros", Dtype::F32, &[21, 8]),
        ],
        vec![
            marker("{\"format\": \"svdquant_w4a4\"}"),
            weight(Dtype::I8, &[8, 32]),
            part("m.weight_scale", Dtype::F32, &[1, 8]),
            part("m.proj_down", Dtype::F32, &[64, 0]),
            part("m.proj_up", Dtype::F32, &[8, 0]),
            part("m.smooth_factor", Dtype::F32, &[64]),
        ],
        vec![
            marker("{\"format\": \"float8_e4m3fn\", \"num_experts\": 4}"),
            weight(Dtype::F8E4M3, &[3, 8, 16]),
            part("m.weight_scale", Dtype::F32, &[3]),
        ],
        vec![
            marker("{\"format\": \"float8_e4m3fn_blockwise\", \"group_size\": 8}"),
            weight(Dtype::F8E4M3, &[8, 20]),
            part("m.weight_scale", Dtype::F32, &[1, 2]),
        ],
        vec![
            weight(Dtype::F8E4M3, &[8, 16]),
            part("m.scale_weight", Dtype::F32, &[8, 3, 1]),
        ],
        vec![
            weight(Dtype::F8E4M3, &[8, 16]),
            part("m.weight_scale", Dtype::F32, &[]),
            part("m.weight_orig_shape", Dtype::I64, &[2]),
        ],
        vec![
            weight(Dtype::BF16, &[8, 16]),
            part("m.scale_weight", Dtype::F32, &[]),
            part("scaled_fp8", Dtype::F8E4M3, &[0]),
        ],
    ];
    let n = cases.len();
    for (i, case) in cases.into_iter().enumerate() {
        let outcome = decode(&draft(case));
        assert!(outcome.is_err(), "case {i} of {n} was accepted");
    }
}

/// One scale stands for a whole bank of experts.
#[test]
fn a_scalar_stands_for_every_expert() {
    let checkpoint = draft(vec![
        marker("{\"format\": \"float8_e4m3fn\", \"num_experts\": 3}"),
        ("m.weight", Dtype::F8E4M3, vec![3, 2, 2], vec![0x38; 12]),
        (
            "m.weight_scale",
            Dtype::F32,
            vec![],
            2.5_f32.to_le_bytes().to_vec(),
        ),
    ]);
    let weights = decode(&checkpoint).unwrap();
    assert_eq!(weights, [("m.weight".to_owned(), vec![2.5; 12])]);
}

/// A plain cast next to scaled weights has lost its scale; norms and biases have none.
#[test]
fn casts_are_plain_only_where_nothing_is_scaled() {
    let scaled = |extra: (&'static str, Dtype, Vec<u64>, Vec<u8>)| {
        decode(&draft(vec![
            ("a.weight", Dtype::F8E4M3, vec![2, 2], vec![0x38; 4]),
            (
                "a.scale_weight",
                Dtype::F32,
                vec![],
                2.0_f32.to_le_bytes().to_vec(),
            ),
            extra,
        ]))
    };
    let e = scaled(("b.weight", Dtype::F8E4M3, vec![2, 2], vec![0x38; 4])).unwrap_err();
    assert_eq!(e.code(), "missing_part", "{e}");
    let norm = scaled(("b.norm.weight", Dtype::F8E4M3, vec![2], vec![0x38; 2])).unwrap();
    assert_eq!(norm[1], ("b.norm.weight".to_owned(), vec![1.0; 2]));
    let other = scaled(("vae.b.weight", Dtype::F8E5M2, vec![1, 2], vec![0x3c; 2])).unwrap();
    assert_eq!(other[1], ("vae.b.weight".to_owned(), vec![1.0; 2]));
}

/// The weight is the one that `ComfyUI` dequantizes; with the factor of its inputs it is the one that was quantized.
#[test]
fn factors_of_the_inputs_stand_beside_the_weight() {
    let fixtures = fixture::all();
    let fixture = fixtures
        .iter()
        .find(|f| f.name == "comfyui/quant-nvfp4")
        .unwrap();
    let checkpoint = fixture.open();
    let model = Model::bind(&checkpoint).unwrap();
    let mut tensor = model.module("blocks.0.smooth").unwrap().clone();
    assert_eq!(
        tensor.scheme.basis.columns,
        safequant::schemes::ColumnFactor::Inputs
    );
    tensor.scheme.basis.columns = safequant::schemes::ColumnFactor::Multiply;
    let expected = &fixture.beside("expected")["blocks.0.smooth.weight_effective"];
    let decoder = Decoder::new(&tensor, &checkpoint, Backend::detect()).unwrap();
    let mut bytes = vec![0; expected.bytes.len()];
    decoder
        .rows(0..tensor.n_rows(), RowsOut::Bytes(Float::Bf16, &mut bytes))
        .unwrap();
    assert!(bytes == expected.bytes);
}

/// NVFP4 of [32, 16] as it is stored; `rows` of them and 12 columns are not zero.
fn padded(module: &str, rows: usize) -> Vec<(String, Dense)> {
    let text = "{\"format\": \"nvfp4\"}";
    let row = |i: usize| {
        let used = if i < rows { 0x22 } else { 0 };
        [[used; 6].as_slice(), [0; 2].as_slice()].concat()
    };
    let dense = |dtype, shape: &[u64], bytes: Vec<u8>| Dense {
        dtype,
        shape: shape.to_vec(),
        bytes,
    };
    let parts = [
        ("comfy_quant", dense(Dtype::U8, &[19], text.into())),
        (
            "weight",
            dense(Dtype::U8, &[32, 8], (0..32).flat_map(row).collect()),
        ),
        (
            "weight_scale",
            dense(Dtype::F8E4M3, &[128, 4], vec![0x38; 512]),
        ),
        (
            "weight_scale_2",
            dense(Dtype::F32, &[], 1.0_f32.to_le_bytes().to_vec()),
        ),
    ];
    let named = parts.map(|(ending, dense)| (format!("{module}.{ending}"), dense));
    named.into()
}

/// The same layer of another block tells how many rows there are; a layer beside it does not, nor one that is stored otherwise.
#[test]
fn zeros_at_the_end_are_no_padding_where_another_block_uses_them() {
    let mut tensors = padded("blocks.0.q", 20);
    tensors.extend(padded("blocks.1.q", 18));
    tensors.extend(padded("blocks.1.k", 18));
    tensors.extend(padded("blocks.1.mlp.0", 20));
    tensors.extend(padded("blocks.1.mlp.2", 18));
    let checkpoint = fixture::Draft {
        tensors,
        documents: std::collections::BTreeMap::new(),
    }
    .open();
    let model = Model::bind(&checkpoint).unwrap();
    let shape = |name: &str| model.module(name).unwrap().shape.clone();
    assert_eq!(shape("blocks.0.q"), [20, 12]);
    assert_eq!(shape("blocks.1.q"), [20, 12]);
    assert_eq!(shape("blocks.1.k"), [18, 12]);
    assert_eq!(shape("blocks.1.mlp.2"), [18, 12]);
    let told = model.conventions[0].1.join("; ");
    assert!(
        told.contains("blocks.1.q: the file does not state the shape [20, 12]"),
        "{told}"
    );
}
