//! Marlin tiles: the worked example, and tiles of `AutoAWQ`'s own packer as checkpoints. No tool writes such files any more.

use std::collections::BTreeMap;

use safequant::container::{Checkpoint, Dtype};
use safequant::kernels::{Backend, Float};
use safequant::schemes::encode::encode;
use safequant::schemes::{Decoder, Error, Granularity, Model, RowsOut};
use serde_json::{Value, json};

use super::fixture::{self, Dense, Draft};

fn dense(dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Dense {
    let shape = shape.to_vec();
    Dense {
        dtype,
        shape,
        bytes,
    }
}

fn checkpoint(tensors: Vec<(&str, Dense)>, settings: Option<Value>) -> Checkpoint {
    let tensors: Vec<(String, Dense)> = tensors
        .into_iter()
        .map(|(name, dense)| (name.to_owned(), dense))
        .collect();
    let config = settings.map(|s| json!({"quantization_config": s}).to_string().into_bytes());
    fixture::open(
        "marlin",
        BTreeMap::from([("model.safetensors".into(), fixture::safetensors(&tensors))]),
        config
            .map(|c| ("config.json".to_owned(), c))
            .into_iter()
            .collect(),
    )
}

/// The tile of this name in `specs/vectors/tiles.json`: rows, columns, bytes.
fn vector(tile: &str) -> (usize, usize, Vec<u8>) {
    let path = fixture::root().join("../specs/vectors/tiles.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = all["cases"].as_array().unwrap();
    let case = cases.iter().find(|c| c["tile"] == tile).unwrap();
    let hex = case["bytes"].as_str().unwrap();
    let bytes = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap());
    let size = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
    (size("rows"), size("columns"), bytes.collect())
}

/// Entry (row, column) of the vectors' matrices: the highest bits of a product.
fn entry(row: usize, column: usize, columns: usize, bits: u32) -> u16 {
    let at = u32::try_from(row * columns + column + 1).unwrap();
    u16::try_from(at.wrapping_mul(2_654_435_761) >> (32 - bits)).unwrap()
}

fn example(scale: u16) -> Vec<(&'static str, Dense)> {
    // All codes 8, but for input feature 0, where output features 0 to 7 have 0 to 7.
    let mut words = vec![0x8888_8888_u32; 8 * 128];
    for n in 0..8_u32 {
        words[usize::try_from(16 * n).unwrap()] = 0x8888_8880 + n;
    }
    let words = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let scales = scale.to_le_bytes().repeat(64);
    vec![
        ("l.B", dense(Dtype::I32, &[8, 128], words)),
        ("l.s", dense(Dtype::F16, &[1, 64], scales)),
    ]
}

#[test]
fn the_worked_example_is_read_with_and_without_a_configuration() {
    let told = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
        "checkpoint_format": "marlin"});
    let legacy =
        json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "is_marlin_format": true});
    let own = json!({"quant_method": "marlin", "bits": 4, "group_size": 128});
    for settings in [None, Some(told), Some(legacy), Some(own)] {
        // 0x3800 is one half.
        let checkpoint = checkpoint(example(0x3800), settings);
        let model = Model::bind(&checkpoint).unwrap();
        let tensor = &model.quantized[0];
        assert_eq!((tensor.convention, model.quantized.len()), ("marlin", 1));
        assert_eq!(
            (tensor.weight.as_str(), &tensor.shape),
            ("l.weight", &vec![64, 128])
        );
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let mut weights = vec![1.0; 64 * 128];
        decoder.rows(0..64, RowsOut::F32(&mut weights)).unwrap();
        let mut expected = vec![0.0; 64 * 128];
        for (n, code) in [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0_f32]
            .into_iter()
            .enumerate()
        {
            expected[n * 128] = (code - 8.0) * 0.5;
        }
        assert!(weights == expected);
    }
}

/// Codes and scales of `AutoAWQ`'s packer, under both pairs of names.
#[test]
fn tiles_of_autoawq_are_read_and_come_out_as_they_went_in() {
    let settings =
        json!({"quant_method": "awq", "bits": 4, "zero_point": false, "version": "marlin"});
    let mut visited = 0;
    for (tile, names, settings) in [
        (
            "marlin_scales_single",
            ["l.qweight", "l.scales"],
            Some(&settings),
        ),
        ("marlin_scales_single", ["l.B", "l.s"], None),
        ("marlin_scales", ["l.qweight", "l.scales"], None),
        ("marlin_scales", ["l.B", "l.s"], Some(&settings)),
    ] {
        let (rows, groups, scales) = vector(tile);
        let (_, columns, tiles) = vector("marlin");
        // Three groups need more columns than the codes' vector has: it is repeated.
        let n = if groups == 1 { 1 } else { 3 };
        let in_features = u64::try_from(n * columns).unwrap();
        let parts = [tiles.repeat(n), scales.clone()];
        let out = u64::try_from(rows).unwrap();
        let shapes = [
            [in_features / 16, 2 * out],
            [u64::try_from(groups).unwrap(), out],
        ];
        let tensors = vec![
            (names[0], dense(Dtype::I32, &shapes[0], parts[0].clone())),
            (names[1], dense(Dtype::F16, &shapes[1], parts[1].clone())),
        ];
        let checkpoint = checkpoint(tensors, settings.cloned());
        let model = Model::bind(&checkpoint).unwrap();
        let tensor = &model.quantized[0];
        let size = in_features / shapes[1][0];
        assert_eq!(tensor.scheme.granularity, Granularity::Group { size });
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let tile = decoder.codes(0..out).unwrap();
        for (at, code) in tile.codes.iter().enumerate() {
            let (row, column) = (at / (n * columns), at % columns);
            assert_eq!(u16::from(*code), entry(row, column, columns, 4));
        }
        let entries = (0..rows).flat_map(|r| (0..groups).map(move |g| entry(r, g, groups, 16)));
        let halves: Vec<u8> = entries.flat_map(u16::to_le_bytes).collect();
        let mut expected = vec![0.0; rows * groups];
        (Backend::detect().widen)(Float::F16, &halves, &mut expected);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tile.scales), bits(&expected));
        if !expected.iter().any(|x| x.is_nan()) {
            let regions = encode(tensor, &tile, Backend::detect()).unwrap();
            assert_eq!(regions.len(), 2);
            for region in regions {
                assert!(region.bytes == parts[region.part]);
            }
        }
        visited += 1;
    }
    assert_eq!(visited, 4);
}

#[test]
fn the_name_alone_means_ordinary_tensors_of_gptqmodel() {
    let draft = Draft::of("gptqmodel/gptq-w4g128-sym").configure(|config| {
        for key in ["checkpoint_format", "format"] {
            config["quantization_config"][key] = json!("marlin");
        }
    });
    let model = Model::bind(&draft.open()).unwrap();
    assert!(model.quantized.iter().all(|t| t.convention == "gptq"));
    assert!(model.quantized.len() > 3);
}

#[test]
fn what_is_no_marlin_is_never_taken_for_dense() {
    let bind = |tensors, settings| Model::bind(&checkpoint(tensors, settings)).unwrap_err();
    let mut lonely = example(0x3800);
    lonely.truncate(1);
    let e = bind(lonely, None);
    assert!(matches!(e, Error::Unsupported { .. }), "{e}");
    let mut qqq = example(0x3800);
    qqq[1].0 = "l.s_channel";
    let e = bind(qqq, None);
    assert!(e.to_string().contains("QQQ"), "{e}");
    let wide = json!({"quant_method": "gptq", "bits": 8, "group_size": 128, "checkpoint_format": "marlin"});
    let e = bind(example(0x3800), Some(wide));
    assert!(e.to_string().contains("8 bits"), "{e}");
    let groups =
        json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin"});
    let e = bind(example(0x3800), Some(groups));
    assert!(matches!(e, Error::PartShape { .. }), "{e}");
    let mut narrow = example(0x3800);
    narrow[1].1.shape = vec![2, 32];
    let e = bind(narrow, None);
    assert!(matches!(e, Error::PartShape { .. }), "{e}");
    let mut both = example(0x3800);
    both.push(("l.weight", dense(Dtype::F16, &[1, 1], vec![0; 2])));
    let e = bind(both, None);
    assert!(matches!(e, Error::Contradiction { .. }), "{e}");
}
