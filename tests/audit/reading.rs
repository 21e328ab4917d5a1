//! How much of a checkpoint each depth of an audit reads.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safequant::audit::{self, Depth, Report, Subject, Wanted};
use safequant::container::{BytesSource, Checkpoint, Dtype, Limits, ReadAt};
use serde_json::json;

use super::options;
use crate::interop::fixture::{self, Dense, safetensors};

/// Bytes in memory that count how many of them are read.
struct Counting {
    bytes: BytesSource,
    read: Arc<AtomicU64>,
}

impl ReadAt for Counting {
    fn len_bytes(&self) -> u64 {
        self.bytes.len_bytes()
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.bytes.read_exact_at(offset, out)
    }
}

/// Files of a checkpoint, and how long their headers are.
struct Files {
    shards: BTreeMap<String, Vec<u8>>,
    documents: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// Bytes that hold tensors.
    fn data_bytes(&self) -> u64 {
        let of = |file: &Vec<u8>| {
            let len: [u8; 8] = file[..8].try_into().unwrap();
            file.len() as u64 - 8 - u64::from_le_bytes(len)
        };
        self.shards.values().map(of).sum()
    }

    /// Audits, and says how many bytes of tensors that read: what opening alone reads are headers.
    fn audit(&self, depth: Depth, look: impl FnOnce(&Report<'_>)) -> u64 {
        let read = Arc::new(AtomicU64::new(0));
        let shards = self.shards.iter().map(|(name, bytes)| {
            let source: Arc<dyn ReadAt> = Arc::new(Counting {
                bytes: BytesSource(bytes.as_slice().into()),
                read: Arc::clone(&read),
            });
            (name.clone(), source)
        });
        let limits = Limits::default();
        let documents = self.documents.clone();
        let (checkpoint, problems) =
            Checkpoint::survey_sources("counted", shards.collect(), documents, &limits).unwrap();
        let headers = read.load(Ordering::Relaxed);
        let subject = Subject::new(&checkpoint, problems, Wanted::default());
        look(&audit::audit(subject, &options(depth)));
        read.load(Ordering::Relaxed) - headers
    }
}

/// `DeepSeek`'s layout: FP8 with a scale for each block of 128x128, one of them at the edge.
fn blocks_of_fp8() -> Files {
    let mut tensors = Vec::new();
    for (module, [rows, columns]) in [
        ("model.layers.0.mlp.up_proj", [512, 256]),
        ("model.layers.0.mlp.down_proj", [256, 576]),
        ("model.layers.1.mlp.up_proj", [512, 256]),
    ] {
        let n = usize::try_from(rows * columns).unwrap();
        let codes = (0..n).map(|at| u8::try_from(at * 7 % 126).unwrap());
        tensors.push((
            format!("{module}.weight"),
            Dense {
                dtype: Dtype::F8E4M3,
                shape: vec![rows, columns],
                bytes: codes.collect(),
            },
        ));
        let grid = [rows.div_ceil(128), columns.div_ceil(128)];
        let n = u16::try_from(grid[0] * grid[1]).unwrap();
        let scales = (1..=n).flat_map(|at| (f32::from(at) * 1e-4).to_le_bytes());
        tensors.push((
            format!("{module}.weight_scale_inv"),
            Dense {
                dtype: Dtype::F32,
                shape: grid.to_vec(),
                bytes: scales.collect(),
            },
        ));
    }
    let config = json!({"quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }});
    let config = serde_json::to_vec(&config).unwrap();
    Files {
        shards: BTreeMap::from([("model.safetensors".to_owned(), safetensors(&tensors))]),
        documents: BTreeMap::from([("config.json".to_owned(), config)]),
    }
}

/// A file too large for memory: a header, and behind it the same scale again and again. Counts what is read of that.
struct Huge {
    head: Vec<u8>,
    len_bytes: u64,
    read: Arc<AtomicU64>,
}

impl ReadAt for Huge {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let scale = 0.001_f32.to_le_bytes();
        let start = usize::try_from(offset).unwrap();
        for (at, byte) in (start..).zip(out) {
            *byte = self.head.get(at).copied().unwrap_or(scale[at % 4]);
            let is_data = u64::from(at >= self.head.len());
            self.read.fetch_add(is_data, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn ten_gigabytes_of_fp8_blocks_cost_their_scales() {
    let (rows, columns, n_modules) = (8192_u64, 16384_u64, 75_u64);
    let (codes, scales) = (rows * columns, rows / 128 * (columns / 128));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for layer in 0..n_modules {
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        for (name, dtype, shape, len) in [
            (
                format!("{name}_scale_inv"),
                "F32",
                [rows / 128, columns / 128],
                4 * scales,
            ),
            (name, "F8_E4M3", [rows, columns], codes),
        ] {
            let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + len]});
            header.insert(name, tensor);
            end += len;
        }
    }
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text);
    let read = Arc::new(AtomicU64::new(0));
    let source: Arc<dyn ReadAt> = Arc::new(Huge {
        len_bytes: head.len() as u64 + end,
        head,
        read: Arc::clone(&read),
    });
    let shards = vec![("model.safetensors".to_owned(), source)];
    let documents = blocks_of_fp8().documents;
    let limits = Limits::default();
    let (checkpoint, problems) =
        Checkpoint::survey_sources("huge", shards, documents, &limits).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    let subject = Subject::new(&checkpoint, problems, Wanted::default());
    let report = audit::audit(subject, &options(Depth::Scales));
    assert_eq!(report.measured.weights.len() as u64, n_modules);
    let read = read.load(Ordering::Relaxed);
    assert_eq!(read, 4 * scales * n_modules, "each scale once");
    assert!(end > 10_000_000_000 && read * 100 < end, "{read} of {end}");
}

/// 0.03 percent, 4 bytes for 16,384, are what the scales of this format come to.
#[test]
fn each_depth_reads_what_it_needs() {
    let files = blocks_of_fp8();
    let data = files.data_bytes();
    let read = files.audit(Depth::Headers, |report| {
        assert!(!report.skipped.is_empty());
    });
    assert_eq!(read, 0, "headers");
    let scales = 8 + 10 + 8;
    let read = files.audit(Depth::Scales, |report| {
        let all = report.measured.weights.values();
        assert_eq!(
            all.map(|weight| weight.scales.scales.n).sum::<u64>(),
            scales
        );
    });
    assert_eq!(read, 4 * scales, "each scale once");
    assert!(read * 100 < data, "{read} of {data}");
    let read = files.audit(Depth::Full, |report| {
        let codes = report.measured.weights.values();
        let codes = codes.filter_map(|weight| Some(weight.codes.as_ref()?.n()));
        assert_eq!(codes.sum::<u64>() + 4 * scales, data);
        assert!(report.skipped.is_empty());
    });
    assert!(read >= data, "{read} of {data}");
}

/// Without tensors, real checkpoints of all formats are audited from what describes them; with scales, from far less than
/// everything, but for ggml's blocks and tensors too small to tell.
#[test]
fn fixtures_are_audited_from_what_a_depth_reads() {
    let fixtures = fixture::all();
    assert!(fixtures.len() > 80);
    for fixture in &fixtures {
        let (shards, documents) = fixture.files();
        let files = Files { shards, documents };
        let data = files.data_bytes();
        let at_headers = files.audit(Depth::Headers, |report| {
            assert!(report.measured.weights.is_empty());
        });
        let at_scales = files.audit(Depth::Scales, |_| ());
        let at_full = files.audit(Depth::Full, |_| ());
        println!(
            "{}: {at_headers}, {at_scales}, {at_full} of {data}",
            fixture.name
        );
        assert!(
            at_headers <= at_scales && at_scales <= at_full,
            "{}",
            fixture.name
        );
    }
}
