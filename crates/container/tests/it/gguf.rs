//! GGUF: each rule by name, real files, split models, and files with flipped bits (specs/container/gguf.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant_container::{
    BytesSource, Checkpoint, CheckpointKind, Dtype, Error, ErrorGroup, GgmlType, GgufMetadata,
    GgufTensor, GgufValue, Header, Limits, ReadAt, TensorInfo, TensorRef, write_gguf_header,
};

/// Bytes of a header, piece by piece.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn string(self, text: &[u8]) -> Self {
        self.u64(text.len() as u64).raw(text)
    }
    fn tensor(self, name: &[u8], ne: &[u64], id: u32, offset: u64) -> Self {
        let sized = self.string(name).u32(u32::try_from(ne.len()).unwrap());
        let shaped = ne.iter().fold(sized, |bytes, &n| bytes.u64(n));
        shaped.u32(id).u64(offset)
    }
    fn key_u32(self, key: &[u8], value: u32) -> Self {
        self.string(key).u32(4).u32(value)
    }
    /// Zeros up to a multiple of 32, and so many after that.
    fn data(mut self, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self.0
    }
}

/// Magic, version and counts.
fn head(version: u32, n_tensors: u64, n_keys: u64) -> Bytes {
    let bytes = Bytes::default().raw(b"GGUF").u32(version);
    bytes.u64(n_tensors).u64(n_keys)
}

fn open(bytes: &[u8]) -> Result<Checkpoint, Error> {
    open_parts(&[("x.gguf", bytes)], &Limits::default())
}

fn open_parts(parts: &[(&str, &[u8])], limits: &Limits) -> Result<Checkpoint, Error> {
    let source = |bytes: &[u8]| Arc::new(BytesSource(bytes.into())) as Arc<dyn ReadAt>;
    let shards = parts
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), source(bytes)));
    Checkpoint::from_sources("x", shards.collect(), BTreeMap::new(), limits)
}

/// Name, bytes, expected code; empty where the file is valid.
#[expect(clippy::too_many_lines, reason = "one table")]
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let one = |name: &[u8], ne: &[u64], id: u32| head(3, 1, 0).tensor(name, ne, id, 0);
    let key = |kind: u32| head(3, 0, 1).string(b"k").u32(kind);
    let aligned = |value: u32| head(3, 0, 1).key_u32(b"general.alignment", value).0;
    vec![
        ("nothing", vec![], "gguf"),
        ("only the magic", b"GGUF".to_vec(), "container_truncated"),
        ("another magic", b"GGML\x03\0\0\0".to_vec(), "gguf"),
        (
            "swapped magic",
            b"FUGG\x03\0\0\0".to_vec(),
            "container_foreign_format",
        ),
        ("version 0", head(0, 0, 0).0, "gguf_version"),
        ("version 1", head(1, 0, 0).0, "gguf_version"),
        ("version 2", head(2, 0, 0).0, ""),
        ("version 4", head(4, 0, 0).0, "gguf_version"),
        (
            "big-endian",
            head(3_u32.swap_bytes(), 0, 0).0,
            "gguf_version",
        ),
        ("empty", head(3, 0, 0).0, ""),
        ("2^63 tensors", head(3, 1 << 63, 0).0, "gguf_count"),
        (
            "one tensor too many",
            head(3, 1, 0).raw(&[0; 15]).0,
            "gguf_count",
        ),
        ("2^64 - 1 keys", head(3, 0, u64::MAX).0, "gguf_count"),
        ("a key and no bytes", head(3, 0, 1).0, "gguf_count"),
        (
            "empty key",
            head(3, 0, 1).string(b"").u32(4).raw(&[0; 8]).0,
            "gguf",
        ),
        (
            "key that is no UTF-8",
            head(3, 0, 1).key_u32(b"\xff", 0).0,
            "gguf",
        ),
        (
            "key of 2^63 bytes",
            head(3, 0, 1).u64(1 << 63).raw(&[0; 64]).0,
            "container_truncated",
        ),
        (
            "key twice",
            head(3, 0, 2).key_u32(b"k", 0).key_u32(b"k", 1).0,
            "gguf_duplicate",
        ),
        ("type 13", key(13).u32(0).0, "gguf"),
        ("type 2^32 - 1", key(u32::MAX).u32(0).0, "gguf"),
        ("bool of 2", key(7).raw(&[2]).0, ""),
        (
            "value that ends early",
            key(10).raw(&[0; 7]).0,
            "container_truncated",
        ),
        (
            "string that ends early",
            key(8).u64(2).raw(b"a").0,
            "container_truncated",
        ),
        (
            "string of 2^64 - 1",
            key(8).u64(u64::MAX).0,
            "container_truncated",
        ),
        ("string that is no UTF-8", key(8).string(b"\xff").0, ""),
        ("list of lists", key(9).u32(9).u64(0).0, "gguf"),
        ("list of type 13", key(9).u32(13).u64(0).0, "gguf"),
        ("empty list", key(9).u32(4).u64(0).0, ""),
        (
            "list of 2^61 F64",
            key(9).u32(12).u64(1 << 61).0,
            "gguf_count",
        ),
        (
            "list of 2^64 - 1 strings",
            key(9).u32(8).u64(u64::MAX).0,
            "gguf_count",
        ),
        (
            "list whose last string ends early",
            key(9).u32(8).u64(1).u64(1).0,
            "container_truncated",
        ),
        ("alignment 0", aligned(0), "gguf"),
        ("alignment 48", aligned(48), "gguf"),
        ("alignment 1", aligned(1), ""),
        ("alignment 2^31", aligned(1 << 31), ""),
        (
            "alignment of 64 bits",
            head(3, 0, 1).string(b"general.alignment").u32(10).u64(32).0,
            "gguf",
        ),
        ("name of 63 bytes", one(&[b'a'; 63], &[1], 0).data(4), ""),
        (
            "name of 64 bytes",
            one(&[b'a'; 64], &[1], 0).data(4),
            "gguf",
        ),
        (
            "name that is no UTF-8",
            one(b"\xff", &[1], 0).data(4),
            "gguf",
        ),
        (
            "name twice",
            head(3, 2, 0)
                .tensor(b"a", &[8], 0, 0)
                .tensor(b"a", &[8], 0, 32)
                .data(64),
            "gguf_duplicate",
        ),
        ("scalar", one(b"a", &[], 0).data(4), ""),
        ("scalar of blocks", one(b"a", &[], 2).data(32), "gguf_row"),
        ("four dimensions", one(b"a", &[1, 1, 1, 1], 0).data(4), ""),
        (
            "five dimensions",
            one(b"a", &[1, 1, 1, 1, 1], 0).data(4),
            "container_field",
        ),
        (
            "2^32 - 1 dimensions",
            head(3, 1, 0).string(b"a").u32(u32::MAX).data(64),
            "container_field",
        ),
        (
            "negative dimension",
            one(b"a", &[u64::MAX], 24).data(4),
            "container_field",
        ),
        (
            "2^63 elements",
            one(b"a", &[1 << 31, 1 << 32], 24).data(4),
            "container_field",
        ),
        (
            "2^62 bytes in bits",
            one(b"a", &[1 << 62], 24).data(4),
            "container_size_overflow",
        ),
        (
            "2^60 bytes",
            one(b"a", &[1 << 60], 24).data(4),
            "container_truncated",
        ),
        ("no element", one(b"a", &[0, 5], 0).data(0), ""),
        (
            "removed type",
            one(b"a", &[32], 4).data(64),
            "container_unknown_dtype",
        ),
        (
            "type 43",
            one(b"a", &[32], 43).data(64),
            "container_unknown_dtype",
        ),
        (
            "negative type",
            one(b"a", &[32], u32::MAX).data(64),
            "container_unknown_dtype",
        ),
        ("half a block", one(b"a", &[48], 8).data(64), "gguf_row"),
        ("two blocks", one(b"a", &[64], 8).data(68), ""),
        (
            "a byte missing",
            one(b"a", &[64], 8).data(67),
            "container_truncated",
        ),
        (
            "padding missing",
            one(b"a", &[64], 8).0,
            "container_truncated",
        ),
        ("bytes after the end", one(b"a", &[64], 8).data(1000), ""),
        (
            "first offset not 0",
            head(3, 1, 0).tensor(b"a", &[1], 0, 32).data(64),
            "container_hole",
        ),
        (
            "tensors back to back without padding",
            head(3, 2, 0)
                .tensor(b"a", &[1], 0, 0)
                .tensor(b"b", &[1], 0, 4)
                .data(64),
            "container_overlap",
        ),
        (
            "hole",
            head(3, 2, 0)
                .tensor(b"a", &[1], 0, 0)
                .tensor(b"b", &[1], 0, 64)
                .data(96),
            "container_hole",
        ),
        (
            "out of order",
            head(3, 2, 0)
                .tensor(b"a", &[1], 0, 32)
                .tensor(b"b", &[1], 0, 0)
                .data(64),
            "container_hole",
        ),
        (
            "offset 2^64 - 1",
            head(3, 1, 0).tensor(b"a", &[1], 0, u64::MAX).data(64),
            "container_field",
        ),
        (
            "alignment of 4",
            head(3, 2, 1)
                .key_u32(b"general.alignment", 4)
                .tensor(b"a", &[1], 0, 0)
                .tensor(b"b", &[1], 0, 4)
                .data(32),
            "",
        ),
    ]
}

#[test]
fn each_rule_has_its_condition() {
    let mut n_cases = 0;
    for (name, bytes, expected) in cases() {
        let found = open(&bytes);
        let code = found.as_ref().err().map_or("", Error::code);
        assert_eq!(code, expected, "{name}: {:?}", found.err());
        n_cases += 1;
    }
    assert_eq!(n_cases, 64);
}

#[test]
fn a_header_beyond_the_limit_is_refused_before_it_is_read() {
    let bytes = head(3, 0, 1).string(b"k").u32(8).string(&[b'x'; 5000]).0;
    let limits = Limits {
        max_header_bytes: 1000,
        ..Limits::default()
    };
    let error = open_parts(&[("x.gguf", &bytes)], &limits).err().unwrap();
    assert_eq!(error.code(), "container_header_too_large");
    assert_eq!(error.group(), ErrorGroup::Limit);
    let many = head(3, 1000, 0).raw(&vec![0; 30_000]).0;
    let error = open_parts(&[("x.gguf", &many)], &limits).err().unwrap();
    assert_eq!(error.code(), "gguf_count");
}

#[test]
fn shapes_are_turned_around_and_blocks_are_bytes() {
    let bytes = head(3, 2, 0)
        .tensor(b"a", &[64, 2, 3], 8, 0)
        .tensor(b"b", &[3, 2], 1, 416)
        .data(448);
    let checkpoint = open(&bytes).unwrap();
    let a = checkpoint.tensor("a").unwrap().info;
    assert_eq!((a.dtype, &a.shape[..]), (Dtype::U8, &[3, 2, 68][..]));
    assert_eq!(a.logical_shape(), [3, 2, 64]);
    assert_eq!(a.block.unwrap().name, "Q8_0");
    let b = checkpoint.tensor("b").unwrap().info;
    assert_eq!((b.dtype, &b.shape[..]), (Dtype::F16, &[2, 3][..]));
    assert_eq!((b.logical_shape(), b.block), (vec![2, 3], None));
    assert!(checkpoint.gguf().unwrap().is_empty());
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama.cpp");
    root.join(name)
}

fn describe(header: &Header) -> Vec<GgufTensor> {
    header.tensors.iter().map(TensorInfo::to_gguf).collect()
}

#[test]
fn real_files_open_and_their_headers_are_written_again_byte_for_byte() {
    let mut n_tensors = 0;
    for name in [
        "gguf-zoo/zoo.gguf",
        "gguf-model-q4_k_m/model.gguf",
        "gguf-model-q5_0/model.gguf",
    ] {
        let path = fixture(name);
        let checkpoint = Checkpoint::open(&path, &Limits::default()).unwrap();
        let metadata = checkpoint.gguf().unwrap();
        assert_eq!(
            metadata.get("general.architecture").unwrap().as_str(),
            Some("llama")
        );
        let header = &checkpoint.shards()[0].header;
        let (bytes, again) = write_gguf_header("out", metadata, &describe(header)).unwrap();
        let original = std::fs::read(&path).unwrap();
        assert_eq!(bytes, original[..bytes.len()], "{name}");
        assert_eq!(bytes.len() as u64, header.data_start());
        assert_eq!(&again, header);
        // The same once more, from the values instead of the bytes.
        let mut copied = GgufMetadata::new();
        metadata
            .iter()
            .for_each(|(key, value)| copied.push(key, value));
        assert_eq!(&copied, metadata);
        n_tensors += header.tensors.len();
    }
    assert_eq!(n_tensors, 25 + 11 + 12);
}

/// The example of gguf.md, section 11: 416 bytes.
#[test]
fn the_documented_example() {
    let mut metadata = GgufMetadata::new();
    metadata.push("general.architecture", GgufValue::String(b"llama"));
    metadata.push("llama.block_count", GgufValue::U32(1));
    metadata.push_i32s("k.arr", &[1, 2, 3]);
    metadata.push("general.name", GgufValue::String("é".as_bytes()));
    let tensor = |name: &str, shape: &[u64], id| GgufTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        ggml_type: GgmlType::from_id(id).unwrap(),
    };
    let tensors = [
        tensor("a.weight", &[2, 3], 0),
        tensor("b.weight", &[2, 32], 8),
    ];
    let (mut bytes, header) = write_gguf_header("x", &metadata, &tensors).unwrap();
    assert_eq!(header.data_start(), 0x120);
    assert_eq!(header.tensors[0].range, 0x120..0x120 + 24);
    assert_eq!(header.tensors[1].range, 0x120 + 32..0x120 + 32 + 68);
    bytes.resize(416, 0);
    assert_eq!(open(&bytes).unwrap().tensors().len(), 2);
    // The last tensor may lack its padding, not its bytes.
    assert!(open(&bytes[..0x120 + 100]).is_ok());
    assert!(open(&bytes[..0x120 + 99]).is_err());
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let tensor = |name: &str, shape: &[u64], ggml_type| GgufTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        ggml_type,
    };
    let q8_0 = GgmlType::from_id(8).unwrap();
    let code = |metadata: &GgufMetadata, tensors: &[GgufTensor]| {
        let refused = write_gguf_header("x", metadata, tensors);
        refused.err().map(|error| error.code()).unwrap_or_default()
    };
    let none = GgufMetadata::new();
    assert_eq!(code(&none, &[tensor("a", &[33], q8_0)]), "gguf_row");
    assert_eq!(code(&none, &[tensor(&"a".repeat(64), &[32], q8_0)]), "gguf");
    assert_eq!(
        code(&none, &[tensor("a", &[1; 5], GgmlType::Dense(Dtype::F32))]),
        "container_field"
    );
    assert_eq!(
        code(&none, &[tensor("a", &[1], GgmlType::Dense(Dtype::U8))]),
        "container_unknown_dtype"
    );
    let twice = [tensor("a", &[32], q8_0), tensor("a", &[32], q8_0)];
    assert_eq!(code(&none, &twice), "gguf_duplicate");
    let mut odd = GgufMetadata::new();
    odd.push("general.alignment", GgufValue::U32(3));
    assert_eq!(code(&odd, &[]), "gguf");
}

/// Two parts of a model, the second without the shared keys.
fn parts(count: u32, second: u32, n_tensors: u32) -> [Vec<u8>; 2] {
    let part = |number: u32| {
        head(3, 1, 3)
            .key_u32(b"split.count", count)
            .key_u32(b"split.no", number)
            .key_u32(b"split.tensors.count", n_tensors)
    };
    [
        part(0).tensor(b"a", &[1], 0, 0).data(4),
        part(second).tensor(b"b", &[1], 0, 0).data(4),
    ]
}

const PARTS: [&str; 2] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];

#[test]
fn any_part_opens_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in PARTS.iter().zip(parts(2, 1, 2)) {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    for name in PARTS {
        let checkpoint = Checkpoint::open(&folder.path().join(name), &Limits::default()).unwrap();
        let names: Vec<&str> = checkpoint.tensors().map(TensorRef::name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            checkpoint.gguf().unwrap().get("split.no"),
            Some(GgufValue::U32(0))
        );
    }
    let open = |name: &str| Checkpoint::open(&folder.path().join(name), &Limits::default());
    std::fs::copy(
        folder.path().join(PARTS[0]),
        folder.path().join("other.gguf"),
    )
    .unwrap();
    assert_eq!(open("other.gguf").err().unwrap().code(), "gguf_split");
    std::fs::remove_file(folder.path().join(PARTS[1])).unwrap();
    assert_eq!(open(PARTS[0]).err().unwrap().code(), "shard_missing");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let code = |parts: &[Vec<u8>; 2]| {
        let named = [(PARTS[0], &parts[0][..]), (PARTS[1], &parts[1][..])];
        let opened = open_parts(&named, &Limits::default());
        opened.err().map(|error| error.code()).unwrap_or_default()
    };
    assert_eq!(code(&parts(2, 1, 2)), "");
    assert_eq!(code(&parts(3, 1, 2)), "gguf_split");
    assert_eq!(code(&parts(2, 0, 2)), "gguf_split");
    assert_eq!(code(&parts(2, 1, 3)), "gguf_split");
    assert_eq!(code(&parts(1, 1, 2)), "gguf_split");
}

#[test]
fn a_directory_of_gguf_files_names_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.gguf"), head(3, 0, 0).0).unwrap();
    let error = Checkpoint::open(folder.path(), &Limits::default())
        .err()
        .unwrap();
    assert_eq!(error.code(), "only_gguf");
    assert!(error.to_string().contains("x.gguf"), "{error}");
}

#[test]
fn a_gguf_file_of_any_name_opens_and_documents_beside_it_are_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let path = folder.path().join("model.bin");
    std::fs::write(&path, head(3, 0, 0).0).unwrap();
    let checkpoint = Checkpoint::open(&path, &Limits::default()).unwrap();
    assert!(checkpoint.gguf().is_some());
    assert_eq!(checkpoint.document("config.json"), None);
}

/// Every bit of a small file's header, and every length of it: an error or a checkpoint, never a panic.
#[test]
fn flipped_bits_and_cut_files_never_panic() {
    let bytes = std::fs::read(fixture("gguf-zoo/zoo.gguf")).unwrap();
    let start = open(&bytes).unwrap().shards()[0].header.data_start();
    let start = usize::try_from(start).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for at in 0..start {
        for bit in 0..8 {
            let mut mutant = bytes.clone();
            mutant[at] ^= 1 << bit;
            match open(&mutant) {
                Ok(checkpoint) => {
                    for tensor in checkpoint.tensors() {
                        assert!(tensor.info.range.end <= mutant.len() as u64);
                    }
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(open(&bytes[..at]).is_err());
    }
    assert_eq!(opened + refused, start * 8);
    assert!(opened > 100 && refused > 100, "{opened} {refused}");
}
