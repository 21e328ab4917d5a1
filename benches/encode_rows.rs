//! Rows of BF16 to stored codes and scales (`Quantizer::quantize_into` and `encode_beside`, or where codes lie otherwise
//! `quantize` and `encode`), beside a copy of the same bytes in and out with the same kind of stores, and beside portable:
//! `4096 x 14336` from memory to memory, and a piece that stays in L2. `loss` is how a job that reports losses goes about it:
//! codes to a buffer, decoded again and compared, then packed.
//!
//! `cargo bench -p safequant-benches --bench encode_rows -- 'DRAM'` measures a part.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safequant_benches::{group, twin, weights};
use safequant_kernels::{Backend, Float, Floats, PORTABLE, Stores};
use safequant_quantize::report::row_losses;
use safequant_quantize::{
    Division, NonFinite, Output, Quantizer, RoundToNearest, Rows, Statistics, Target,
};
use safequant_schemes::{CONVENTIONS, CodeTile, Preset, QuantizedTensor, encode};

/// Name, rows, columns. In L2: rows, codes and what is decoded of them.
const PLACES: &[(&str, usize, usize)] = &[("L2", 128, 512), ("DRAM", 4096, 14336)];

/// Convention and scheme.
const CASES: &[(&str, &str)] = &[
    ("compressed-tensors", "FP8_DYNAMIC"),
    ("fp8", "FP8_BLOCK"),
    ("compressed-tensors", "W8A8"),
    ("compressed-tensors", "W8A16"),
    ("compressed-tensors", "W4A16"),
    ("gptq", "W4A16"),
    ("awq", "W4A16_ASYM"),
    ("bitsandbytes", "NF4"),
    ("comfyui", "NVFP4"),
    ("compressed-tensors", "NVFP4A16"),
    ("compressed-tensors", "MXFP4"),
    ("gguf", "Q4_0"),
    ("gguf", "Q8_0"),
];

/// A weight and what it becomes.
struct Case {
    layout: QuantizedTensor,
    target: Target,
    statistics: Option<Statistics>,
    n_rows: usize,
    n_columns: usize,
    /// Rows that are encoded at once: about what a job takes.
    at_once: usize,
}

impl Case {
    fn new((convention, scheme): (&str, &str), n_rows: usize, n_columns: usize) -> Self {
        let found = CONVENTIONS.iter().find(|c| c.id() == convention);
        let writer = found.and_then(|c| c.writer()).expect("it is written");
        let preset = Preset::by_name(scheme).expect("a scheme");
        let shape = [n_rows as u64, n_columns as u64];
        let layout = writer
            .lay_out("m", &shape, &preset, Float::Bf16)
            .expect("it holds it");
        let target = Target {
            scheme: layout.scheme.clone(),
            rule: writer.scale_rule(),
            division: Division::SourceDtype,
            nonfinite: NonFinite::Refuse,
        };
        let unit = usize::try_from(encode::row_unit(&layout)).expect("a few rows");
        let wanted = ((1 << 18) / n_columns).max(1).next_multiple_of(unit);
        Self {
            layout,
            target,
            statistics: None,
            n_rows,
            n_columns,
            at_once: wanted.min(n_rows),
        }
    }

    fn rows<'v>(&self, values: &'v [u8], rows: std::ops::Range<usize>) -> Rows<'v> {
        Rows {
            values: Floats::Bytes(Float::Bf16, values)
                .cut(rows.start * self.n_columns..rows.end * self.n_columns),
            in_features: self.n_columns,
            first_row: rows.start as u64,
            out_features: self.n_rows as u64,
            source: Float::Bf16,
        }
    }

    /// The length of everything that is written.
    fn len(&self, values: &[u8]) -> usize {
        let mut len = 0;
        self.by_regions(values, None, &PORTABLE, |bytes| len += bytes.len());
        len
    }

    /// Tile after tile, codes straight into the output and everything else behind them, or where that is not possible region
    /// after region.
    fn run(&self, values: &[u8], out: &mut [u8], (backend, stores): (&'static Backend, Stores)) {
        let Some((_, form)) = encode::code_form(&self.layout) else {
            return self.by_regions(values, None, backend, into(out, (backend, stores)));
        };
        let at = |row: usize| form.packing.packed_len_bytes(row * self.n_columns, 1);
        let (codes, beside) = out.split_at_mut(at(self.n_rows));
        let mut write = into(beside, (backend, Stores::Ordinary));
        let mut tile = CodeTile::default();
        for start in (0..self.n_rows).step_by(self.at_once) {
            let range = start..(start + self.at_once).min(self.n_rows);
            let output = Output {
                codes: &mut codes[at(range.start)..at(range.end)],
                form,
                stores,
                tile: &mut tile,
                output_losses: &mut Vec::new(),
            };
            let (rows, statistics) = (self.rows(values, range), self.statistics.as_ref());
            RoundToNearest
                .quantize_into(&self.target, rows, statistics, output, backend)
                .expect("finite weights");
            for region in encode::encode_beside(&self.layout, &tile, backend).expect("it is stored")
            {
                write(&region.bytes);
            }
        }
    }

    /// Tile after tile, region after region; with the losses, if there is room for them.
    fn by_regions(
        &self,
        values: &[u8],
        losses: Option<&mut Vec<f64>>,
        backend: &'static Backend,
        mut write: impl FnMut(&[u8]),
    ) {
        let mut losses = losses;
        for start in (0..self.n_rows).step_by(self.at_once) {
            let rows = self.rows(values, start..(start + self.at_once).min(self.n_rows));
            let statistics = self.statistics.as_ref();
            let tile = RoundToNearest.quantize(&self.target, rows, statistics, backend);
            let tile = tile.expect("finite weights");
            if let Some(losses) = losses.as_deref_mut() {
                let of_rows = row_losses(&self.layout, &rows, &tile, backend);
                losses.extend(of_rows.expect("its layout").iter().map(|loss| loss.noise));
            }
            for region in encode::encode(&self.layout, &tile, backend).expect("it is stored") {
                write(&region.bytes);
            }
        }
    }
}

/// Writes one thing after the other.
fn into<'o>(
    out: &'o mut [u8],
    (backend, stores): (&'static Backend, Stores),
) -> impl FnMut(&[u8]) + 'o {
    let mut left = out;
    move |bytes| {
        let (now, later) = std::mem::take(&mut left).split_at_mut(bytes.len());
        (backend.copy)(bytes, now, stores);
        left = later;
    }
}

fn benches(criterion: &mut Criterion) {
    for &(place, n_rows, n_columns) in PLACES {
        let mut values = vec![0; 2 * n_rows * n_columns];
        let floats: Vec<f32> = weights(n_rows * n_columns)
            .iter()
            .map(|w| w * 0.05)
            .collect();
        (PORTABLE.round)(Float::Bf16, &floats, &mut values);
        drop(floats);
        let mut group = group(criterion, &format!("encode_rows/{place}"));
        for &(convention, scheme) in CASES {
            let mut case = Case::new((convention, scheme), n_rows, n_columns);
            let all = case.rows(&values, 0..n_rows);
            if RoundToNearest.needs_statistics(&case.target) {
                let found = RoundToNearest.observe(&case.target, all, Backend::detect());
                case.statistics = Some(found.expect("finite weights"));
            }
            let mut expected = vec![0; case.len(&values)];
            let mut out = vec![0; expected.len()];
            let stores = Stores::for_len(out.len());
            case.run(&values, &mut expected, (&PORTABLE, stores));
            let name = format!("{convention}:{scheme}");
            let traffic = values.len() + out.len();
            twin(
                &mut group,
                (&name, place),
                (values.len(), out.len()),
                stores,
            );
            for backend in Backend::available() {
                // From memory portable takes a second and is known from L2.
                if place == "DRAM" && backend.name == PORTABLE.name {
                    continue;
                }
                out.fill(0);
                case.run(&values, &mut out, (backend, stores));
                assert!(out == expected, "{} {name} {place}", backend.name);
                group.throughput(Throughput::Bytes(traffic as u64));
                let id = |what| BenchmarkId::new(format!("{what}/{}/{name}", backend.name), place);
                group.bench_function(id("encode"), |bencher| {
                    bencher.iter(|| {
                        case.run(black_box(&values), &mut out, (backend, stores));
                    });
                });
                group.bench_function(id("loss"), |bencher| {
                    bencher.iter(|| {
                        let (mut losses, write) = (Vec::new(), into(&mut out, (backend, stores)));
                        case.by_regions(black_box(&values), Some(&mut losses), backend, write);
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(encode_rows, benches);
criterion_main!(encode_rows);
