//! ggml's block types against what libggml wrote and read (fixtures/llama.cpp/gguf-zoo): values bit for bit, the neutral
//! form as an identity on real blocks, and the quantizers on the F32 source of the file.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;

use safequant_kernels::blocks::CodeValue;
use safequant_kernels::{BlockFields, BlockFormat};
use serde_json::Value;

#[expect(
    clippy::disallowed_methods,
    reason = "the kernels do no I/O, their tests read fixtures"
)]
fn read(name: &str) -> Vec<u8> {
    let folder = "../../fixtures/llama.cpp/gguf-zoo";
    let path = format!("{}/{folder}/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The F32 tensors of a safetensors file.
fn floats(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = read(name);
    let (len, rest) = bytes.split_at(8);
    let len = usize::try_from(u64::from_le_bytes(len.try_into().unwrap())).unwrap();
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&rest[..len]).unwrap();
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, entry)| {
            assert_eq!(entry["dtype"], "F32");
            let at = |i: usize| {
                len + usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap()
            };
            let values = rest[at(0)..at(1)].as_chunks().0;
            (
                name.clone(),
                values.iter().map(|&v| f32::from_le_bytes(v)).collect(),
            )
        })
        .collect()
}

/// A reader for this one file: the keys are strings and 32-bit numbers.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> usize {
        usize::try_from(u64::from_le_bytes(self.take(8).try_into().unwrap())).unwrap()
    }
    fn string(&mut self) -> String {
        let len = self.u64();
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }
}

/// The tensors of `zoo.gguf`: (ggml's number of the type, elements, bytes from the first of the tensor on).
fn zoo() -> BTreeMap<String, (u32, usize, Vec<u8>)> {
    let bytes = read("zoo.gguf");
    let mut cursor = Cursor(&bytes);
    assert_eq!(cursor.take(8), b"GGUF\x03\0\0\0");
    let (n_tensors, n_keys) = (cursor.u64(), cursor.u64());
    for _ in 0..n_keys {
        cursor.string();
        if cursor.u32() == 8 {
            cursor.string();
        } else {
            cursor.u32();
        }
    }
    let infos: Vec<_> = (0..n_tensors)
        .map(|_| {
            let name = cursor.string();
            let n_dims = cursor.u32();
            let elements = (0..n_dims).map(|_| cursor.u64()).product();
            (name, elements, cursor.u32(), cursor.u64())
        })
        .collect();
    let start = (bytes.len() - cursor.0.len()).next_multiple_of(32);
    infos
        .into_iter()
        .map(|(name, elements, id, offset)| {
            (name, (id, elements, bytes[start + offset..].to_vec()))
        })
        .collect()
}

/// Each block tensor of the zoo: its type, its blocks, and the values that the tool gives.
fn tensors() -> Vec<(BlockFormat, Vec<u8>, Vec<f32>)> {
    let expected = floats("expected.safetensors");
    let mut tensors = Vec::new();
    for (name, (_, elements, mut bytes)) in zoo() {
        let Some(format) = BlockFormat::from_name(name.trim_start_matches("w.")) else {
            assert_eq!(name, "w.BF16");
            continue;
        };
        bytes.truncate(elements / format.elements() * format.bytes());
        tensors.push((format, bytes, expected[&name].clone()));
    }
    assert_eq!(tensors.len(), 24);
    tensors
}

#[test]
fn values_are_those_of_the_tool_to_the_last_bit() {
    for (format, blocks, expected) in tensors() {
        let mut found = vec![f32::NAN; expected.len()];
        format.dequantize(&blocks, &mut found);
        let differing = (found.iter().zip(&expected))
            .filter(|(a, b)| a.to_bits() != b.to_bits() && (**a != 0.0 || **b != 0.0))
            .count();
        assert_eq!(differing, 0, "{}", format.name());
    }
}

#[test]
fn real_blocks_survive_the_neutral_form() {
    let mut n_formats = 0;
    for (format, blocks, _) in tensors() {
        let Some(layout) = format.layout() else {
            continue;
        };
        let mut fields = BlockFields::default();
        layout.unpack(&blocks, &mut fields);
        let mut packed = vec![0; blocks.len()];
        layout.pack(&fields, &mut packed);
        assert_eq!(packed, blocks, "{}", format.name());
        n_formats += 1;
    }
    assert_eq!(n_formats, 22);
}

/// The tool's bytes, block by block; those of lattices are no tool's and must have less error than its. The types whose bytes depend on how ggml was compiled may differ in a few blocks;
/// there the error must not be worse.
#[test]
fn quantizers_give_the_blocks_of_the_tool() {
    let source = floats("extra.safetensors").remove("source_f32").unwrap();
    let mut n_formats = 0;
    for (format, expected, values) in tensors() {
        let Some(quantizer) = format.quantizer() else {
            continue;
        };
        let mut found = vec![0; expected.len()];
        quantizer.quantize(&source, &mut found);
        let pairs = found
            .chunks(format.bytes())
            .zip(expected.chunks(format.bytes()));
        let n_blocks = pairs.len();
        let equal = pairs.filter(|(a, b)| a == b).count();
        println!("{}: {equal} of {n_blocks} blocks are equal", format.name());
        if format.is_reproducible() {
            assert_eq!(equal, n_blocks, "{}", format.name());
        }
        let mut ours = vec![0.0; values.len()];
        format.dequantize(&found, &mut ours);
        let error = |values: &[f32]| -> f64 {
            let pairs = values.iter().zip(&source);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let (ours, theirs) = (error(&ours), error(&values));
        let is_lattice = format
            .layout()
            .is_some_and(|l| matches!(l.value, CodeValue::Lattice(_)));
        assert!(
            is_lattice || equal * 100 >= n_blocks * 98,
            "{}: {equal} of {n_blocks}",
            format.name()
        );
        assert!(
            ours <= theirs * 1.001,
            "{}: {ours:e} {theirs:e}",
            format.name()
        );
        n_formats += 1;
    }
    assert_eq!(n_formats, 22);
}
