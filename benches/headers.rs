//! Opening headers, beside the official parser over the same bytes in the same run.
//!
//! `headers/bytes`: one header in memory. `headers/file`: one file, opened and read (a mapping instead would cost
//! the official parser page faults, which are not what is measured here). `headers/shards`: a model of 160 files with 90,000 tensors; `read` is headers only, `open` is all
//! that [`Checkpoint::open`] does (index, lookups, agreement), for which the other side reads the index with `serde_json`
//! and fills one map from names to tensors. Names ascend as the official writer sorts them, but for `numeric`, where layers
//! and experts follow their numbers.

use std::collections::HashMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safequant_benches::group;
use safequant_container::{Checkpoint, Header, Limits, ReadAt};
use safetensors::SafeTensors;

/// Tensors of the single files, and how many experts a layer has in them.
const SIZES: &[usize] = &[1_000, 100_000];

const N_SHARDS: usize = 160;
const N_SHARDED: usize = 90_000;

/// Bytes of each tensor, `[16, 2]` or `[2, 16]` in BF16: the official parser wants the data in memory too, so there must be
/// little.
const TENSOR_BYTES: u64 = 16 * 2 * 2;

/// The names of a mixture of experts in the order of their numbers.
fn names(n_tensors: usize) -> Vec<String> {
    const PROJECTIONS: [&str; 3] = ["down_proj", "gate_proj", "up_proj"];
    let name = |i: usize| {
        let (layer, expert) = (i / 384, i / 3 % 128);
        let projection = PROJECTIONS[i % 3];
        format!("model.layers.{layer}.mlp.experts.{expert}.{projection}.weight")
    };
    (0..n_tensors).map(name).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

/// Length word and header.
fn prefix(names: &[String]) -> Vec<u8> {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    for (i, name) in names.iter().enumerate() {
        let (start, end) = (i as u64 * TENSOR_BYTES, (i as u64 + 1) * TENSOR_BYTES);
        let shape = if name.contains("down") {
            "2,16"
        } else {
            "16,2"
        };
        let entry = format!(
            ",\"{name}\":{{\"dtype\":\"BF16\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}"
        );
        json.push_str(&entry);
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn file_len(prefix: &[u8], n_tensors: usize) -> u64 {
    prefix.len() as u64 + n_tensors as u64 * TENSOR_BYTES
}

/// A file whose data nobody reads.
struct Head(Vec<u8>, u64);

impl ReadAt for Head {
    fn len_bytes(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let bytes = rest.and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn write_sparse(path: &Path, names: &[String]) -> Vec<u8> {
    let mut bytes = prefix(names);
    let mut file = File::create(path).expect("a temporary file");
    file.write_all(&bytes).expect("space for a header");
    file.set_len(file_len(&bytes, names.len()))
        .expect("a file system with sparse files");
    let len = file_len(&bytes, names.len());
    bytes.resize(usize::try_from(len).expect("it fits"), 0);
    bytes
}

/// A file with its header read and zeros for its data, which the official parser wants to be there.
fn read_prefix(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("it was written before");
    let mut word = [0; 8];
    file.read_exact(&mut word).expect("a length word");
    let len = usize::try_from(u64::from_le_bytes(word)).expect("it fits");
    let file_len = file.metadata().expect("an open file").len();
    let mut bytes = vec![0; usize::try_from(file_len).expect("it fits")];
    bytes[..8].copy_from_slice(&word);
    file.read_exact(&mut bytes[8..8 + len]).expect("a header");
    bytes
}

fn ours(source: &dyn ReadAt) -> Header {
    Header::read(source, "bench", &Limits::default()).expect("a valid header")
}

fn check(header: &Header, bytes: &[u8], n_tensors: usize) {
    let (len, theirs) = SafeTensors::read_metadata(bytes).expect("a valid header");
    assert_eq!(header.tensors.len(), n_tensors);
    let data_start = 8 + len as u64;
    for tensor in &header.tensors {
        let info = theirs.info(&tensor.name).expect("both have it");
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        assert_eq!(tensor.range, data_start + start..data_start + end);
        assert!(
            tensor.shape.iter().eq(info
                .shape
                .iter()
                .map(|dim| *dim as u64)
                .collect::<Vec<_>>()
                .iter())
        );
        assert_eq!(tensor.dtype.name(), info.dtype.to_string());
    }
}

fn bytes(criterion: &mut Criterion) {
    let mut group = group(criterion, "headers/bytes");
    for &n_tensors in SIZES {
        for (order, names) in [
            ("sorted", sorted(names(n_tensors))),
            ("numeric", names(n_tensors)),
        ] {
            let mut bytes = prefix(&names);
            let source = Head(bytes.clone(), file_len(&bytes, n_tensors));
            bytes.resize(usize::try_from(source.1).expect("it fits"), 0);
            check(&ours(&source), &bytes, n_tensors);
            group.throughput(Throughput::Bytes(source.0.len() as u64));
            let case = format!("{n_tensors}/{order}");
            group.bench_function(BenchmarkId::new("safequant", &case), |bencher| {
                bencher.iter(|| ours(black_box(&source)));
            });
            group.bench_function(BenchmarkId::new("safetensors", &case), |bencher| {
                bencher.iter(|| {
                    SafeTensors::read_metadata(black_box(&bytes)).expect("a valid header")
                });
            });
        }
    }
}

fn file(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut group = group(criterion, "headers/file");
    for &n_tensors in SIZES {
        for (order, names) in [
            ("sorted", sorted(names(n_tensors))),
            ("numeric", names(n_tensors)),
        ] {
            let case = format!("{n_tensors}/{order}");
            let path = folder
                .path()
                .join(format!("{n_tensors}-{order}.safetensors"));
            let bytes = write_sparse(&path, &names);
            let open =
                || Checkpoint::open(black_box(&path), &Limits::default()).expect("a valid file");
            let opened = open();
            assert!(
                names
                    .iter()
                    .all(|name| opened.tensor(name).is_some_and(|t| t.name() == name))
            );
            assert!(opened.tensors().is_sorted_by(|a, b| a.name() < b.name()));
            check(&opened.shards()[0].header, &bytes, n_tensors);
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function(BenchmarkId::new("safequant", &case), |bencher| {
                bencher.iter(open);
            });
            group.bench_function(BenchmarkId::new("safetensors", &case), |bencher| {
                bencher.iter(|| {
                    SafeTensors::read_metadata(&read_prefix(black_box(&path)))
                        .expect("a valid header")
                });
            });
        }
    }
}

/// The model's shards, tensors in the order of their numbers from shard to shard and sorted in each, and the index.
fn write_shards(folder: &Path) -> Vec<String> {
    let names = names(N_SHARDED);
    let mut shards = Vec::new();
    let mut map = serde_json::Map::new();
    for (i, part) in names.chunks(N_SHARDED.div_ceil(N_SHARDS)).enumerate() {
        let shard = format!("model-{:05}-of-{N_SHARDS:05}.safetensors", i + 1);
        write_sparse(&folder.join(&shard), &sorted(part.to_vec()));
        map.extend(part.iter().map(|name| (name.clone(), shard.clone().into())));
        shards.push(shard);
    }
    map.sort_keys();
    let total_size = N_SHARDED as u64 * TENSOR_BYTES;
    let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": map});
    let json = serde_json::to_vec_pretty(&index).expect("plain values");
    std::fs::write(folder.join("model.safetensors.index.json"), json).expect("space for an index");
    shards
}

#[derive(serde::Deserialize)]
struct TheirIndex {
    weight_map: HashMap<String, String>,
}

/// What a user of the official parser does: the index, the headers, and one map to find tensors in.
fn their_open(folder: &Path) -> HashMap<String, (usize, safetensors::tensor::TensorInfo)> {
    let json = std::fs::read(folder.join("model.safetensors.index.json")).expect("it was written");
    let index: TheirIndex = serde_json::from_slice(&json).expect("a valid index");
    let mut shards: Vec<&String> = index.weight_map.values().collect();
    shards.sort_unstable();
    shards.dedup();
    let mut tensors = HashMap::with_capacity(index.weight_map.len());
    for (i, shard) in shards.into_iter().enumerate() {
        let (_, metadata) =
            SafeTensors::read_metadata(&read_prefix(&folder.join(shard))).expect("a valid header");
        for (name, info) in metadata.tensors() {
            assert_eq!(index.weight_map.get(&name), Some(shard));
            tensors.insert(name, (i, info.clone()));
        }
    }
    tensors
}

fn shards(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = write_shards(folder.path());
    assert_eq!(shards.len(), N_SHARDS);
    let open =
        || Checkpoint::open(black_box(folder.path()), &Limits::default()).expect("a valid model");
    let (opened, theirs) = (open(), their_open(folder.path()));
    assert_eq!(opened.tensors().len(), N_SHARDED);
    assert_eq!(theirs.len(), N_SHARDED);
    for tensor in opened.tensors() {
        let (shard, info) = &theirs[tensor.name()];
        assert_eq!(tensor.shard.name, shards[*shard]);
        assert_eq!(
            tensor.info.len_bytes(),
            (info.data_offsets.1 - info.data_offsets.0) as u64
        );
        assert!(std::ptr::eq(
            opened.tensor(tensor.name()).expect("by name").info,
            tensor.info
        ));
    }
    let mut group = group(criterion, "headers/shards");
    let paths: Vec<_> = shards
        .iter()
        .map(|shard| folder.path().join(shard))
        .collect();
    group.bench_function("safequant/read", |bencher| {
        bencher.iter(|| {
            let read = |path: &Path| {
                ours(&safequant_container::FileSource::open(path).expect("it is there"))
            };
            paths.iter().map(|path| read(path)).collect::<Vec<_>>()
        });
    });
    group.bench_function("safetensors/read", |bencher| {
        bencher.iter(|| {
            let read =
                |path| SafeTensors::read_metadata(&read_prefix(path)).expect("a valid header");
            paths.iter().map(|path| read(path)).collect::<Vec<_>>()
        });
    });
    group.bench_function("safequant/open", |bencher| bencher.iter(open));
    group.bench_function("safetensors/open", |bencher| {
        bencher.iter(|| their_open(black_box(folder.path())));
    });
}

criterion_group!(benches, bytes, file, shards);
criterion_main!(benches);
