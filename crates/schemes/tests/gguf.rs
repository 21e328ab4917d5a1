//! GGUF models by llama.cpp and gguf-py (fixtures/llama.cpp): every value to the last bit, and the blocks again from what was
//! decoded.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safequant_container::{
    BytesSource, Checkpoint, Dtype, GgmlType, GgufMetadata, GgufTensor, Limits, ReadAt,
    write_gguf_header,
};
use safequant_kernels::{Backend, Float};
use safequant_schemes::encode::encode;
use safequant_schemes::{
    Axis, Code, Decoder, Error, Model, QuantizedTensor, Role, RowsOut, Selection, Storage,
    SuperScale, slice,
};

fn open(name: &str) -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama.cpp");
    Checkpoint::open(&root.join(name), &Limits::default()).unwrap()
}

fn decode(tensor: &QuantizedTensor, checkpoint: &Checkpoint) -> Vec<f32> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
    let mut values = vec![f32::NAN; n];
    decoder
        .rows(0..tensor.n_rows(), RowsOut::F32(&mut values))
        .unwrap();
    values
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks().0.iter();
    values.map(|&value| f32::from_le_bytes(value)).collect()
}

#[test]
fn values_are_those_of_the_tool() {
    let mut n_tensors = 0;
    for (file, folder) in [
        ("gguf-zoo/zoo.gguf", "gguf-zoo"),
        ("gguf-model-q4_k_m/model.gguf", "gguf-model-q4_k_m"),
        ("gguf-model-q5_0/model.gguf", "gguf-model-q5_0"),
    ] {
        let checkpoint = open(file);
        let model = Model::bind(&checkpoint).unwrap();
        assert_eq!(model.conventions[0].0, "gguf");
        let expected = open(&format!("{folder}/expected.safetensors"));
        for expected in expected.tensors() {
            let of_name = |t: &&QuantizedTensor| t.weight == expected.name();
            let tensor = model.quantized.iter().find(of_name).unwrap();
            assert_eq!(tensor.shape, expected.shape(), "{}", expected.name());
            let found = decode(tensor, &checkpoint);
            let wanted = floats(&expected.read_all(1 << 24).unwrap());
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            assert!(found.iter().zip(&wanted).all(same), "{}", expected.name());
            n_tensors += 1;
        }
    }
    assert_eq!(n_tensors, 25 + 3 + 9);
}

/// Every type with codes, from its tiles; slices along the rows are bytes of the file, along the columns they are made.
#[test]
fn blocks_come_again_from_the_neutral_form() {
    let checkpoint = open("gguf-zoo/zoo.gguf");
    let model = Model::bind(&checkpoint).unwrap();
    let (mut n_coded, mut n_values) = (0, 0);
    for tensor in &model.quantized {
        let codes = tensor.part(Role::Codes).unwrap();
        let Storage::Blocks { format } = codes.storage else {
            assert_eq!(codes.dtype, Dtype::BF16);
            continue;
        };
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let tile = decoder.codes(2..7).unwrap();
        let encoded = encode(tensor, &tile, Backend::detect());
        if matches!(tensor.scheme.code, Code::Dense(_)) {
            assert!(matches!(encoded, Err(Error::CannotWrite { .. })));
            n_values += 1;
            continue;
        }
        let regions = encoded.unwrap();
        let stored = checkpoint.tensor(&codes.name).unwrap();
        let row_len = stored.shape()[1];
        let mut bytes = vec![0; regions[0].bytes.len()];
        stored.read_exact_at(2 * row_len, &mut bytes).unwrap();
        assert_eq!(regions.len(), 1);
        assert_eq!((&regions[0].rows, regions[0].row_len), (&(2..7), row_len));
        assert_eq!(regions[0].bytes, bytes, "{}", format.name());
        n_coded += 1;
        let halves = |axis, n: u64| {
            [0..n / 2, n / 2..n].map(|range| {
                let selection = Selection {
                    axis,
                    ranges: vec![range],
                };
                slice(tensor, &selection).unwrap()
            })
        };
        for (axis, n) in [(Axis::Out, 10), (Axis::In, 512)] {
            for half in halves(axis, n) {
                let bytes = half.read(tensor, &checkpoint, Backend::detect()).unwrap();
                assert_eq!(bytes[0].len() as u64, 5 * row_len, "{}", format.name());
            }
        }
    }
    assert_eq!((n_coded, n_values), (21, 3));
}

/// Decoding blocks in one go gives what their codes and scales give step by step, in every output, from any row on.
#[test]
fn blocks_in_one_go_are_those_of_the_neutral_form() {
    let checkpoint = open("gguf-zoo/zoo.gguf");
    let model = Model::bind(&checkpoint).unwrap();
    let mut n_tensors = 0;
    for tensor in &model.quantized {
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let tile = decoder.codes(3..8).unwrap();
        for &float in Float::ALL {
            let n = 5 * usize::try_from(tensor.in_features()).unwrap() * float.size_bytes();
            let (mut found, mut expected) = (vec![0xa5; n], vec![0x5a; n]);
            let out = RowsOut::Bytes(float, &mut found);
            decoder.rows(3..8, out).unwrap();
            let out = RowsOut::Bytes(float, &mut expected);
            decoder.dequantizer().tile(&tile, out).unwrap();
            assert!(found == expected, "{} {float:?}", tensor.weight);
        }
        n_tensors += 1;
    }
    assert_eq!(n_tensors, 25);
}

/// A file with one tensor of blocks and the F32 tensors given, all bytes from `data`.
fn file(id: u32, more: &[(&str, u64)], data: &[u8]) -> Checkpoint {
    let tensor = |name: &str, shape: &[u64], ggml_type| GgufTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        ggml_type,
    };
    let mut tensors = vec![tensor(
        "blk.0.ffn_up.weight",
        &[2, 256],
        GgmlType::from_id(id).unwrap(),
    )];
    let f32s = more.iter();
    tensors.extend(f32s.map(|(name, n)| tensor(name, &[*n], GgmlType::Dense(Dtype::F32))));
    let (mut bytes, header) = write_gguf_header("x", &GgufMetadata::new(), &tensors).unwrap();
    let len = header.tensors.last().unwrap().range.end;
    bytes.extend(
        data.iter()
            .cycle()
            .take(usize::try_from(len).unwrap() - bytes.len()),
    );
    let source = Arc::new(BytesSource(bytes.into())) as Arc<dyn ReadAt>;
    let shards = vec![("x.gguf".to_owned(), source)];
    Checkpoint::from_sources("x", shards, BTreeMap::new(), &Limits::default()).unwrap()
}

#[test]
fn the_factor_of_an_nvfp4_tensor_is_applied() {
    // 2.0 as F32 is 00 00 00 40; as a block: scales 0, 0, 0, 40 and codes 0, 0, 0, 4.
    let checkpoint = file(40, &[("blk.0.ffn_up.scale", 1)], &2_f32.to_le_bytes());
    let model = Model::bind(&checkpoint).unwrap();
    assert_eq!(model.plain, Vec::<String>::new());
    let tensor = &model.quantized[0];
    assert_eq!(tensor.module, "blk.0.ffn_up");
    assert_eq!(tensor.scheme.super_scale, SuperScale::Multiply);
    let values = decode(tensor, &checkpoint);
    // Elements 48..56 of a block have the low nibbles 0, 0, 0, 0 and 56..64 the high nibbles 0, 0, 0, 4 (which is 2.0).
    let scale = 2.0; // E4M3 code 40
    assert_eq!(values[48..56], [0.0; 8]);
    let expected = 2.0 * scale * 2.0;
    assert_eq!(
        values[56..64],
        [0.0, 0.0, 0.0, expected, 0.0, 0.0, 0.0, expected]
    );
    let wrong = file(40, &[("blk.0.ffn_up.scale", 2)], &[0]);
    assert!(matches!(Model::bind(&wrong), Err(Error::PartShape { .. })));
}

#[test]
fn types_that_exist_at_run_time_only_are_refused() {
    for id in [9, 15] {
        let refused = Model::bind(&file(id, &[], &[0]));
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{id}");
    }
}
