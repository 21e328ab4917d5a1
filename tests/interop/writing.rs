//! What our writers lay out is what the real tool laid out, and reads back to the same codes.

use std::collections::{BTreeMap, BTreeSet};

use safequant::container::Checkpoint;
use safequant::kernels::Backend;
use safequant::schemes::encode::{constant_regions, encode, row_unit};
use safequant::schemes::{
    Decoder, EncodedRegion, Granularity, Model, Preset, QuantizedTensor, Role, RowsOut, Written,
    ZeroPoint, convention,
};
use serde_json::Value;

use super::fixture::{self, Dense};

/// What the documents are to describe.
fn describe<'a>(
    preset: &'a Preset,
    modules: &'a [QuantizedTensor],
    ignored: &'a [String],
) -> Written<'a> {
    Written {
        modules,
        ignored,
        asked: safequant::schemes::Asked::Same(preset),
    }
}

/// Fixture, convention, preset, group size.
const CASES: [(&str, &str, &str, Option<i64>); 20] = [
    (
        "llm-compressor/ct-w4a16-g128",
        "compressed-tensors",
        "W4A16",
        None,
    ),
    (
        "llm-compressor/ct-w4a16-asym",
        "compressed-tensors",
        "W4A16_ASYM",
        None,
    ),
    (
        "llm-compressor/ct-w3a16-g64",
        "compressed-tensors",
        "W3A16",
        Some(64),
    ),
    (
        "llm-compressor/ct-w8a16-channel",
        "compressed-tensors",
        "W8A16",
        Some(-1),
    ),
    (
        "llm-compressor/ct-w8a8-int8",
        "compressed-tensors",
        "W8A8",
        None,
    ),
    ("llm-compressor/ct-fp8", "compressed-tensors", "FP8", None),
    (
        "llm-compressor/ct-fp8-dynamic",
        "compressed-tensors",
        "FP8_DYNAMIC",
        None,
    ),
    (
        "llm-compressor/ct-fp8-block",
        "compressed-tensors",
        "FP8_BLOCK",
        None,
    ),
    ("composed/deepseek-odd-dims", "fp8", "FP8_BLOCK", None),
    ("transformers/fgfp8-block128", "fp8", "FP8_BLOCK", None),
    ("gptqmodel/gptq-w4g128-sym", "gptq", "W4A16", None),
    ("gptqmodel/gptq-w3g128-sym", "gptq", "W3A16", None),
    ("gptqmodel/gptq-w8g128-sym", "gptq", "W8A16", None),
    ("gptqmodel/gptq-w4-channel", "gptq", "W4A16", Some(-1)),
    ("gptqmodel/gptq-w4g128-asym", "gptq_v2", "W4A16_ASYM", None),
    (
        "gptqmodel/gptq-odd-shapes",
        "gptq_v2",
        "W4A16_ASYM",
        Some(64),
    ),
    ("autoawq/awq-autoawq-gemm-g128", "awq", "W4A16_ASYM", None),
    (
        "autoawq/awq-autoawq-gemm-minilm",
        "awq",
        "W4A16_ASYM",
        Some(64),
    ),
    (
        "gptqmodel/awq-gptqmodel-gemv-g64",
        "awq_gemv",
        "W4A16_ASYM",
        Some(64),
    ),
    (
        "gptqmodel/awq-gptqmodel-gemv_fast-g128",
        "awq_gemv_fast",
        "W4A16_ASYM",
        None,
    ),
];

fn parts(tensor: &QuantizedTensor) -> BTreeSet<String> {
    let weight = tensor.parts.iter().filter(|p| p.role != Role::Auxiliary);
    weight
        .map(|p| format!("{} {} {:?}", p.name, p.dtype, p.shape))
        .collect()
}

fn put(region: &EncodedRegion, bytes: &mut [Vec<u8>]) {
    let row_len = region.row_len;
    let width = usize::try_from(region.columns.end - region.columns.start).unwrap();
    for (row, piece) in region.rows.clone().zip(region.bytes.chunks_exact(width)) {
        let at = usize::try_from(row * row_len + region.columns.start).unwrap();
        bytes[region.part][at..at + width].copy_from_slice(piece);
    }
}

/// The parts of `layout`, filled with the codes of `bound`.
fn written(
    bound: &QuantizedTensor,
    layout: &QuantizedTensor,
    from: &Checkpoint,
) -> Vec<(String, Dense)> {
    let backend = Backend::detect();
    let decoder = Decoder::new(bound, from, backend).unwrap();
    let len = |shape: &[u64], bits: u64| {
        usize::try_from(shape.iter().product::<u64>() * bits / 8).unwrap()
    };
    let mut bytes: Vec<Vec<u8>> = layout
        .parts
        .iter()
        .map(|p| vec![0xa5; len(&p.shape, p.dtype.bits())])
        .collect();
    let mut at = 0;
    while at < bound.n_rows() {
        let end = bound.n_rows().min(at + row_unit(layout));
        let tile = decoder.codes(at..end).unwrap();
        for region in encode(layout, &tile, backend).unwrap() {
            put(&region, &mut bytes);
        }
        at = end;
    }
    for region in constant_regions(layout) {
        put(&region, &mut bytes);
    }
    let dense = |(p, bytes): (&safequant::schemes::Part, Vec<u8>)| {
        (
            p.name.clone(),
            Dense {
                dtype: p.dtype,
                shape: p.shape.clone(),
                bytes,
            },
        )
    };
    layout.parts.iter().zip(bytes).map(dense).collect()
}

#[test]
fn layouts_are_those_of_the_real_tools_and_read_back() {
    let mut modules = 0;
    for (name, id, preset, group_size) in CASES {
        let fixture = fixture::all().into_iter().find(|f| f.name == name).unwrap();
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        let writer = convention(id)
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        assert!(writer.presets().contains(&preset), "{id} {preset}");
        let preset = Preset::by_name(preset)
            .unwrap()
            .with_group_size(group_size)
            .unwrap();
        let (mut layouts, mut tensors) = (Vec::new(), Vec::new());
        for bound in &model.quantized {
            let source = bound.reference_dtype;
            let layout = writer
                .lay_out(&bound.module, &bound.shape, &preset, source)
                .unwrap();
            assert_eq!(parts(&layout), parts(bound), "{name} as {id}");
            if id == "compressed-tensors" || id == "fp8" {
                assert_eq!(layout.scheme, bound.scheme, "{name}");
            }
            tensors.extend(written(bound, &layout, &checkpoint));
            layouts.push(layout);
            modules += 1;
        }
        let edit = writer
            .config(&describe(&preset, &layouts, &["lm_head".to_owned()]))
            .unwrap();
        let config = serde_json::json!({"dtype": "bfloat16", "quantization_config": edit.quantization_config});
        let mut documents =
            BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
        documents.extend(edit.documents);
        let shard = fixture::safetensors(&tensors);
        let again = fixture::open(
            name,
            BTreeMap::from([("model.safetensors".into(), shard)]),
            documents,
        );
        let read = Model::bind(&again).unwrap_or_else(|e| panic!("{name} as {id}: {e}"));
        assert_eq!(read.conventions[0].0, id);
        assert!(read.plain.is_empty(), "{:?}", read.plain);
        for (bound, ours) in model.quantized.iter().zip(&read.quantized) {
            assert_eq!((&bound.module, &bound.shape), (&ours.module, &ours.shape));
            let codes = |t, c| {
                Decoder::new(t, c, Backend::detect())
                    .unwrap()
                    .codes(0..bound.n_rows())
                    .unwrap()
            };
            assert!(
                codes(bound, &checkpoint) == codes(ours, &again),
                "{name} as {id}: {}",
                bound.module
            );
        }
    }
    assert!(modules > 110, "{modules} modules");
}

/// Keys of an object and of the objects in it, as paths.
fn keys(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    if let Value::Object(map) = value {
        for (key, value) in map {
            let path = format!("{prefix}/{key}");
            keys(value, &path, found);
            found.insert(path);
        }
    }
}

#[test]
fn compressed_tensors_configs_are_those_of_llm_compressor() {
    let mut compared = 0;
    for (name, id, preset, group_size) in CASES {
        if id != "compressed-tensors" {
            continue;
        }
        let fixture = fixture::all().into_iter().find(|f| f.name == name).unwrap();
        let config: Value = serde_json::from_slice(&fixture.files().1["config.json"]).unwrap();
        let mut theirs = config["quantization_config"].clone();
        let preset = Preset::by_name(preset)
            .unwrap()
            .with_group_size(group_size)
            .unwrap();
        let writer = convention(id)
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        let edit = writer
            .config(&describe(&preset, &[], &["lm_head".to_owned()]))
            .unwrap();
        let mut ours = Value::from(edit.quantization_config);
        // The group's name is free; the model-free entry point leaves `sparsity_config` out.
        if let Some(group) = theirs["config_groups"]
            .as_object_mut()
            .and_then(|g| g.shift_remove(preset.name))
        {
            theirs["config_groups"]["group_0"] = group;
            theirs["sparsity_config"] = serde_json::json!({});
        }
        let (mut a, mut b) = (BTreeSet::new(), BTreeSet::new());
        keys(&theirs, "", &mut a);
        keys(&ours, "", &mut b);
        assert_eq!(a, b, "{name}");
        // How scales were found is not how they are read; static activations need calibration.
        for config in [&mut theirs, &mut ours] {
            let group = &mut config["config_groups"]["group_0"];
            group["weights"]["observer"] = Value::Null;
            group["weights"]["actorder"] = Value::Null;
            if preset.name == "FP8" {
                group["input_activations"] = Value::Null;
            }
        }
        assert_eq!(theirs, ours, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 8);
}

#[test]
fn gptq_configs_have_the_keys_of_gptqmodel() {
    let fixture = fixture::all()
        .into_iter()
        .find(|f| f.name == "gptqmodel/gptq-w4g128-sym")
        .unwrap();
    let theirs: Value = serde_json::from_slice(&fixture.files().1["quantize_config.json"]).unwrap();
    for id in ["gptq", "gptq_v2"] {
        let writer = convention(id)
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        let preset = Preset::by_name("W4A16").unwrap();
        let edit = writer
            .config(&describe(&preset, &[], &["lm_head".to_owned()]))
            .unwrap();
        let ours = Value::from(edit.quantization_config.clone());
        let names = |v: &Value| {
            v.as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(names(&theirs), names(&ours));
        assert_eq!(edit.documents[0].0, "quantize_config.json");
        assert_eq!(
            serde_json::from_slice::<Value>(&edit.documents[0].1).unwrap(),
            ours
        );
        let skip = writer
            .config(&describe(&preset, &[], &["a.b".to_owned()]))
            .unwrap();
        assert!(
            skip.quantization_config["dynamic"]
                .get(r"-:^a\.b$")
                .is_some()
        );
    }
}

#[test]
fn a_zero_point_of_zero_is_refused_by_the_first_format_only() {
    let preset = Preset::by_name("W4A16_ASYM").unwrap();
    let tile = safequant::schemes::CodeTile {
        rows: 0..8,
        codes: vec![1; 8 * 128],
        scales: vec![0.5; 8],
        zeros: vec![3, 0, 5, 7, 1, 2, 9, 15],
        ..safequant::schemes::CodeTile::default()
    };
    let lay_out = |id| {
        let writer = convention(id)
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        writer
            .lay_out("m", &[8, 128], &preset, safequant::kernels::Float::F16)
            .unwrap()
    };
    let v1 = lay_out("gptq");
    assert_eq!(
        (v1.scheme.granularity, row_unit(&v1)),
        (Granularity::Group { size: 128 }, 8)
    );
    let e = encode(&v1, &tile, Backend::detect()).unwrap_err();
    assert!(
        e.to_string().contains("row 1") && e.to_string().contains("gptq_v2"),
        "{e}"
    );
    let v2 = lay_out("gptq_v2");
    assert!(matches!(v2.scheme.zero_point, ZeroPoint::Stored(_)));
    let regions = encode(&v2, &tile, Backend::detect()).unwrap();
    let zeros = regions
        .iter()
        .find(|r| v2.parts[r.part].role == Role::ZeroPoint)
        .unwrap();
    assert_eq!(zeros.bytes, 0xf921_7503_u32.to_le_bytes());
}

/// The neutral model in the middle: what one convention holds, another writes, value for value.
#[test]
fn codes_move_between_conventions_without_loss() {
    let cases = [
        ("llm-compressor/ct-fp8", "fp8", "FP8", None),
        ("llm-compressor/ct-fp8-block", "fp8", "FP8_BLOCK", None),
        (
            "transformers/fgfp8-block128",
            "compressed-tensors",
            "FP8_BLOCK",
            None,
        ),
        (
            "composed/fbgemm-fp8",
            "compressed-tensors",
            "FP8_DYNAMIC",
            None,
        ),
        (
            "gptqmodel/gptq-w4g128-asym",
            "compressed-tensors",
            "W4A16_ASYM",
            None,
        ),
        (
            "gptqmodel/gptq-w8g128-sym",
            "compressed-tensors",
            "W8A16",
            None,
        ),
        ("gptqmodel/gptq-w2g64-asym", "gptq_v2", "W2A16", Some(64)),
        (
            "llm-compressor/ct-old-w3-pack",
            "compressed-tensors",
            "W3A16",
            Some(64),
        ),
    ];
    let mut modules = 0;
    for (name, id, preset, group_size) in cases {
        let fixture = fixture::all().into_iter().find(|f| f.name == name).unwrap();
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        let mut preset = Preset::by_name(preset)
            .unwrap()
            .with_group_size(group_size)
            .unwrap();
        if preset.name == "W2A16" {
            preset.weights = safequant::schemes::WeightCode::AsymmetricInteger { bits: 2 };
        }
        let writer = convention(id)
            .and_then(safequant::schemes::Convention::writer)
            .unwrap();
        let (mut tensors, mut layouts) = (Vec::new(), Vec::new());
        for bound in &model.quantized {
            // The stored scales decide which dtype holds them.
            let safequant::schemes::ScaleCoding::Float(scale) = bound.scheme.scale else {
                panic!("{name} has no float scales")
            };
            let layout = writer
                .lay_out(&bound.module, &bound.shape, &preset, scale)
                .unwrap();
            tensors.extend(written(bound, &layout, &checkpoint));
            layouts.push(layout);
        }
        let edit = writer.config(&describe(&preset, &layouts, &[])).unwrap();
        let config = serde_json::json!({"quantization_config": edit.quantization_config});
        let mut documents =
            BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
        documents.extend(edit.documents);
        let shards = BTreeMap::from([("model.safetensors".into(), fixture::safetensors(&tensors))]);
        let again = fixture::open(name, shards, documents);
        let read = Model::bind(&again).unwrap_or_else(|e| panic!("{name} as {id}: {e}"));
        for (theirs, ours) in model.quantized.iter().zip(&read.quantized) {
            let values = |tensor: &QuantizedTensor, from| {
                let decoder = Decoder::new(tensor, from, Backend::detect()).unwrap();
                let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
                let mut values = vec![0.0_f32; n];
                decoder
                    .rows(0..tensor.n_rows(), RowsOut::F32(&mut values))
                    .unwrap();
                values
            };
            assert!(
                values(theirs, &checkpoint) == values(ours, &again),
                "{name} as {id}"
            );
            modules += 1;
        }
    }
    assert_eq!(modules, 8 * 7);
}

/// What a writer makes of its own convention's tensors is what the tool stored, and the configuration that it derives from the
/// modules alone binds them to the same thing again.
#[test]
fn compressed_tensors_are_laid_out_and_described_as_they_were() {
    let writer = convention("compressed-tensors")
        .and_then(safequant::schemes::Convention::writer)
        .unwrap();
    let (mut fixtures, mut modules, mut same_groups) = (0, 0, 0);
    for fixture in fixture::all() {
        if !fixture.name.starts_with("llm-compressor/") {
            continue;
        }
        let model = Model::bind(&fixture.open()).unwrap();
        let mut layouts = Vec::new();
        for tensor in &model.quantized {
            let layout = writer
                .lay_out_like(tensor)
                .unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
            let parts = |t: &QuantizedTensor| {
                let mut parts = t.parts.clone();
                parts.sort_by(|a, b| a.name.cmp(&b.name));
                parts
            };
            assert_eq!(parts(&layout), parts(tensor), "{}", fixture.name);
            assert_eq!(layout.scheme, tensor.scheme, "{}", fixture.name);
            layouts.push(layout);
            modules += 1;
        }
        let written = Written {
            modules: &layouts,
            ignored: &["lm_head".to_owned()],
            asked: safequant::schemes::Asked::Nothing,
        };
        let ours = Value::from(writer.config(&written).unwrap().quantization_config);
        let (shards, mut documents) = fixture.files();
        let mut config: Value = serde_json::from_slice(&documents["config.json"]).unwrap();
        let theirs = config["quantization_config"].take();
        config["quantization_config"] = ours.clone();
        documents.insert("config.json".into(), config.to_string().into_bytes());
        let again = Model::bind(&fixture::open(&fixture.name, shards, documents))
            .unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        assert_eq!(again.quantized, model.quantized, "{}", fixture.name);
        same_groups += usize::from(groups(&ours) == groups(&theirs));
        if groups(&ours) != groups(&theirs) {
            println!("{}: {}\n{}", fixture.name, groups(&ours), groups(&theirs));
        }
        fixtures += 1;
    }
    assert!(fixtures >= 40 && modules > 250, "{fixtures} {modules}");
    assert!(
        same_groups >= 30,
        "{same_groups} of {fixtures} describe the same groups"
    );
}

/// What the groups of a configuration say of weights, but for how scales were found and how groups are called.
fn groups(config: &Value) -> Value {
    let mut found = Vec::new();
    for group in config["config_groups"].as_object().into_iter().flatten() {
        let mut weights = group.1["weights"].clone();
        for key in [
            "observer",
            "observer_kwargs",
            "actorder",
            "scale_dtype",
            "zp_dtype",
        ] {
            if let Some(map) = weights.as_object_mut() {
                map.remove(key);
            }
        }
        found.push(weights);
    }
    Value::from(found)
}

#[test]
fn torchao_lays_out_what_torchao_wrote() {
    let writer = convention("torchao")
        .and_then(safequant::schemes::Convention::writer)
        .unwrap();
    let mut compared = 0;
    for fixture in fixture::all()
        .iter()
        .filter(|f| f.name.starts_with("torchao/"))
    {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        for tensor in &model.quantized {
            let again = writer.lay_out_like(tensor).unwrap();
            assert_eq!(&again, tensor, "{}", fixture.name);
        }
        let edit = writer
            .config(&safequant::schemes::Written {
                modules: &model.quantized,
                ignored: &[],
                asked: safequant::schemes::Asked::Nothing,
            })
            .unwrap();
        let theirs = |key: &str| {
            let mut shards = checkpoint.shards().iter();
            let entries = shards.find_map(|s| s.header.metadata.as_ref()).unwrap();
            let (_, text) = entries.iter().find(|(k, _)| k == key).unwrap();
            serde_json::from_str::<Value>(text).unwrap()
        };
        for (key, text) in edit.metadata.iter().filter(|(k, _)| k != "tensor_names") {
            let (ours, theirs): (Value, _) = (serde_json::from_str(text).unwrap(), theirs(key));
            assert_eq!(ours["_type"], theirs["_type"], "{key}");
            let keys = |v: &Value| -> std::collections::BTreeSet<String> {
                let names = v["_data"].as_object().unwrap().keys();
                names.cloned().collect()
            };
            assert_eq!(keys(&ours), keys(&theirs), "{key}");
            for (attribute, value) in ours["_data"].as_object().unwrap() {
                // A preference of kernels is no property of the weight.
                if attribute != "kernel_preference" {
                    assert_eq!(value, &theirs["_data"][attribute], "{key} {attribute}");
                }
            }
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared} parameters");
}
