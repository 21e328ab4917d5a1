//! AWQ beside the checkpoints of its tools: without a configuration, as llm-awq, without zero points; codes carried from one
//! layout to another and back; and what contradicts itself.

use std::collections::BTreeMap;

use safequant::container::Checkpoint;
use safequant::kernels::Backend;
use safequant::schemes::encode::{constant_regions, encode, group_index_region, row_unit};
use safequant::schemes::{
    Convention, ConventionWriter, Decoder, EncodedRegion, Error, Granularity, Model,
    QuantizedTensor, Transcoder, Written, ZeroCoding, ZeroPoint, convention, transcode,
};
use serde_json::{Value, json};

use super::fixture::{self, Dense, Draft, Fixture};

const GEMM: &str = "autoawq/awq-autoawq-gemm-g128";
const GEMV: &str = "gptqmodel/awq-gptqmodel-gemv-g64";
const FAST: &str = "gptqmodel/awq-gptqmodel-gemv_fast-g128";
/// Every checkpoint of AWQ, and the convention it is of.
const ALL: [(&str, &str); 6] = [
    (GEMM, "awq"),
    ("autoawq/awq-autoawq-gemm-minilm", "awq"),
    ("gptqmodel/awq-gptqmodel-gemm-bf16", "awq"),
    ("gptqmodel/awq-gptqmodel-gemm-g128", "awq"),
    (GEMV, "awq_gemv"),
    (FAST, "awq_gemv_fast"),
];
const Q: &str = "model.layers.0.self_attn.q_proj";

fn named(name: &str) -> Fixture {
    fixture::all().into_iter().find(|f| f.name == name).unwrap()
}

fn writer(id: &str) -> &'static dyn ConventionWriter {
    convention(id).and_then(Convention::writer).unwrap()
}

fn weights(checkpoint: &Checkpoint, tensor: &QuantizedTensor) -> Vec<f32> {
    let n = tensor.shape.iter().product::<u64>();
    let mut values = vec![0.0; usize::try_from(n).unwrap()];
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let out = safequant::schemes::RowsOut::F32(&mut values);
    decoder.rows(0..tensor.n_rows(), out).unwrap();
    values
}

/// Settings under `quantization_config` are changed; other documents fall away.
fn configured(name: &str, changes: &[(&str, Value)]) -> Draft {
    Draft::of(name).configure(|config| {
        for (key, value) in changes {
            config["quantization_config"][*key] = value.clone();
        }
    })
}

fn bind_error(draft: Draft) -> Error {
    Model::bind(&draft.open()).unwrap_err()
}

fn put(region: &EncodedRegion, bytes: &mut [Vec<u8>]) {
    let width = usize::try_from(region.columns.end - region.columns.start).unwrap();
    for (row, piece) in region.rows.clone().zip(region.bytes.chunks_exact(width)) {
        let at = usize::try_from(row * region.row_len + region.columns.start).unwrap();
        bytes[region.part][at..at + width].copy_from_slice(piece);
    }
}

/// The parts of `layout` with the codes of `source`, all of it at once.
fn carried(
    source: &QuantizedTensor,
    checkpoint: &Checkpoint,
    plain: &QuantizedTensor,
    layout: &QuantizedTensor,
) -> Vec<(String, Dense)> {
    let backend = Backend::detect();
    let decoder = Decoder::new(source, checkpoint, backend).unwrap();
    let transcoder = Transcoder::new(source, plain, layout).unwrap();
    let (tile, changes) = transcoder
        .tile(&decoder.codes(0..source.n_rows()).unwrap())
        .unwrap();
    assert_eq!(changes.n_rounded, 0);
    let mut bytes: Vec<Vec<u8>> = Vec::new();
    for part in &layout.parts {
        let bits = part.shape.iter().product::<u64>() * part.dtype.bits();
        bytes.push(vec![0xa5; usize::try_from(bits / 8).unwrap()]);
    }
    assert_eq!(layout.n_rows() % row_unit(layout), 0);
    let index = decoder
        .group_index()
        .and_then(|index| group_index_region(layout, index));
    let regions = encode(layout, &tile, backend).unwrap();
    for region in regions
        .iter()
        .chain(&constant_regions(layout))
        .chain(&index)
    {
        put(region, &mut bytes);
    }
    let parts = layout.parts.iter().zip(bytes);
    let dense = |(part, bytes): (&safequant::schemes::Part, Vec<u8>)| {
        let (dtype, shape) = (part.dtype, part.shape.clone());
        (
            part.name.clone(),
            Dense {
                dtype,
                shape,
                bytes,
            },
        )
    };
    parts.map(dense).collect()
}

/// The quantized part of a checkpoint in another convention, with its configuration.
fn converted(checkpoint: &Checkpoint, id: &str) -> Checkpoint {
    let model = Model::bind(checkpoint).unwrap();
    let (mut layouts, mut tensors) = (Vec::new(), Vec::new());
    for source in &model.quantized {
        let decoder = Decoder::new(source, checkpoint, Backend::detect()).unwrap();
        let mut plain = source.clone();
        if source.convention != id {
            plain = transcode::normalize(&decoder).unwrap();
        }
        if let (Granularity::IndexedGroup { size }, None) =
            (plain.scheme.granularity, decoder.group_index())
        {
            plain.scheme.granularity = Granularity::Group { size };
        }
        let layout = writer(id).lay_out_like(&plain).unwrap();
        tensors.extend(carried(source, checkpoint, &plain, &layout));
        layouts.push(layout);
    }
    let written = Written {
        modules: &layouts,
        ignored: &[],
        asked: safequant::schemes::Asked::Nothing,
    };
    let edit = writer(id).config(&written).unwrap();
    let config = json!({"dtype": "float16", "quantization_config": edit.quantization_config});
    let mut documents =
        BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
    documents.extend(edit.documents);
    let shard = fixture::safetensors(&tensors);
    fixture::open(
        id,
        BTreeMap::from([("model.safetensors".into(), shard)]),
        documents,
    )
}

/// Names and bytes of all parts of all modules.
fn stored(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let model = Model::bind(checkpoint).unwrap();
    let parts = model.quantized.iter().flat_map(|t| &t.parts);
    parts
        .map(|part| {
            let tensor = checkpoint.tensor(&part.name).unwrap();
            (part.name.clone(), tensor.read_all(u64::MAX).unwrap())
        })
        .collect()
}

#[test]
fn every_way_through_other_layouts_leads_back_to_the_same_bytes() {
    let ways: [(&str, &[&str]); 6] = [
        (GEMM, &["awq_gemv", "awq_gemv_fast", "gptq_v2", "awq"]),
        (GEMM, &["awq"]),
        (
            "gptqmodel/awq-gptqmodel-gemm-bf16",
            &["awq_gemv_fast", "awq"],
        ),
        (GEMV, &["awq", "awq_gemv_fast", "awq_gemv"]),
        (
            FAST,
            &["compressed-tensors", "awq", "awq_gemv", "awq_gemv_fast"],
        ),
        ("gptqmodel/gptq-w4g128-sym", &["awq", "awq_gemv", "awq"]),
    ];
    let mut compared = 0;
    for (name, way) in ways {
        let original = named(name).open();
        let mut at = converted(&original, way[0]);
        let first = stored(&at);
        for id in &way[1..] {
            at = converted(&at, id);
            let model = Model::bind(&at).unwrap();
            assert!(model.quantized.iter().all(|t| t.convention == *id));
            assert!(model.plain.is_empty(), "{:?}", model.plain);
        }
        let source = Model::bind(&original).unwrap();
        let is_own = source.quantized[0].convention == way[way.len() - 1];
        let expected = if is_own { stored(&original) } else { first };
        let last = stored(&at);
        assert!(last == expected, "{name} by {way:?}");
        compared += last.len();
    }
    assert!(compared > 100, "{compared} parts");
}

#[test]
fn documents_say_what_those_of_the_tools_say() {
    // What belongs to the tool's own process, and another name for `quant_method`.
    let beside = ["meta", "method", "desc_act"];
    let mut compared = 0;
    for (name, id) in ALL {
        let fixture = named(name);
        let config: Value = serde_json::from_slice(&fixture.files().1["config.json"]).unwrap();
        let written = Written {
            modules: &Model::bind(&fixture.open()).unwrap().quantized,
            ignored: &["lm_head".to_owned()],
            asked: safequant::schemes::Asked::Nothing,
        };
        let ours = writer(id).config(&written).unwrap().quantization_config;
        let theirs = config["quantization_config"].as_object().unwrap();
        for (key, value) in theirs.iter().filter(|(k, _)| !beside.contains(&k.as_str())) {
            assert_eq!(ours.get(key), Some(value), "{name}: {key}");
            compared += 1;
        }
    }
    assert!(compared >= 48, "{compared} values");
}

#[test]
fn shapes_tell_the_layout_and_the_groups_without_a_configuration() {
    let mut told = 0;
    for (name, id) in ALL {
        let mut draft = Draft::of(name);
        draft.documents.clear();
        let with = Model::bind(&named(name).open()).unwrap();
        match Model::bind(&draft.open()) {
            Ok(model) => {
                assert_eq!(model.quantized, with.quantized, "{name}");
                assert_eq!(model.conventions[0].0, id, "{name}");
                told += 1;
            }
            // One group of 256 is padded as two of 128.
            Err(e) => {
                assert_eq!(name, FAST, "{e}");
                assert!(e.to_string().contains("group_size"), "{e}");
            }
        }
    }
    assert_eq!(told, 5);
}

#[test]
fn llm_awq_is_gemv_fast_by_another_name() {
    let llm = |names: &[&str; 4]| {
        let keys = ["checkpoint_format", "format", "version", "backend"];
        let changes: Vec<_> = keys.into_iter().zip(names.map(Value::from)).collect();
        let mut draft = configured(FAST, &changes);
        for (name, _) in &mut draft.tensors {
            if let Some(module) = name.strip_suffix(".qzeros") {
                *name = format!("{module}.scaled_zeros");
            }
        }
        draft.open()
    };
    let own = named(FAST).open();
    let expected = Model::bind(&own).unwrap();
    for checkpoint in [
        llm(&["llm-awq", "llm-awq", "llm-awq", "auto"]),
        llm(&["gemv_fast", "gemv_fast", "gemv_fast", "llm-awq"]),
    ] {
        let model = Model::bind(&checkpoint).unwrap();
        assert_eq!(model.conventions[0].0, "awq_llm");
        assert_eq!(model.quantized.len(), expected.quantized.len());
        for (tensor, fast) in model.quantized.iter().zip(&expected.quantized) {
            assert_eq!(tensor.convention, "awq_llm");
            assert!(weights(&checkpoint, tensor) == weights(&own, fast));
        }
    }
}

#[test]
fn without_zero_points_the_middle_is_zero() {
    let gone = || configured(GEMM, &[("zero_point", json!(false))]).without(".qzeros");
    let checkpoint = gone().open();
    let model = Model::bind(&checkpoint).unwrap();
    assert!(!model.quantized.is_empty());
    for tensor in &model.quantized {
        assert_eq!(tensor.scheme.zero_point, ZeroPoint::Fixed(8));
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let tile = decoder.codes(0..1).unwrap();
        let first = (f32::from(tile.codes[0]) - 8.0) * tile.scales[0];
        assert_eq!(weights(&checkpoint, tensor)[0].to_bits(), first.to_bits());
    }
    let e = bind_error(Draft::of(GEMM).without(".qzeros"));
    assert!(matches!(e, Error::MissingPart { .. }), "{e}");
    // The fast layout has no form without them.
    let fast = configured(FAST, &[("zero_point", json!(false))]).without(".qzeros");
    assert!(Model::bind(&fast.open()).is_err());
}

#[test]
fn a_module_said_to_be_dense_must_not_be_quantized() {
    let skipping = |entry: &str| configured(GEMM, &[("modules_to_not_convert", json!([entry]))]);
    for entry in [Q, "q_proj", "layers.0.self_attn"] {
        let e = bind_error(skipping(entry));
        assert!(matches!(e, Error::Contradiction { .. }), "{e}");
        assert!(e.to_string().contains(entry), "{e}");
    }
    // Readers differ on parts of a component: the tensors decide.
    assert!(Model::bind(&skipping("q_pro").open()).is_ok());
}

#[test]
fn a_product_that_no_zero_point_gives_is_refused_with_its_place() {
    let draft = Draft::of(FAST).change(&format!("{Q}.qzeros"), |zeros| {
        // Row 0, feature 3: plus one.
        zeros.bytes[6..8].copy_from_slice(&0x3c00_u16.to_le_bytes());
    });
    let checkpoint = draft.open();
    let model = Model::bind(&checkpoint).unwrap();
    let decoder = Decoder::new(model.module(Q).unwrap(), &checkpoint, Backend::detect()).unwrap();
    let e = decoder.codes(0..8).unwrap_err();
    let is_there = matches!(
        e,
        Error::ProductRange {
            row: 3,
            group: 0,
            ..
        }
    );
    assert!(is_there, "{e}");
}

#[test]
fn activation_order_and_other_widths_are_refused_with_what_can_hold_them() {
    for (name, alternative) in [
        ("gptqmodel/gptq-w4g32-descact", "activation order"),
        ("gptqmodel/gptq-w8g128-sym", "gptq"),
        ("mlx/mlx-4bit-g64", "floats"),
    ] {
        let tensor = Model::bind(&named(name).open())
            .unwrap()
            .quantized
            .remove(0);
        let e = writer("awq").lay_out_like(&tensor).unwrap_err();
        assert!(matches!(e, Error::CannotWrite { .. }), "{name}: {e}");
        assert!(e.to_string().contains(alternative), "{name}: {e}");
    }
}

#[test]
fn groups_of_whole_rows_are_spelled_as_groups() {
    let mut source = Model::bind(&named("gptqmodel/gptq-w4-channel").open())
        .unwrap()
        .quantized
        .remove(0);
    source.scheme.granularity = Granularity::Channel;
    let layout = writer("awq").lay_out_like(&source).unwrap();
    let size = source.in_features();
    assert_eq!(layout.scheme.granularity, Granularity::Group { size });
}

/// `GPTQModel`'s v1 subtracts one from whole words: a zero point of 0 borrows from its neighbor.
#[test]
fn gptq_v1_of_gptqmodel_keeps_its_bytes_and_the_name_they_depend_on() {
    let name = "gptqmodel/gptq-w4g128-sym";
    let draft = Draft::of(name).change(&format!("{Q}.qzeros"), |zeros| {
        // Zero points 0 8 8 8 8 8 8 8, minus 0x11111111.
        zeros.bytes[..4].copy_from_slice(&0x7777_776f_u32.to_le_bytes());
    });
    let original = draft.open();
    let model = Model::bind(&original).unwrap();
    let tensor = model.module(Q).unwrap();
    let coding = ZeroPoint::Stored(ZeroCoding::MinusOneWord);
    assert_eq!(tensor.scheme.zero_point, coding);
    let decoder = Decoder::new(tensor, &original, Backend::detect()).unwrap();
    assert_eq!(decoder.codes(0..1).unwrap().zeros[0], 0);
    let again = converted(&original, "gptq");
    assert!(stored(&again) == stored(&original));
    let read = Model::bind(&again).unwrap();
    assert_eq!(read.module(Q).unwrap().scheme.zero_point, coding);
    // Beside one that is stored lane by lane no name is right.
    let mut other = tensor.clone();
    other.scheme.zero_point = ZeroPoint::Stored(ZeroCoding::MinusOne);
    let written = Written {
        modules: &[tensor.clone(), other],
        ignored: &[],
        asked: safequant::schemes::Asked::Nothing,
    };
    assert!(writer("gptq").config(&written).is_err());
}

#[test]
fn gptq_describes_what_it_takes_over_as_its_tools_do() {
    let mut compared = 0;
    for (name, id) in [
        ("gptqmodel/gptq-w4g128-sym", "gptq"),
        ("gptqmodel/gptq-w3g128-sym", "gptq"),
        ("gptqmodel/gptq-w8g128-sym", "gptq"),
        ("gptqmodel/gptq-w4g32-descact", "gptq"),
        ("gptqmodel/gptq_v2-w4g64-asym-descact", "gptq_v2"),
        ("gptqmodel/gptq-w5-planar", "gptq_p"),
    ] {
        let fixture = named(name);
        let checkpoint = fixture.open();
        let theirs: Value =
            serde_json::from_slice(&fixture.files().1["quantize_config.json"]).unwrap();
        let mut modules = Vec::new();
        for tensor in Model::bind(&checkpoint).unwrap().quantized {
            let decoder = Decoder::new(&tensor, &checkpoint, Backend::detect()).unwrap();
            let plain = transcode::normalize(&decoder).unwrap();
            let own = writer(id).lay_out_like(&tensor).unwrap();
            let mut parts = own.parts;
            parts.sort_by(|a, b| a.name.cmp(&b.name));
            let mut expected = tensor.parts.clone();
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(parts, expected, "{name}");
            modules.push(writer(id).lay_out_like(&plain).unwrap());
        }
        let written = Written {
            modules: &modules,
            ignored: &["lm_head".to_owned()],
            asked: safequant::schemes::Asked::Nothing,
        };
        let ours = writer(id).config(&written).unwrap().quantization_config;
        for key in ["bits", "group_size", "desc_act", "sym", "checkpoint_format"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
            compared += 1;
        }
    }
    assert_eq!(compared, 30);
}
