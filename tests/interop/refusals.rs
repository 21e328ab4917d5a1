//! Checkpoints that are broken, contradictory, or of a format we do not know: a typed error, never a wrong decode.

use safequant::container::Dtype;
use safequant::kernels::Backend;
use safequant::schemes::{Decoder, Error, ErrorGroup, Model};
use serde_json::{Value, json};

use super::fixture::{Dense, Draft};

const CT: &str = "llm-compressor/ct-w4a16-asym";
const CT_ORDER: &str = "llm-compressor/ct-old-w4a16-actorder-group";
const GPTQ: &str = "gptqmodel/gptq-w4g32-descact";
const FP8: &str = "composed/deepseek-odd-dims";
const GPTQ_FP8: &str = "gptqmodel/gptqmodel-fp8-block";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// Binds, and prepares to decode every module.
fn outcome(draft: Draft) -> Result<(), Error> {
    let checkpoint = draft.open();
    let model = Model::bind(&checkpoint)?;
    for tensor in &model.quantized {
        Decoder::new(tensor, &checkpoint, Backend::detect())?.codes(0..tensor.n_rows())?;
    }
    Ok(())
}

fn refused(what: &str, draft: Draft) -> Error {
    match outcome(draft) {
        Err(e) => e,
        Ok(()) => panic!("{what} was accepted"),
    }
}

#[test]
fn the_drafts_themselves_are_fine() {
    for name in [CT, CT_ORDER, GPTQ, FP8, GPTQ_FP8] {
        outcome(Draft::of(name)).unwrap();
    }
}

#[test]
fn a_missing_part_is_named() {
    for (name, ending) in [
        (CT, ".weight_scale"),
        (CT, ".weight_zero_point"),
        (CT, ".weight_shape"),
        (GPTQ, ".scales"),
        (GPTQ, ".qzeros"),
        (FP8, ".weight_scale_inv"),
    ] {
        let e = refused(ending, Draft::of(name).without(ending));
        assert!(matches!(e, Error::MissingPart { .. }), "{ending}: {e}");
        assert!(
            e.to_string().contains(ending.trim_start_matches('.')),
            "{e}"
        );
    }
}

#[test]
fn a_group_index_without_which_columns_cannot_be_counted_may_be_absent() {
    // Very old files have none; the groups are then consecutive.
    outcome(Draft::of(GPTQ).without(".g_idx")).unwrap();
}

#[test]
fn wrong_shapes_are_refused() {
    // Dimensions swapped or merged: the bytes stay the same.
    let swap = |d: &mut Dense| d.shape.reverse();
    let flat = |d: &mut Dense| d.shape = vec![d.shape.iter().product()];
    let down = "model.layers.0.mlp.down_proj";
    let parts = [
        (CT, format!("{down}.weight_packed")),
        (CT, format!("{down}.weight_scale")),
        (CT, format!("{down}.weight_zero_point")),
        (GPTQ, format!("{down}.qweight")),
        (GPTQ, format!("{down}.qzeros")),
        (GPTQ, format!("{down}.scales")),
        (FP8, format!("{down}.weight_scale_inv")),
        (GPTQ_FP8, format!("{down}.weight_scale_inv")),
    ];
    for (name, part) in parts {
        for change in [swap, flat] {
            let e = refused(&part, Draft::of(name).change(&part, change));
            assert!(
                matches!(e, Error::PartShape { .. } | Error::Unsupported { .. }),
                "{part}: {e}"
            );
        }
    }
}

#[test]
fn wrong_dtypes_are_refused() {
    let scales = |d: &mut Dense| d.dtype = Dtype::I16;
    let codes = |d: &mut Dense| d.dtype = Dtype::F32;
    for (name, part) in [(CT, "weight_scale"), (GPTQ, "scales")] {
        let e = refused(part, Draft::of(name).change(&format!("{Q}.{part}"), scales));
        assert!(matches!(e, Error::PartDtype { .. }), "{part}: {e}");
    }
    for (name, part) in [
        (CT, "weight_packed"),
        (GPTQ, "qweight"),
        (GPTQ, "g_idx"),
        (CT, "weight_zero_point"),
    ] {
        let e = refused(part, Draft::of(name).change(&format!("{Q}.{part}"), codes));
        assert!(matches!(e, Error::PartDtype { .. }), "{part}: {e}");
    }
}

#[test]
fn group_indices_out_of_range_are_refused() {
    for (name, part) in [(GPTQ, "g_idx"), (CT_ORDER, "weight_g_idx")] {
        for value in [-1_i32, i32::MIN, i32::MAX, 1000] {
            let draft = Draft::of(name).change(&format!("{Q}.{part}"), |d| {
                d.bytes[8..12].copy_from_slice(&value.to_le_bytes());
            });
            let e = refused(part, draft);
            assert!(
                matches!(e, Error::GroupIndexRange { position: 2, .. }),
                "{value}: {e}"
            );
        }
    }
}

#[test]
fn a_shape_descriptor_cannot_ask_for_more_than_is_stored() {
    for shape in [
        [-1, 256],
        [256, 0],
        [1 << 50, 1 << 50],
        [i64::MAX, i64::MAX],
        [256, 255],
        [255, 256],
        [0, 0],
    ] {
        let draft = Draft::of(CT).change(&format!("{Q}.weight_shape"), |d| {
            d.bytes = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
        });
        // 255 columns fill as many words as 256.
        if shape != [256, 255] {
            refused(&format!("{shape:?}"), draft);
        }
    }
}

/// Every number that a configuration could carry instead of a good one.
fn bad_numbers() -> Vec<Value> {
    vec![
        json!(0),
        json!(-2),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(1_u64 << 31),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(1.8e19),
        json!(1.5),
        json!("text"),
        json!([]),
        json!({}),
        json!(true),
    ]
}

#[test]
fn every_numeric_field_of_every_configuration_is_checked() {
    let weights = "/quantization_config/config_groups/group_0/weights";
    let fields = [
        (CT, format!("{weights}/num_bits")),
        (CT, format!("{weights}/group_size")),
        (GPTQ, "/quantization_config/bits".to_owned()),
        (GPTQ, "/quantization_config/group_size".to_owned()),
        (FP8, "/quantization_config/weight_block_size/0".to_owned()),
        (FP8, "/quantization_config/weight_block_size/1".to_owned()),
        (FP8, "/quantization_config/weight_block_size".to_owned()),
    ];
    let mut visited = 0;
    for (name, pointer) in fields {
        for bad in bad_numbers() {
            let draft =
                Draft::of(name).configure(|c| *c.pointer_mut(&pointer).unwrap() = bad.clone());
            let e = refused(&format!("{pointer} = {bad}"), draft);
            assert!(
                matches!(e, Error::ConfigValue { .. }),
                "{pointer} = {bad}: {e}"
            );
            visited += 1;
        }
    }
    assert_eq!(visited, 7 * 13);
}

#[test]
fn numbers_beyond_a_double_and_keys_twice_are_refused() {
    for text in [
        r#"{"quantization_config":{"bits":1e400}}"#,
        r#"{"a":1,"a":1}"#,
        "{",
        "[1,]",
    ] {
        let mut draft = Draft::of(GPTQ);
        draft
            .documents
            .insert("config.json".into(), text.as_bytes().to_vec());
        assert!(
            matches!(refused(text, draft), Error::Document { .. }),
            "{text}"
        );
    }
}

#[test]
fn documents_must_agree() {
    let mut draft = Draft::of(GPTQ);
    let text = String::from_utf8(draft.documents["quantize_config.json"].clone()).unwrap();
    let text = text.replace("\"group_size\": 32", "\"group_size\": 64");
    draft
        .documents
        .insert("quantize_config.json".into(), text.into_bytes());
    let e = refused("documents", draft);
    assert!(matches!(e, Error::ConfigsDisagree { .. }), "{e}");
}

#[test]
fn configurations_must_agree_with_the_tensors() {
    let weights = "/quantization_config/config_groups/group_0/weights";
    for (name, pointer, value) in [
        (CT, format!("{weights}/num_bits"), json!(8)),
        (CT, format!("{weights}/group_size"), json!(64)),
        (CT, format!("{weights}/type"), json!("float")),
        (CT, format!("{weights}/strategy"), json!("tensor")),
        (
            CT,
            "/quantization_config/format".to_owned(),
            json!("int-quantized"),
        ),
        (
            CT,
            "/quantization_config/ignore".to_owned(),
            json!(["re:.*q_proj"]),
        ),
        (GPTQ, "/quantization_config/bits".to_owned(), json!(8)),
        (
            GPTQ,
            "/quantization_config/group_size".to_owned(),
            json!(128),
        ),
        (
            GPTQ,
            "/quantization_config/pack_dtype".to_owned(),
            json!("int8"),
        ),
        (
            FP8,
            "/quantization_config/weight_block_size".to_owned(),
            json!([64, 64]),
        ),
    ] {
        // A group's own format stands above the global one.
        let draft = Draft::of(name).configure(|c| {
            *c.pointer_mut(&pointer).unwrap() = value.clone();
            if pointer.ends_with("format") {
                *c.pointer_mut("/quantization_config/config_groups/group_0/format")
                    .unwrap() = value.clone();
            }
        });
        let e = refused(&format!("{pointer} = {value}"), draft);
        assert!(
            matches!(e, Error::Contradiction { .. } | Error::PartShape { .. }),
            "{pointer} = {value}: {e}"
        );
    }
}

#[test]
fn zero_points_that_the_configuration_denies_are_reported() {
    let symmetric = "/quantization_config/config_groups/group_0/weights/symmetric";
    let draft = Draft::of("llm-compressor/ct-w4a16-asym")
        .configure(|c| *c.pointer_mut(symmetric).unwrap() = json!(true));
    let model = Model::bind(&draft.open()).unwrap();
    let (_, evidence) = &model.conventions[0];
    let line = evidence.iter().find(|e| e.contains("says symmetric"));
    assert!(
        line.is_some_and(|l| l.starts_with("7 modules")),
        "{evidence:?}"
    );
}

#[test]
fn a_module_that_dynamic_leaves_dense_must_be_dense() {
    let draft = Draft::of(GPTQ)
        .configure(|c| c["quantization_config"]["dynamic"] = json!({"-:.*q_proj": {}}));
    assert!(matches!(
        refused("dynamic", draft),
        Error::Contradiction { .. }
    ));
}

#[test]
fn formats_of_later_are_unsupported_and_never_taken_for_dense() {
    let methods = [
        "modelopt",
        "mxfp4",
        "torchao",
        "quark",
        "auto-round",
        "eetq",
    ];
    for method in methods {
        let draft = Draft::of(GPTQ)
            .configure(|c| c["quantization_config"] = json!({"quant_method": method}));
        let e = refused(method, draft);
        assert_eq!(e.group(), ErrorGroup::Unsupported, "{method}: {e}");
    }
    let dense = |tensors: Vec<(&str, Dtype, Vec<u64>)>| {
        let tensor = |(name, dtype, shape): (&str, Dtype, Vec<u64>)| {
            let len = usize::try_from(shape.iter().product::<u64>() * dtype.bits() / 8).unwrap();
            (
                name.to_owned(),
                Dense {
                    dtype,
                    shape,
                    bytes: vec![1; len],
                },
            )
        };
        let tensors = tensors.into_iter().map(tensor).collect();
        Draft {
            tensors,
            documents: std::collections::BTreeMap::new(),
        }
    };
    for tensors in [
        vec![("m.weight", Dtype::F8E4M3Fnuz, vec![4, 4])],
        vec![
            ("m._weight_qdata", Dtype::I8, vec![8, 8]),
            ("m._weight_scale", Dtype::F32, vec![8, 1]),
        ],
        vec![
            ("m.weight", Dtype::U32, vec![8, 8]),
            ("m.scales", Dtype::F16, vec![8, 1]),
            ("m.biases", Dtype::F16, vec![8, 1]),
        ],
        vec![
            ("e.gate_up_proj_blocks", Dtype::U8, vec![1, 2, 1, 8]),
            ("e.gate_up_proj_scales", Dtype::U8, vec![1, 2, 1]),
        ],
        vec![
            ("m.qweight", Dtype::I32, vec![8, 64]),
            ("m.qzeros", Dtype::I32, vec![1, 8]),
            ("m.scales", Dtype::F16, vec![1, 64]),
        ],
        vec![
            ("m.weight_packed", Dtype::U8, vec![8, 8]),
            ("m.weight_scale", Dtype::F8E4M3, vec![8, 1]),
        ],
        vec![
            ("m.weight", Dtype::F8E4M3, vec![8, 8]),
            ("m.output_scale", Dtype::F32, vec![]),
        ],
        vec![
            ("m.weight._scale", Dtype::BF16, vec![8, 1]),
            ("m.weight._shift", Dtype::BF16, vec![8, 1]),
        ],
        vec![("m.weight", Dtype::F4, vec![8, 8])],
    ] {
        let name = tensors[0].0;
        let e = refused(name, dense(tensors));
        assert_eq!(e.group(), ErrorGroup::Unsupported, "{name}: {e}");
    }
    // And what is dense stays dense.
    let plain = dense(vec![
        ("m.weight", Dtype::BF16, vec![4, 4]),
        ("position_ids", Dtype::I64, vec![1, 4]),
    ]);
    let model = Model::bind(&plain.open()).unwrap();
    assert_eq!(model.plain, ["m.weight", "position_ids"]);
    assert!(model.quantized.is_empty() && model.conventions.is_empty());
}

#[test]
fn fp4_that_the_configuration_calls_integers_names_format_and_module() {
    let draft = Draft::of(CT).change(&format!("{Q}.weight_packed"), |d| {
        d.dtype = Dtype::U8;
        d.shape[1] *= 4;
    });
    let e = refused("nvfp4", draft);
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
    assert!(
        e.to_string().contains(Q) && e.to_string().contains("nvfp4-pack-quantized"),
        "{e}"
    );
}

#[test]
fn fp4_without_its_scales_is_refused() {
    const NVFP4: &str = "llm-compressor/ct-nvfp4";
    const MXFP4: &str = "llm-compressor/ct-mxfp4a16";
    for (name, part) in [
        (NVFP4, "weight_global_scale"),
        (NVFP4, "weight_scale"),
        (MXFP4, "weight_scale"),
    ] {
        let mut draft = Draft::of(name);
        let missing = format!("{Q}.{part}");
        draft.tensors.retain(|(name, _)| *name != missing);
        let e = refused(part, draft);
        assert!(matches!(e, Error::MissingPart { .. }), "{part}: {e}");
    }
    let e = refused(
        "two global scales",
        Draft::of(NVFP4).change(&format!("{Q}.weight_global_scale"), |d| {
            d.shape = vec![2];
            d.bytes = vec![0; 8];
        }),
    );
    assert!(matches!(e, Error::PartShape { .. }), "{e}");
}

#[test]
fn masks_that_do_not_fit_what_is_stored_are_refused() {
    const SPARSE: &str = "llm-compressor/ct-old-sparse-bitmask";
    const SPARSE_24: &str = "llm-compressor/ct-old-sparse24-bitmask";
    const MARLIN: &str = "llm-compressor/ct-old-marlin24";
    let flip = |d: &mut Dense| d.bytes[0] ^= 1;
    let set =
        |value: i64| move |d: &mut Dense| d.bytes[8..16].copy_from_slice(&value.to_le_bytes());
    let mut drafts = vec![
        Draft::of(SPARSE).change(&format!("{Q}.bitmask"), flip),
        Draft::of(SPARSE_24).change(&format!("{Q}.bitmask"), flip),
        Draft::of(MARLIN).change(&format!("{Q}.meta"), |d| d.bytes.fill(0)),
    ];
    for value in [-1, 0, i64::MAX, i64::MIN, 1_000_000] {
        drafts.push(Draft::of(SPARSE).change(&format!("{Q}.row_offsets"), set(value)));
    }
    for draft in drafts {
        let e = refused("mask", draft);
        assert!(matches!(e, Error::SparseRow { .. }), "{e}");
    }
    let e = refused(
        "format",
        Draft::of(SPARSE).configure(|c| {
            c["quantization_config"]["sparsity_config"]["format"] = json!("sparse-24-bitmask");
        }),
    );
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
    for (name, part) in [
        (SPARSE, "bitmask"),
        (SPARSE, "compressed"),
        (SPARSE_24, "compressed"),
        (MARLIN, "meta"),
        (MARLIN, "scale_packed"),
    ] {
        let e = refused(
            part,
            Draft::of(name).change(&format!("{Q}.{part}"), |d| {
                d.shape.insert(0, 1);
            }),
        );
        assert!(matches!(e, Error::PartShape { .. }), "{part}: {e}");
    }
}

#[test]
fn non_json_literals_and_unknown_keys_are_harmless() {
    let mut draft = Draft::of(FP8);
    let text = String::from_utf8(draft.documents["config.json"].clone()).unwrap();
    let text = text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"x\": NaN,", 1);
    draft
        .documents
        .insert("config.json".into(), text.into_bytes());
    outcome(draft).unwrap();
}

#[test]
fn a_weight_both_dense_and_quantized_is_refused() {
    for (name, part) in [(CT, "weight_scale"), (GPTQ, "scales")] {
        let mut draft = Draft::of(name);
        let dense = Dense {
            dtype: Dtype::BF16,
            shape: vec![1],
            bytes: vec![0; 2],
        };
        draft.tensors.push((format!("{Q}.weight"), dense));
        let e = refused(part, draft);
        let twice = matches!(e, Error::ClaimedTwice { .. } | Error::Contradiction { .. });
        assert!(twice && e.to_string().contains(Q), "{e}");
    }
}
