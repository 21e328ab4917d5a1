//! Values to codes in groups of 128, and the scans that choose a scale.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safequant_benches::{SIZES, copy, group, kernel, weights};
use safequant_kernels::{Backend, Float, Minifloat, NanRule, OverflowRule};

const GROUP: usize = 128;
const SCALE: f32 = 0.133;

fn quantize(criterion: &mut Criterion) {
    let mut group = group(criterion, "quantize");
    for &(place, n) in SIZES {
        copy(&mut group, ("4 to 1 bytes", place), 4 * n, n);
        let values = weights(n);
        for backend in Backend::available() {
            let mut out = vec![0u8; n];
            for (case, arith) in [("int4 in f32", Float::F32), ("int4 in bf16", Float::Bf16)] {
                kernel(
                    &mut group,
                    (backend.name, case, place),
                    &values,
                    &mut out,
                    |i, o| {
                        for (values, out) in i.chunks(GROUP).zip(o.chunks_mut(GROUP)) {
                            (backend.quantize_integer)(arith, values, SCALE, 0, -8, 7, out);
                        }
                    },
                );
                let right = |(&v, &code): (&f32, &u8)| {
                    let t = arith.nearest(v / SCALE).clamp(-8.0, 7.0);
                    (t.round_ties_even() + 8.0 - f32::from(code)).abs() < 0.5
                };
                assert!(values.iter().zip(&out).all(right), "{case}");
            }
            kernel(
                &mut group,
                (backend.name, "e4m3 in f32", place),
                &values,
                &mut out,
                |i, o| {
                    for (values, out) in i.chunks(GROUP).zip(o.chunks_mut(GROUP)) {
                        (backend.quantize_minifloat)(
                            Float::F32,
                            Minifloat::E4M3,
                            values,
                            SCALE,
                            out,
                        );
                    }
                },
            );
            let e4m3 = |v| Minifloat::E4M3.encode(v, OverflowRule::Saturate, NanRule::Torch);
            assert!(
                values
                    .iter()
                    .zip(&out)
                    .all(|(&v, &code)| e4m3(v / SCALE) == code)
            );
        }
    }
}

fn scan(criterion: &mut Criterion) {
    let mut group = group(criterion, "scan");
    for &(place, n) in SIZES {
        copy(&mut group, ("4 to 0 bytes", place), 4 * n, 0);
        let values = weights(n);
        group.throughput(Throughput::Bytes(4 * n as u64));
        for backend in Backend::available() {
            let (low, high) = (backend.min_max)(&values);
            assert_eq!(low.to_bits(), (-1.0f32).to_bits());
            assert!(values.iter().all(|&v| low <= v && v <= high));
            assert_eq!(
                (backend.absmax)(&values).to_bits(),
                high.max(-low).to_bits()
            );
            assert_eq!((backend.first_non_finite)(&values), None);
            let id = |case| BenchmarkId::new(format!("{}/{case}", backend.name), place);
            group.bench_function(id("min_max"), |b| {
                b.iter(|| (backend.min_max)(black_box(&values)));
            });
            group.bench_function(id("absmax"), |b| {
                b.iter(|| (backend.absmax)(black_box(&values)));
            });
            group.bench_function(id("first_non_finite"), |b| {
                b.iter(|| (backend.first_non_finite)(black_box(&values)));
            });
        }
    }
}

criterion_group!(benches, quantize, scan);
criterion_main!(benches);
