//! The same byte equality by way of the product's own writers: `lay_out`, `rtn`, `encode` give the tool's files, part for
//! part: name, dtype, shape, bytes.

use std::path::Path;

use safequant::container::Dtype;
use safequant::kernels::{Backend, Codebook, Float, Minifloat};
use safequant::quantize::{Division, ScaleRule, scale_sums};
use safequant::schemes::convention::convention;
use safequant::schemes::encode::{constant_regions, encode, row_unit};
use safequant::schemes::preset::{Preset, PresetGranularity, WeightCode};
use safequant::schemes::{
    CodeTile, ConventionWriter, EncodedRegion, Part, QuantizedTensor, Role, SuperScale,
};
use serde_json::Value;

use super::fixture::{Fixture, Tensor, Weight, folders, has_small_scales, read};
use super::reference::{number, target};

/// What was compared, and modules whose zero points GPTQ v1 cannot hold.
#[derive(Debug, Default, PartialEq)]
struct Visited {
    fixtures: usize,
    modules: usize,
    parts: usize,
    refused: usize,
    /// Offsets of scales, and those of them that are the tool's to the last bit.
    offsets: (usize, usize),
}

/// How a fixture's weight was quantized.
type Describe = fn(&Fixture, &Weight) -> Case;

struct Case {
    convention: &'static str,
    preset: Preset,
    rule: ScaleRule,
    division: Division,
}

fn compressed_tensors(fixture: &Fixture, _: &Weight) -> Case {
    let groups = fixture.config["config_groups"].as_object().unwrap();
    let (name, group) = groups.iter().next().unwrap();
    // One fixture has its scheme spelled out.
    let name = if name == "group_0" { "FP8" } else { name };
    assert!(!group["weights"].is_null());
    let division = if fixture.name.ends_with("-div-f32") {
        Division::F32
    } else {
        Division::SourceDtype
    };
    let preset = Preset::by_name(name).unwrap();
    Case {
        convention: "compressed-tensors",
        preset,
        rule: ScaleRule::CompressedTensors,
        division,
    }
}

fn gptq(fixture: &Fixture, _: &Weight) -> Case {
    let config = &fixture.config;
    let bits = u32::try_from(number(&config["bits"]).unwrap()).unwrap();
    let convention = match config["checkpoint_format"].as_str().unwrap() {
        "gptq" => "gptq",
        "gptq_v2" => "gptq_v2",
        other => panic!("format {other}"),
    };
    let mut preset = Preset::by_name("W4A16").unwrap();
    preset.weights = if config["sym"].as_bool().unwrap() {
        WeightCode::SymmetricInteger { bits }
    } else {
        WeightCode::AsymmetricInteger { bits }
    };
    preset.granularity = match number(&config["group_size"]) {
        Some(size) => PresetGranularity::Group { size },
        None => PresetGranularity::Channel,
    };
    Case {
        convention,
        preset,
        rule: ScaleRule::Gptq,
        division: Division::SourceDtype,
    }
}

fn fp8(fixture: &Fixture, _: &Weight) -> Case {
    let block: &Value = &fixture.config["weight_block_size"];
    let mut preset = Preset::by_name("FP8_BLOCK").unwrap();
    preset.granularity = PresetGranularity::Block {
        rows: number(&block[0]).unwrap(),
        columns: number(&block[1]).unwrap(),
    };
    let rule = ScaleRule::FineGrainedFp8;
    Case {
        convention: "fp8",
        preset,
        rule,
        division: Division::SourceDtype,
    }
}

/// comfy-kitchen's weights are called by what they became.
fn comfyui(_: &Fixture, weight: &Weight) -> Case {
    let (_, leaf) = weight.module.rsplit_once('.').unwrap();
    let name = match leaf {
        "fp8" | "fp8_e5m2" => "FP8",
        "int8" | "int8_rows" => "W8A8",
        "nvfp4" | "nvfp4_tiles" => "NVFP4",
        "mxfp8" => "MXFP8",
        other => panic!("weight {other}"),
    };
    let mut preset = Preset::by_name(name).unwrap();
    if leaf == "fp8_e5m2" {
        preset.weights = WeightCode::Minifloat(Minifloat::E5M2);
    }
    if leaf == "int8" {
        preset.granularity = PresetGranularity::Tensor;
    }
    Case {
        convention: "comfyui",
        preset,
        rule: ScaleRule::ComfyUi,
        division: Division::SourceDtype,
    }
}

fn hqq(fixture: &Fixture, _: &Weight) -> Case {
    let params = &fixture.config["quant_config"]["weight_quant_params"];
    assert_eq!(
        (&params["axis"], &params["optimize"]),
        (&1.into(), &false.into())
    );
    let bits = u32::try_from(number(&params["nbits"]).unwrap()).unwrap();
    let mut preset = Preset::by_name("W4A16_ASYM").unwrap();
    preset.weights = WeightCode::AsymmetricInteger { bits };
    preset.granularity = PresetGranularity::Group {
        size: number(&params["group_size"]).unwrap(),
    };
    Case {
        convention: "hqq",
        preset,
        rule: ScaleRule::Hqq,
        division: Division::SourceDtype,
    }
}

fn quanto(fixture: &Fixture, _: &Weight) -> Case {
    let weights = fixture.name.split('-').nth(2).unwrap();
    let name = match weights {
        "qint4" => "W4A16_ASYM",
        other => panic!("{other}"),
    };
    Case {
        convention: "quanto",
        preset: Preset::by_name(name).unwrap(),
        rule: ScaleRule::Quanto,
        division: Division::SourceDtype,
    }
}

fn torchao(fixture: &Fixture, _: &Weight) -> Case {
    let kind = &fixture.config["quant_type"]["default"]["_type"];
    assert_eq!(kind, "Int8WeightOnlyConfig");
    Case {
        convention: "torchao",
        preset: Preset::by_name("W8A16")
            .unwrap()
            .with_group_size(Some(-1))
            .unwrap(),
        rule: ScaleRule::TorchAo,
        division: Division::SourceDtype,
    }
}

fn bitsandbytes(fixture: &Fixture, _: &Weight) -> Case {
    let config = &fixture.config;
    let mut preset = Preset::by_name("INT8").unwrap();
    if config["load_in_4bit"] == true {
        let book = match config["bnb_4bit_quant_type"].as_str().unwrap() {
            "nf4" => Codebook::Nf4,
            "fp4" => Codebook::BnbFp4,
            other => panic!("{other}"),
        };
        preset = Preset::by_name("NF4").unwrap();
        let is_double = config["bnb_4bit_use_double_quant"].as_bool().unwrap();
        preset.weights = if is_double {
            WeightCode::NestedCodebook(book)
        } else {
            WeightCode::Codebook(book)
        };
    }
    Case {
        convention: "bitsandbytes",
        preset,
        rule: ScaleRule::Bitsandbytes,
        division: Division::SourceDtype,
    }
}

/// The layout with the offset that the tool has: ours is the mean of all scales rounded once, theirs may be off in its last bit.
fn moved(
    tensor: QuantizedTensor,
    writer: &dyn ConventionWriter,
    (fixture, weight, rule): (&Fixture, &Weight, ScaleRule),
    visited: &mut Visited,
) -> QuantizedTensor {
    if !matches!(tensor.scheme.super_scale, SuperScale::Nested { .. }) {
        return tensor;
    }
    let state = tensor.part(Role::Shape).unwrap();
    let state: Value = serde_json::from_slice(&fixture.model[&state.name].bytes).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "an F32 in decimals")]
    let theirs = state["nested_offset"].as_f64().unwrap() as f32;
    let target = target(tensor.scheme.clone(), rule);
    let sums = scale_sums(&target, weight.rows(), Backend::detect()).unwrap();
    let n = weight.values.len().div_ceil(64);
    assert_eq!(sums.len(), n.div_ceil(256));
    let mean = sums.iter().sum::<f64>() / f64::from(u32::try_from(n).unwrap());
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    let ours = mean as f32;
    let place = format!("{}: {}", fixture.name, weight.module);
    assert!(ours.to_bits().abs_diff(theirs.to_bits()) <= 1, "{place}");
    visited.offsets.0 += 1;
    visited.offsets.1 += usize::from(ours.to_bits() == theirs.to_bits());
    writer.with_scale_offset(tensor, theirs).unwrap()
}

/// Puts regions into whole parts; every byte must come exactly once.
fn assemble(tensor: &QuantizedTensor, regions: &[EncodedRegion]) -> Vec<Vec<Option<u8>>> {
    let length = |n: u64| usize::try_from(n).unwrap();
    let empty = tensor.parts.iter().map(|part| {
        let elements: u64 = part.shape.iter().product();
        vec![None; length(elements * part.dtype.bits() / 8)]
    });
    let mut parts: Vec<Vec<Option<u8>>> = empty.collect();
    for region in regions {
        let (start, end) = (length(region.columns.start), length(region.columns.end));
        let mut bytes = region.bytes.iter();
        for row in region.rows.clone() {
            for column in start..end {
                let at = length(row * region.row_len) + column;
                let old = parts[region.part][at].replace(*bytes.next().unwrap());
                assert_eq!(old, None, "byte {at} of part {} comes twice", region.part);
            }
        }
        assert_eq!(bytes.next(), None, "a region has bytes left over");
    }
    parts
}

/// The whole weight's tile cut at a multiple of the row unit, so that joining is tested too.
fn split(tensor: &QuantizedTensor, weight: &Weight, tile: &CodeTile) -> Vec<CodeTile> {
    let unit = usize::try_from(row_unit(tensor)).unwrap();
    let at = (weight.out_features / 2 / unit * unit).max(unit);
    if at >= weight.out_features || !tile.scales.len().is_multiple_of(weight.out_features) {
        return vec![tile.clone()];
    }
    let per_row = tile.scales.len() / weight.out_features;
    let zeros = usize::from(!tile.zeros.is_empty()) * per_row;
    let offsets = usize::from(!tile.offsets.is_empty()) * per_row;
    let supers = tile.supers.as_slice();
    let (before, after) = match tensor.scheme.super_scale {
        SuperScale::Nested { size, offset: _ } => {
            supers.split_at(at * per_row / usize::try_from(size).unwrap())
        }
        // One for the whole matrix.
        SuperScale::None
        | SuperScale::Multiply
        | SuperScale::Divide
        | SuperScale::Grouped { .. }
        | SuperScale::Channel => (supers, supers),
    };
    let cut = |from: usize, to: usize, supers: &[f32]| CodeTile {
        rows: from as u64..to as u64,
        codes: tile.codes[from * weight.in_features..to * weight.in_features].to_vec(),
        scales: tile.scales[from * per_row..to * per_row].to_vec(),
        zeros: tile.zeros[from * zeros..to * zeros].to_vec(),
        offsets: tile.offsets[from * offsets..to * offsets].to_vec(),
        supers: supers.to_vec(),
        ..CodeTile::default()
    };
    vec![cut(0, at, before), cut(at, weight.out_features, after)]
}

/// Floats without minus zero: which zero is the smallest value depends on the tool's vector width.
fn unsigned_zeros(bytes: &[u8], part: &Part) -> Vec<u8> {
    let width = usize::try_from(part.dtype.bits() / 8).unwrap();
    let mut out = bytes.to_vec();
    for float in out.chunks_exact_mut(width) {
        let (sign, rest) = float.split_last_mut().unwrap();
        if *sign == 0x80 && rest.iter().all(|&byte| byte == 0) {
            *sign = 0;
        }
    }
    out
}

fn check(fixture: &Fixture, describe: Describe, visited: &mut Visited) {
    let backend = Backend::detect();
    for weight in fixture.weights() {
        let case = describe(fixture, &weight);
        let writer = convention(case.convention).unwrap().writer().unwrap();
        let place = format!("{}: {}", fixture.name, weight.module);
        let shape = [weight.out_features as u64, weight.in_features as u64];
        let tensor = writer
            .lay_out(&weight.module, &shape, &case.preset, weight.source)
            .unwrap();
        let tensor = moved(tensor, writer, (fixture, &weight, case.rule), visited);
        let mut target = target(tensor.scheme.clone(), case.rule);
        target.division = case.division;
        let tile = weight.quantize(&target);
        let mut regions = constant_regions(&tensor);
        let tiles = split(&tensor, &weight, &tile);
        let encoded: Result<Vec<_>, _> =
            tiles.iter().map(|t| encode(&tensor, t, backend)).collect();
        if case.convention == "gptq" && tile.zeros.contains(&0) {
            assert!(encoded.is_err(), "{place}: a zero point of 0 in GPTQ v1");
            visited.refused += 1;
            continue;
        }
        regions.extend(
            encoded
                .unwrap_or_else(|error| panic!("{place}: {error}"))
                .into_iter()
                .flatten(),
        );
        let names = |name: &&String| name.starts_with(&format!("{}.", weight.module));
        assert_eq!(
            fixture.model.keys().filter(names).count(),
            tensor.parts.len(),
            "{place}"
        );
        for (part, bytes) in tensor.parts.iter().zip(assemble(&tensor, &regions)) {
            let theirs = &fixture.model.get(&part.name);
            let theirs = theirs.unwrap_or_else(|| panic!("{place}: no {}", part.name));
            let theirs_shape: Vec<u64> = theirs.shape.iter().map(|&n| n as u64).collect();
            assert_eq!(
                (part.dtype, &part.shape),
                (theirs.dtype, &theirs_shape),
                "{}",
                part.name
            );
            let bytes: Option<Vec<u8>> = bytes.into_iter().collect();
            let bytes = bytes.unwrap_or_else(|| panic!("{place}: {} has holes", part.name));
            let (bytes, theirs) = if part.role == Role::Offset {
                (
                    unsigned_zeros(&bytes, part),
                    unsigned_zeros(&theirs.bytes, part),
                )
            } else {
                (bytes, theirs.bytes.clone())
            };
            let at = bytes.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(
                at, None,
                "{}: first different byte of {}",
                fixture.name, part.name
            );
            visited.parts += 1;
        }
        visited.modules += 1;
    }
    visited.fixtures += 1;
}

#[test]
fn what_our_writers_encode_equals_the_tools_files() {
    let producers: [(&str, Describe); 8] = [
        ("bitsandbytes", bitsandbytes),
        ("comfyui", comfyui),
        ("llm-compressor", compressed_tensors),
        ("gptqmodel", gptq),
        ("transformers", fp8),
        ("hqq", hqq),
        ("optimum-quanto", quanto),
        ("torchao", torchao),
    ];
    let mut visited = Visited::default();
    for (producer, describe) in producers {
        for folder in folders(producer) {
            if has_small_scales(&folder) {
                continue;
            }
            let fixture = Fixture::open(&folder);
            check(&fixture, describe, &mut visited);
        }
    }
    assert_eq!(
        visited,
        Visited {
            fixtures: 47,
            modules: 241,
            parts: 807,
            refused: 7,
            offsets: (8, 7),
        }
    );
}

/// Rows and columns of a matrix of all-MiniLM-L6-v2, from row `first` on, as F16.
fn slice(matrix: &Tensor, first: usize, [rows, columns]: [usize; 2]) -> Tensor {
    let [_, width] = matrix.shape[..] else {
        panic!("a matrix");
    };
    let (values, _) = matrix.bytes.as_chunks::<4>();
    let lines = values.chunks(width).skip(first).take(rows);
    let values = lines.flat_map(|line| &line[..columns]);
    let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let mut bytes = vec![0; 2 * values.len()];
    (Backend::detect().round)(Float::F16, &values, &mut bytes);
    Tensor {
        dtype: Dtype::F16,
        shape: vec![rows, columns],
        bytes,
    }
}

/// `bnb-minilm-nf4`: what its dense model was made of is a fixture, too.
#[test]
fn double_quantization_of_real_weights_is_the_tools() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let real = read(&root.join("all-minilm-l6-v2/model.safetensors"));
    let folder = root.join("bitsandbytes/bnb-minilm-nf4");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let source = [
        ("self_attn.q_proj", "attention.self.query", 0, [256, 256]),
        ("self_attn.k_proj", "attention.self.key", 0, [256, 256]),
        ("self_attn.v_proj", "attention.self.value", 0, [256, 256]),
        ("self_attn.o_proj", "attention.output.dense", 0, [256, 256]),
        ("mlp.gate_proj", "intermediate.dense", 0, [384, 256]),
        ("mlp.up_proj", "intermediate.dense", 1536 - 384, [384, 256]),
        ("mlp.down_proj", "output.dense", 0, [256, 384]),
    ];
    let source = source.into_iter().map(|(module, of, first, shape)| {
        let matrix = &real[&format!("encoder.layer.0.{of}.weight")];
        let name = format!("model.layers.0.{module}.weight");
        (name, slice(matrix, first, shape))
    });
    let fixture = Fixture {
        name: "bnb-minilm-nf4".to_owned(),
        config: config["quantization_config"].clone(),
        source: source.collect(),
        model: read(&folder.join("model.safetensors")),
    };
    let mut visited = Visited::default();
    check(&fixture, bitsandbytes, &mut visited);
    assert_eq!(
        visited,
        Visited {
            fixtures: 1,
            modules: 7,
            parts: 42,
            refused: 0,
            // Sums of F16 numbers are exact in either precision.
            offsets: (7, 7),
        }
    );
}
