//! What memory that was never touched costs, and what a second thread gives: `4096 x 14336` to BF16, beside a copy of the same
//! bytes in and out, in one run.
//!
//! `first_touch/*`: the kernel on one thread into a fresh `Vec`, into a fresh [`AlignedBuffer`] and into a given buffer.
//! `threads/*`: copy and kernel on tiles of rows, on one thread and on two. `library/*`: [`parallel::rows`] from a file (in the
//! page cache) into a fresh buffer, and [`parallel::rows_into`] a given one, on one thread and on two.
//!
//! `cargo bench -p safequant-benches --bench first_touch`

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use rayon::ThreadPool;
use rayon::prelude::*;
use safequant::container::AlignedBuffer;
use safequant::kernels::samples::{SAMPLES, Work, copy_traffic};
use safequant::kernels::{Backend, Float, PORTABLE, Stores};
use safequant::schemes::OutputDtype;
use safequant::{CancelToken, Checkpoint, DenseView, Limits, Model, parallel};
use safequant_benches::group;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

const ROWS: usize = 4096;
const COLUMNS: usize = 14336;
/// Rows of a tile: results of half a MiB.
const TILE: usize = 16;
/// Rows whose answers are compared: portable would take a second for all.
const CHECKED_ROWS: usize = 256;

/// The formats, as kernels and as files.
const FORMATS: &[&str] = &["fp8_channel", "int4_g128"];

fn benches(criterion: &mut Criterion) {
    let pools = [1, 2].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
        pool.expect("two threads")
    });
    for name in FORMATS {
        let sample = SAMPLES.iter().find(|sample| sample.name == *name);
        let work = Work::new(sample.expect("a sample"), ROWS, COLUMNS);
        let case = Case::new(name, &work);
        case.first_touch(criterion);
        case.threads(criterion, &pools);
        case.library(criterion, &pools);
    }
}

struct Case<'w> {
    name: &'w str,
    work: &'w Work,
    backend: &'static Backend,
    /// Of the whole output.
    stores: Stores,
    len: usize,
}

impl<'w> Case<'w> {
    fn new(name: &'w str, work: &'w Work) -> Self {
        let len = work.out_len(ROWS, Float::Bf16);
        Self {
            name,
            work,
            backend: Backend::detect(),
            stores: Stores::for_len(len),
            len,
        }
    }

    fn buffer(&self) -> AlignedBuffer {
        AlignedBuffer::zeroed(self.len as u64, self.name).expect("117 MB")
    }

    /// A buffer whose pages are there.
    fn given(&self) -> AlignedBuffer {
        let mut given = self.buffer();
        given.fill(1);
        given
    }

    fn decode(&self, rows: Range<usize>, out: &mut [u8]) {
        self.work
            .decode(self.backend, rows, (Float::Bf16, out), self.stores);
    }

    fn copy(&self, rows: Range<usize>, out: &mut [u8]) {
        let from = self.work.stored_len(rows.start)..self.work.stored_len(rows.end);
        copy_traffic(self.backend, &self.work.stored()[from], out, self.stores);
    }

    fn group<'c>(&self, criterion: &'c mut Criterion, what: &str) -> BenchmarkGroup<'c, WallTime> {
        let mut group = group(criterion, &format!("{what}/{}", self.name));
        let traffic = self.work.stored().len() + self.len;
        group.throughput(Throughput::Bytes(traffic as u64));
        group
    }

    /// Checks a result of the kernel, whoever called it.
    fn check(&self, found: &[u8], what: &str) {
        let mut expected = vec![0; self.work.out_len(CHECKED_ROWS, Float::Bf16)];
        let to = (Float::Bf16, expected.as_mut_slice());
        self.work
            .decode(&PORTABLE, 0..CHECKED_ROWS, to, self.stores);
        assert!(found[..expected.len()] == expected, "{} {what}", self.name);
    }

    fn first_touch(&self, criterion: &mut Criterion) {
        let mut given = self.given();
        let mut group = self.group(criterion, "first_touch");
        group.bench_function("copy, given buffer", |bencher| {
            bencher.iter(|| self.copy(0..ROWS, black_box(&mut given)));
        });
        group.bench_function("given buffer", |bencher| {
            bencher.iter(|| self.decode(0..ROWS, black_box(&mut given)));
        });
        group.bench_function("fresh buffer", |bencher| {
            bencher.iter(|| {
                let mut fresh = self.buffer();
                self.decode(0..ROWS, &mut fresh);
                black_box(&fresh);
            });
        });
        group.bench_function("fresh Vec", |bencher| {
            bencher.iter(|| {
                let mut fresh = vec![0; self.len];
                self.decode(0..ROWS, &mut fresh);
                black_box(&fresh);
            });
        });
        self.decode(0..ROWS, &mut given);
        self.check(&given, "on one thread");
    }

    fn threads(&self, criterion: &mut Criterion, pools: &[ThreadPool]) {
        let mut given = self.given();
        let mut group = self.group(criterion, "threads");
        for pool in pools {
            let threads = pool.current_num_threads();
            group.bench_function(BenchmarkId::new("copy", threads), |bencher| {
                bencher.iter(|| {
                    let copy = |rows, out: &mut [u8]| self.copy(rows, out);
                    self.tiles(pool, black_box(&mut given), copy);
                });
            });
            group.bench_function(BenchmarkId::new("decode", threads), |bencher| {
                bencher.iter(|| {
                    let decode = |rows, out: &mut [u8]| self.decode(rows, out);
                    self.tiles(pool, black_box(&mut given), decode);
                });
            });
            given.fill(1);
            self.tiles(pool, &mut given, |rows, out| self.decode(rows, out));
            self.check(&given, "on tiles");
        }
    }

    /// Runs `kernel` on tiles of rows, on the threads of a pool.
    fn tiles(
        &self,
        pool: &ThreadPool,
        out: &mut [u8],
        kernel: impl Fn(Range<usize>, &mut [u8]) + Sync,
    ) {
        let tiles = out.par_chunks_mut(self.work.out_len(TILE, Float::Bf16));
        pool.install(|| {
            tiles.enumerate().for_each(|(at, out)| {
                kernel(at * TILE..((at + 1) * TILE).min(ROWS), out);
            });
        });
    }

    fn library(&self, criterion: &mut Criterion, pools: &[ThreadPool]) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        self.write(folder.path());
        let checkpoint = Checkpoint::open(folder.path(), &Limits::default()).expect("a file");
        let model = Model::bind(&checkpoint).expect("compressed-tensors");
        let view = |backend| DenseView::new(&checkpoint, &model, OutputDtype::Auto, backend);
        let weight = |backend| {
            let weight = view(backend).tensor("m.0.weight").expect("its parts fit");
            weight.expect("it is in the view")
        };
        let cancel = CancelToken::default();
        let (tensor, mut given) = (weight(self.backend), self.given());
        let rows = 0..tensor.n_rows();
        let mut group = self.group(criterion, "library");
        for pool in pools {
            let threads = pool.current_num_threads();
            group.bench_function(BenchmarkId::new("fresh", threads), |bencher| {
                let read = || parallel::rows(&tensor, rows.clone(), &cancel);
                bencher.iter(|| black_box(pool.install(read).expect("it is read")));
            });
            group.bench_function(BenchmarkId::new("given", threads), |bencher| {
                bencher.iter(|| {
                    let out = black_box(&mut given);
                    let read = || parallel::rows_into(&tensor, rows.clone(), out, &cancel);
                    pool.install(read).expect("it is read");
                });
            });
            given.fill(1);
            let read = || parallel::rows_into(&tensor, rows.clone(), &mut given, &cancel);
            pool.install(read).expect("it is read");
            let mut expected = vec![0; self.work.out_len(CHECKED_ROWS, Float::Bf16)];
            let read = weight(&PORTABLE).rows(0..CHECKED_ROWS as u64, &mut expected);
            read.expect("it is read");
            assert!(given[..expected.len()] == expected, "{}", self.name);
        }
    }

    /// The same codes as a checkpoint of compressed-tensors.
    fn write(&self, folder: &Path) {
        let (codes, dtype, columns, groups, format, weights) = match self.name {
            "fp8_channel" => (
                "m.0.weight",
                Dtype::F8_E4M3,
                COLUMNS,
                1,
                "float-quantized",
                json!({"num_bits": 8, "type": "float", "strategy": "channel"}),
            ),
            "int4_g128" => (
                "m.0.weight_packed",
                Dtype::I32,
                COLUMNS / 8,
                COLUMNS / 128,
                "pack-quantized",
                json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
            ),
            other => panic!("{other}: nobody has said how it is stored"),
        };
        let scales = [0x23, 0x3c].repeat(ROWS * groups);
        let shape = [ROWS, COLUMNS].map(|n| (n as u64).to_le_bytes()).concat();
        let view = |dtype, shape: &[usize], bytes| {
            TensorView::new(dtype, shape.to_vec(), bytes).expect("the right length")
        };
        let mut tensors = vec![
            (codes, view(dtype, &[ROWS, columns], self.work.stored())),
            (
                "m.0.weight_scale",
                view(Dtype::BF16, &[ROWS, groups], &scales),
            ),
        ];
        if format == "pack-quantized" {
            tensors.push(("m.0.weight_shape", view(Dtype::I64, &[2], &shape)));
        }
        let config = json!({"quantization_config": {
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": [],
        }});
        safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors"))
            .expect("a temporary file");
        std::fs::write(folder.join("config.json"), config.to_string()).expect("a temporary file");
    }
}

criterion_group!(first_touch, benches);
criterion_main!(first_touch);
