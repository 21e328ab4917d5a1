//! What each fuzz target does with its bytes. Nothing here may panic, whatever the bytes are; what a reader accepts must
//! keep the promises that its callers build on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, GgufValue, Header, Limits, ReadAt};
use safequant::kernels::Backend;
use safequant::rewrite::calibration::{Calibration, SecondMoment};
use safequant::schemes::{Decoder, Model, QuantizedTensor, RowsOut};
use serde_json::{Map, Value, json};

/// Weights with more elements are bound, but not decoded: the fuzzer's time is better spent on the next input.
const MAX_DECODED: u64 = 1 << 16;

/// Largest virtual file: large enough for any arithmetic to overflow that can.
const MAX_FILE_BYTES: u64 = 1 << 62;

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("header", header),
    ("index", index),
    ("config", config),
    ("bind", bind),
    ("gguf", gguf),
    ("calibration", calibration),
];

/// A file whose first bytes are given and whose others follow a pattern: as long as its header asks for, without memory.
struct VirtualFile {
    head: Vec<u8>,
    len_bytes: u64,
}

impl VirtualFile {
    /// The file that a header (JSON only) asks for, as far as it can be understood.
    fn of_json(text: &[u8]) -> Self {
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.extend_from_slice(text);
        Self::of_head(head)
    }

    fn of_head(head: Vec<u8>) -> Self {
        let data = serde_json::from_slice(head.get(8..).unwrap_or_default())
            .map_or(0, |value| data_len(&value));
        let len_bytes = (head.len() as u64).saturating_add(data).min(MAX_FILE_BYTES);
        Self { head, len_bytes }
    }
}

impl ReadAt for VirtualFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (at, byte) in (offset..).zip(out) {
            let head = usize::try_from(at).ok().and_then(|at| self.head.get(at));
            // 251 is prime: values that lie a power of two apart differ.
            *byte = head.copied().unwrap_or(u8::try_from(at % 251).unwrap_or(0));
        }
        Ok(())
    }
}

/// The largest end of any tensor that a header declares.
fn data_len(header: &Value) -> u64 {
    let tensors = header.as_object().into_iter().flat_map(Map::values);
    let ends = tensors.filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0)
}

/// A file's head: once as it is, once as the JSON of a header.
pub fn header(data: &[u8]) {
    for file in [
        VirtualFile::of_head(data.to_vec()),
        VirtualFile::of_json(data),
    ] {
        if let Ok(header) = Header::read(&file, "fuzz", &limits()) {
            check_header(&header, file.len_bytes);
        }
    }
}

/// What everything above the container relies on.
fn check_header(header: &Header, len_bytes: u64) {
    let mut names = BTreeSet::new();
    let mut end = header.data_start();
    for tensor in &header.tensors {
        assert!(
            names.insert(tensor.name.as_str()),
            "{:?} twice",
            tensor.name
        );
        assert_eq!(
            tensor.range.start, end,
            "{:?} leaves a hole or overlaps",
            tensor.name
        );
        let elements = tensor
            .shape
            .iter()
            .fold(1_u128, |n, d| n.saturating_mul(u128::from(*d)));
        let bits = elements.saturating_mul(u128::from(tensor.dtype.bits()));
        let len = tensor.range.end - tensor.range.start;
        assert_eq!(
            bits,
            u128::from(len) * 8,
            "{:?} has another size",
            tensor.name
        );
        end = tensor.range.end;
    }
    assert_eq!(end, len_bytes, "the tensors do not cover the file");
}

/// Calibration statistics in any of their forms: what is handed out has the shapes that were asked for.
pub fn calibration(data: &[u8]) {
    let source = Arc::new(BytesSource(data.into()));
    let Ok(opened) = Calibration::from_source("fuzz", source, &limits()) else {
        return;
    };
    let modules: Vec<_> = opened.modules().collect();
    for module in modules {
        let in_features = module.in_features.unwrap_or(module.n_values);
        if in_features > MAX_DECODED {
            continue;
        }
        if let Ok(Some(found)) = opened.statistics(&module.name, in_features) {
            assert_eq!(found.in_features as u64, in_features, "{}", module.name);
            let (values, expected) = match &found.second_moment {
                SecondMoment::Full(values) => (values, found.in_features * found.in_features),
                SecondMoment::Diagonal(values) => (values, found.in_features),
            };
            assert_eq!(values.len(), expected, "{}", module.name);
            assert!(
                values.iter().all(|value| value.is_finite()),
                "{}",
                module.name
            );
        }
    }
}

/// A GGUF file: once as it is, once as the beginning of a file that is long enough for any tensor.
pub fn gguf(data: &[u8]) {
    for len_bytes in [data.len() as u64, MAX_FILE_BYTES] {
        let file = Arc::new(VirtualFile {
            head: data.to_vec(),
            len_bytes,
        });
        let shards = vec![("fuzz.gguf".to_owned(), file as Arc<dyn ReadAt>)];
        let opened = Checkpoint::from_sources("fuzz", shards, BTreeMap::new(), &limits());
        let Ok(checkpoint) = opened else { continue };
        check_gguf(&checkpoint.shards()[0].header, len_bytes);
        let metadata = checkpoint.gguf().expect("a GGUF file has metadata");
        let mut keys = BTreeSet::new();
        for (key, value) in metadata.iter() {
            assert!(keys.insert(key), "{key:?} twice");
            if let GgufValue::Array(list) = value {
                assert_eq!(list.iter().count() as u64, list.len());
            }
        }
        assert_eq!(keys.len(), metadata.len());
    }
}

fn check_gguf(header: &Header, len_bytes: u64) {
    let mut names = BTreeSet::new();
    let mut end = header.data_start();
    for tensor in &header.tensors {
        assert!(
            names.insert(tensor.name.as_str()),
            "{:?} twice",
            tensor.name
        );
        assert!(tensor.range.start >= end, "{:?} overlaps", tensor.name);
        let elements = tensor.shape.iter().map(|d| u128::from(*d));
        let bits = elements.product::<u128>() * u128::from(tensor.dtype.bits());
        assert_eq!(bits, u128::from(tensor.len_bytes()) * 8);
        if let (Some(block), Some(last)) = (tensor.block, tensor.shape.last()) {
            assert!(last.is_multiple_of(block.bytes));
        }
        end = tensor.range.end;
    }
    assert!(end <= len_bytes, "tensors beyond the file");
}

/// An index over the shards that it names itself.
pub fn index(data: &[u8]) {
    let parsed: Value = serde_json::from_slice(data).unwrap_or(Value::Null);
    let mut shards: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let weights = parsed.get("weight_map").and_then(Value::as_object);
    for (tensor, shard) in weights.into_iter().flatten().take(256) {
        let header = shards
            .entry(shard.as_str().unwrap_or("x").to_owned())
            .or_default();
        let at = header.len();
        header.insert(
            tensor.clone(),
            json!({ "dtype": "U8", "shape": [1], "data_offsets": [at, at + 1] }),
        );
    }
    let sources = shards.into_iter().map(|(name, header)| {
        let text = Value::Object(header).to_string();
        (
            name,
            Arc::new(VirtualFile::of_json(text.as_bytes())) as Arc<dyn ReadAt>,
        )
    });
    let documents = BTreeMap::from([("model.safetensors.index.json".to_owned(), data.to_vec())]);
    if let Ok(checkpoint) =
        Checkpoint::from_sources("fuzz", sources.collect(), documents, &limits())
    {
        for tensor in checkpoint.tensors() {
            assert!(checkpoint.tensor(tensor.name()).is_some());
        }
    }
}

/// A config over tensors of every convention, as `config.json` and as `quantize_config.json`.
pub fn config(data: &[u8]) {
    for name in ["config.json", "quantize_config.json"] {
        let file = VirtualFile::of_json(all_conventions().to_string().as_bytes());
        bind_and_decode(file, BTreeMap::from([(name.to_owned(), data.to_vec())]));
    }
}

/// A config, a zero byte, and the JSON of a header.
pub fn bind(data: &[u8]) {
    let split = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    let (config, header) = data.split_at(split);
    let file = VirtualFile::of_json(header.get(1..).unwrap_or_default());
    bind_and_decode(
        file,
        BTreeMap::from([("config.json".to_owned(), config.to_vec())]),
    );
}

fn bind_and_decode(file: VirtualFile, documents: BTreeMap<String, Vec<u8>>) {
    let shards = vec![(
        "model.safetensors".to_owned(),
        Arc::new(file) as Arc<dyn ReadAt>,
    )];
    let Ok(checkpoint) = Checkpoint::from_sources("fuzz", shards, documents, &limits()) else {
        return;
    };
    let Ok(model) = Model::bind(&checkpoint) else {
        return;
    };
    for tensor in &model.quantized {
        decode(tensor, &checkpoint);
    }
}

/// Decodes what is small enough; a weight whose size does not even fit must have been refused before.
fn decode(tensor: &QuantizedTensor, checkpoint: &Checkpoint) {
    let elements = tensor
        .shape
        .iter()
        .try_fold(1_u64, |n, d| n.checked_mul(*d));
    let elements = elements.expect("a bound weight has a size");
    if elements > MAX_DECODED {
        return;
    }
    let Ok(decoder) = Decoder::new(tensor, checkpoint, Backend::detect()) else {
        return;
    };
    let rows = tensor.n_rows();
    let mut out = vec![0.0; usize::try_from(elements).expect("checked above")];
    let _ = decoder.rows(0..rows, RowsOut::F32(&mut out));
}

/// Small caps: a virtual file can be long enough for the largest header, and reading that teaches nothing.
fn limits() -> Limits {
    Limits {
        max_header_bytes: 1 << 18,
        max_document_bytes: 1 << 18,
        max_index_bytes: 1 << 18,
        ..Limits::default()
    }
}

/// One module as each convention stores it: `[out_features, in_features]` is `[64, 128]`, groups of 64.
fn all_conventions() -> Value {
    let parts: &[(&str, &str, &[u64])] = &[
        ("model.layers.0.mlp.up_proj.weight_packed", "I32", &[64, 16]),
        ("model.layers.0.mlp.up_proj.weight_scale", "BF16", &[64, 2]),
        (
            "model.layers.0.mlp.up_proj.weight_zero_point",
            "I32",
            &[8, 2],
        ),
        ("model.layers.0.mlp.up_proj.weight_shape", "I64", &[2]),
        ("model.layers.0.mlp.up_proj.weight_g_idx", "I32", &[128]),
        ("model.layers.0.mlp.gate_proj.weight", "F8_E4M3", &[64, 128]),
        (
            "model.layers.0.mlp.gate_proj.weight_scale_inv",
            "F32",
            &[1, 1],
        ),
        ("model.layers.0.mlp.down_proj.weight", "F8_E4M3", &[64, 128]),
        ("model.layers.0.mlp.down_proj.weight_scale", "F32", &[64, 1]),
        ("model.layers.0.mlp.down_proj.input_scale", "F32", &[1]),
        ("model.layers.0.self_attn.q_proj.weight", "I8", &[64, 128]),
        (
            "model.layers.0.self_attn.q_proj.weight_scale",
            "F32",
            &[64, 1],
        ),
        ("model.layers.0.self_attn.k_proj.qweight", "I32", &[16, 64]),
        ("model.layers.0.self_attn.k_proj.qzeros", "I32", &[2, 8]),
        ("model.layers.0.self_attn.k_proj.scales", "F16", &[2, 64]),
        ("model.layers.0.self_attn.k_proj.g_idx", "I32", &[128]),
        ("model.layers.0.self_attn.o_proj.weight", "BF16", &[64, 128]),
        ("lm_head.weight", "BF16", &[8, 64]),
    ];
    let mut header = Map::new();
    let mut at = 0;
    for (name, dtype, shape) in parts {
        let bytes = match *dtype {
            "I64" => 8,
            "I32" | "F32" => 4,
            "BF16" | "F16" => 2,
            _ => 1,
        };
        let end = at + bytes * shape.iter().product::<u64>();
        header.insert(
            (*name).to_owned(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    Value::Object(header)
}
