//! Byte equality with llm-compressor, `GPTQModel` and transformers (`fixtures/tools/make_rtn.py`).
//!
//! Our codes, scales and zero points are packed here with the kernels' packings, step by step as the formats' pages
//! say, and compared with every byte of every part that the tool wrote.

use safequant::kernels::{Backend, Float, Floats, Minifloat, Packing};
use safequant::quantize::{
    Division, NonFinite, Quantizer, RoundToNearest, Rows, ScaleRule, Target,
};
use safequant::schemes::{
    Code, CodeTile, Granularity, IntegerEncoding, ScaleCoding, Scheme, ZeroCoding, ZeroPoint,
};
use serde_json::Value;

use super::fixture::{Fixture, Weight, float, folders, has_small_scales};

/// What was compared: fixtures, modules, and the bytes of all their parts.
#[derive(Debug, Default, PartialEq)]
struct Visited {
    fixtures: usize,
    modules: usize,
    parts: usize,
}

pub(super) fn target(scheme: Scheme, rule: ScaleRule) -> Target {
    Target {
        scheme,
        rule,
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
    }
}

pub(super) fn integer(
    bits: u32,
    zero_point: ZeroPoint,
    granularity: Granularity,
    scale: Float,
) -> Scheme {
    Scheme {
        zero_point,
        ..Scheme::plain(
            Code::Integer {
                bits,
                encoding: IntegerEncoding::Unsigned,
            },
            granularity,
            ScaleCoding::Float(scale),
        )
    }
}

pub(super) fn middle(bits: u32) -> ZeroPoint {
    ZeroPoint::Fixed(1 << (bits - 1))
}

pub(super) fn fp8(granularity: Granularity, scale: Float) -> Scheme {
    Scheme {
        code: Code::Minifloat(Minifloat::E4M3),
        zero_point: ZeroPoint::Fixed(0),
        ..integer(8, middle(8), granularity, scale)
    }
}

impl Weight {
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows {
            values: Floats::F32(&self.values),
            in_features: self.in_features,
            first_row: 0,
            out_features: self.out_features as u64,
            source: self.source,
        }
    }

    pub(super) fn quantize(&self, target: &Target) -> CodeTile {
        let backend = Backend::detect();
        let statistics = RoundToNearest
            .observe(target, self.rows(), backend)
            .unwrap();
        RoundToNearest
            .quantize(target, self.rows(), Some(&statistics), backend)
            .unwrap()
    }
}

/// Packs each run of `run` codes into 32-bit words.
fn pack(packing: Packing, codes: &[u8], run: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for codes in codes.chunks(run) {
        let mut words = vec![0; packing.packed_len_bytes(run, 4)];
        packing.pack(codes, &mut words);
        out.extend(words);
    }
    out
}

fn transpose<T: Copy>(grid: &[T], columns: usize) -> Vec<T> {
    (0..columns)
        .flat_map(|c| grid.iter().skip(c).step_by(columns).copied())
        .collect()
}

fn dense(dtype: Float, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; values.len() * dtype.size_bytes()];
    (Backend::detect().round)(dtype, values, &mut out);
    out
}

fn bytes(zeros: &[i32]) -> Vec<u8> {
    zeros
        .iter()
        .map(|&zero| u8::try_from(zero).unwrap())
        .collect()
}

fn assert_bytes(
    fixture: &Fixture,
    weight: &Weight,
    part: &str,
    ours: &[u8],
    visited: &mut Visited,
) {
    let theirs = &fixture.part(&weight.module, part).bytes;
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
    let different = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
    let place = format!("{}: {}.{part}", fixture.name, weight.module);
    assert_eq!(ours.len(), theirs.len(), "{place}: length");
    assert_eq!(
        at,
        None,
        "{place}: first different byte ({different} of {})",
        ours.len()
    );
    visited.parts += 1;
}

pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn compressed_tensors_granularity(args: &Value) -> Granularity {
    let block = &args["block_structure"];
    match args["strategy"].as_str().unwrap() {
        "tensor" => Granularity::Tensor,
        "channel" => Granularity::Channel,
        "group" => Granularity::Group {
            size: number(&args["group_size"]).unwrap(),
        },
        "block" => Granularity::Block {
            rows: number(&block[0]).unwrap(),
            columns: number(&block[1]).unwrap(),
        },
        other => panic!("strategy {other}"),
    }
}

#[test]
fn compressed_tensors_bytes_equal_those_of_llm_compressor() {
    let mut visited = Visited::default();
    for folder in folders("llm-compressor") {
        if has_small_scales(&folder) {
            continue;
        }
        let fixture = Fixture::open(&folder);
        let groups = fixture.config["config_groups"].as_object().unwrap();
        let group = groups.values().next().unwrap();
        let (args, format) = (&group["weights"], group["format"].as_str().unwrap());
        let bits = u32::try_from(number(&args["num_bits"]).unwrap()).unwrap();
        let granularity = compressed_tensors_granularity(args);
        let symmetric = args["symmetric"].as_bool().unwrap();
        for weight in fixture.weights() {
            let zero = if symmetric {
                middle(bits)
            } else {
                ZeroPoint::Stored(ZeroCoding::Direct)
            };
            let scheme = match format {
                "float-quantized" => fp8(granularity, weight.source),
                _ => integer(bits, zero, granularity, weight.source),
            };
            let mut target = target(scheme, ScaleRule::CompressedTensors);
            if fixture.name.ends_with("-div-f32") {
                target.division = Division::F32;
            }
            let tile = weight.quantize(&target);
            let (codes_part, codes) = match format {
                "pack-quantized" => (
                    "weight_packed",
                    pack(Packing::LsbFirst { bits }, &tile.codes, weight.in_features),
                ),
                "int-quantized" => (
                    "weight",
                    tile.codes.iter().map(|code| code ^ 0x80).collect(),
                ),
                "float-quantized" => ("weight", tile.codes.clone()),
                other => panic!("format {other}"),
            };
            let scales = dense(weight.source, &tile.scales);
            assert_bytes(&fixture, &weight, "weight_scale", &scales, &mut visited);
            if !symmetric {
                // Packed along the rows, so down each column of the grid.
                let groups = tile.zeros.len() / weight.out_features;
                let columns = transpose(&bytes(&tile.zeros), groups);
                let packed = pack(Packing::LsbFirst { bits }, &columns, weight.out_features);
                let words: Vec<[u8; 4]> = packed.chunks(4).map(|w| w.try_into().unwrap()).collect();
                let zeros = transpose(&words, words.len() / groups).concat();
                assert_bytes(&fixture, &weight, "weight_zero_point", &zeros, &mut visited);
            }
            assert_bytes(&fixture, &weight, codes_part, &codes, &mut visited);
            visited.modules += 1;
        }
        visited.fixtures += 1;
    }
    assert_eq!(
        visited,
        Visited {
            fixtures: 21,
            modules: 126,
            parts: 277
        }
    );
}

/// `qzeros` of one group: v1 stores one less, by subtracting from whole words where words hold whole lanes.
fn gptq_zeros(bits: u32, format: &str, zeros: &[u8]) -> Vec<u8> {
    let packing = Packing::LsbFirst { bits };
    match (format, bits) {
        ("gptq_v2", _) => pack(packing, zeros, zeros.len()),
        ("gptq", 3) => {
            let less: Vec<u8> = zeros.iter().map(|zero| zero.wrapping_sub(1) & 7).collect();
            pack(packing, &less, less.len())
        }
        ("gptq", _) => {
            let ones = vec![1; zeros.len()];
            let ones = pack(packing, &ones, ones.len());
            let words = pack(packing, zeros, zeros.len());
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
            let pairs = words.chunks(4).zip(ones.chunks(4));
            pairs
                .flat_map(|(a, b)| word(a).wrapping_sub(word(b)).to_le_bytes())
                .collect()
        }
        (other, _) => panic!("format {other}"),
    }
}

#[test]
fn gptq_bytes_equal_those_of_gptqmodel() {
    let mut visited = Visited::default();
    for folder in folders("gptqmodel") {
        let fixture = Fixture::open(&folder);
        let config = &fixture.config;
        let bits = u32::try_from(number(&config["bits"]).unwrap()).unwrap();
        let format = config["checkpoint_format"].as_str().unwrap();
        let granularity = match number(&config["group_size"]) {
            Some(size) => Granularity::Group { size },
            None => Granularity::Channel,
        };
        let symmetric = config["sym"].as_bool().unwrap();
        let zero = if symmetric {
            middle(bits)
        } else {
            ZeroPoint::Stored(ZeroCoding::Direct)
        };
        for weight in fixture.weights() {
            let scheme = integer(bits, zero, granularity, Float::F16);
            let tile = weight.quantize(&target(scheme, ScaleRule::Gptq));
            let (n, k) = (weight.out_features, weight.in_features);
            let groups = tile.scales.len() / n;

            let scales = dense(Float::F16, &transpose(&tile.scales, groups));
            assert_bytes(&fixture, &weight, "scales", &scales, &mut visited);

            let zeros = if symmetric {
                vec![1 << (bits - 1); n * groups]
            } else {
                tile.zeros
            };
            let zeros = transpose(&bytes(&zeros), groups);
            let zeros: Vec<u8> = zeros
                .chunks(n)
                .flat_map(|row| gptq_zeros(bits, format, row))
                .collect();
            assert_bytes(&fixture, &weight, "qzeros", &zeros, &mut visited);

            let packed = pack(Packing::LsbFirst { bits }, &tile.codes, k);
            let words: Vec<[u8; 4]> = packed.chunks(4).map(|w| w.try_into().unwrap()).collect();
            let codes = transpose(&words, words.len() / n).concat();
            assert_bytes(&fixture, &weight, "qweight", &codes, &mut visited);
            visited.modules += 1;
        }
        visited.fixtures += 1;
    }
    assert_eq!(
        visited,
        Visited {
            fixtures: 12,
            modules: 81,
            parts: 243
        }
    );
}

#[test]
fn fine_grained_fp8_bytes_equal_those_of_transformers() {
    let mut visited = Visited::default();
    for folder in folders("transformers") {
        let fixture = Fixture::open(&folder);
        let block = &fixture.config["weight_block_size"];
        let (rows, columns) = (number(&block[0]).unwrap(), number(&block[1]).unwrap());
        for weight in fixture.weights() {
            let scheme = fp8(Granularity::Block { rows, columns }, Float::F32);
            let tile = weight.quantize(&target(scheme, ScaleRule::FineGrainedFp8));
            assert_eq!(
                float(fixture.part(&weight.module, "weight_scale_inv").dtype),
                Float::F32
            );
            let scales = dense(Float::F32, &tile.scales);
            assert_bytes(&fixture, &weight, "weight_scale_inv", &scales, &mut visited);
            assert_bytes(&fixture, &weight, "weight", &tile.codes, &mut visited);
            visited.modules += 1;
        }
        visited.fixtures += 1;
    }
    assert_eq!(
        visited,
        Visited {
            fixtures: 3,
            modules: 8,
            parts: 16
        }
    );
}
