//! The quantizer `rtn` on a tile of rows: scan, choice of scales and codes, for each rule.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safequant_benches::{copy, group, weights};
use safequant_kernels::{Backend, Float, Floats, Minifloat};
use safequant_quantize::{Division, NonFinite, Quantizer, RoundToNearest, Rows, ScaleRule, Target};
use safequant_schemes::{
    Code, Granularity, IntegerEncoding, ScaleCoding, Scheme, ZeroCoding, ZeroPoint,
};

const IN_FEATURES: usize = 4096;
const N_ROWS: usize = 256;
const GROUP: Granularity = Granularity::Group { size: 128 };
const BLOCK: Granularity = Granularity::Block {
    rows: 128,
    columns: 128,
};

fn target(code: Code, zero_point: ZeroPoint, granularity: Granularity, rule: ScaleRule) -> Target {
    Target {
        scheme: Scheme {
            zero_point,
            ..Scheme::plain(code, granularity, ScaleCoding::Float(Float::F32))
        },
        rule,
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
    }
}

fn targets() -> [(&'static str, Target); 6] {
    let int = |bits| Code::Integer {
        bits,
        encoding: IntegerEncoding::Unsigned,
    };
    let fp8 = Code::Minifloat(Minifloat::E4M3);
    let stored = ZeroPoint::Stored(ZeroCoding::Direct);
    let (ct, gptq) = (ScaleRule::CompressedTensors, ScaleRule::Gptq);
    [
        (
            "ct int4 g128",
            target(int(4), ZeroPoint::Fixed(8), GROUP, ct),
        ),
        ("ct int4 g128 asym", target(int(4), stored, GROUP, ct)),
        (
            "ct fp8 channel",
            target(fp8, ZeroPoint::Fixed(0), Granularity::Channel, ct),
        ),
        (
            "gptq int4 g128",
            target(int(4), ZeroPoint::Fixed(8), GROUP, gptq),
        ),
        (
            "gptq int8 g128",
            target(int(8), ZeroPoint::Fixed(128), GROUP, gptq),
        ),
        (
            "fp8 block 128",
            target(fp8, ZeroPoint::Fixed(0), BLOCK, ScaleRule::FineGrainedFp8),
        ),
    ]
}

fn round_to_nearest(criterion: &mut Criterion) {
    let mut group = group(criterion, "round_to_nearest");
    let n = IN_FEATURES * N_ROWS;
    copy(&mut group, ("4 to 1 bytes", "tile"), 4 * n, n);
    let values: Vec<f32> = weights(n).iter().map(|&v| Float::Bf16.nearest(v)).collect();
    let rows = Rows {
        values: Floats::F32(&values),
        in_features: IN_FEATURES,
        first_row: 0,
        out_features: N_ROWS as u64,
        source: Float::Bf16,
    };
    for backend in Backend::available() {
        for (case, target) in &targets() {
            group.throughput(Throughput::Bytes(5 * n as u64));
            let id = BenchmarkId::new(format!("{}/{case}", backend.name), "tile");
            group.bench_function(id, |bencher| {
                bencher.iter(|| RoundToNearest.quantize(target, black_box(rows), None, backend));
            });
            let tile = RoundToNearest.quantize(target, rows, None, backend);
            assert!(tile.is_ok_and(|tile| tile.codes.len() == n), "{case}");
        }
    }
    group.finish();
}

criterion_group!(benches, round_to_nearest);
criterion_main!(benches);
