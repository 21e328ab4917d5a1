//! The passes of quantizing alone, from BF16: what is looked at in groups, and codes as they are stored.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safequant_benches::{SIZES, copy, group, kernel, weights};
use safequant_kernels::{
    Backend, CodeForm, CodeRule, Codebook, E2M1Rule, Float, Floats, GroupRules, Minifloat,
    PORTABLE, Packing, Stores,
};

const NIBBLES: CodeForm = CodeForm {
    packing: Packing::LsbFirst { bits: 4 },
    flip: 0,
};

/// Name, values that share a number, rule, and how its codes are stored.
const CASES: &[(&str, usize, CodeRule, CodeForm)] = &[
    ("int4 g128", 128, INT4, NIBBLES),
    ("int8 channel", 4096, INT8, CodeForm::BYTES),
    ("fp8 channel", 4096, FP8, CodeForm::BYTES),
    ("nf4 g64", 64, NF4, NIBBLES),
    ("mxfp4 g32", 32, E2M1, NIBBLES),
    ("nvfp4 g16", 16, E2M1, NIBBLES),
];
const INT4: CodeRule = integer(-8, 7);
const INT8: CodeRule = integer(-128, 127);
const FP8: CodeRule = CodeRule::Divided {
    arith: Float::Bf16,
    format: Minifloat::E4M3,
    divisor: 0.0,
};
const NF4: CodeRule = CodeRule::Nearest {
    book: Codebook::Nf4,
    factor: 0.0,
};
const E2M1: CodeRule = CodeRule::E2M1 {
    rule: E2M1Rule::EvenPlusZero,
    arith: Float::F32,
    divisor: 0.0,
};

const fn integer(min: i32, max: i32) -> CodeRule {
    CodeRule::Integer {
        arith: Float::Bf16,
        divisor: 0.0,
        zero: 0,
        min,
        max,
    }
}

fn bf16(n: usize) -> Vec<u8> {
    let mut bytes = vec![0; 2 * n];
    (PORTABLE.round)(Float::Bf16, &weights(n), &mut bytes);
    bytes
}

fn encode(criterion: &mut Criterion) {
    let mut group = group(criterion, "quantize");
    for &(place, n) in SIZES {
        let values = bf16(n);
        for &(name, size, rule, form) in CASES {
            let numbers: Vec<f32> = (0..n.div_ceil(size))
                .map(|i| [0.133, 0.21, 0.4][i % 3])
                .collect();
            let rules = GroupRules::Same(rule, &numbers);
            let mut out = vec![0; form.packing.packed_len_bytes(n, 1)];
            let stores = Stores::for_len(out.len());
            copy(&mut group, (name, place), values.len(), out.len());
            let mut expected = vec![0; out.len()];
            let source = Floats::Bytes(Float::Bf16, &values);
            (PORTABLE.encode)(source, size, rules, form, &mut expected, stores);
            for backend in Backend::available() {
                let id = (backend.name, name, place);
                kernel(&mut group, id, &values, &mut out, |i, o| {
                    let source = Floats::Bytes(Float::Bf16, i);
                    (backend.encode)(source, size, rules, form, o, stores);
                });
                assert!(out == expected, "{} {name}", backend.name);
            }
        }
    }
}

fn look(criterion: &mut Criterion) {
    let mut group = group(criterion, "look");
    for &(place, n) in SIZES {
        copy(&mut group, ("2 to 0 bytes", place), 2 * n, 0);
        let values = bf16(n);
        let source = Floats::Bytes(Float::Bf16, &values);
        for backend in Backend::available() {
            for size in [16, 128, 4096] {
                let id = |case| BenchmarkId::new(format!("{}/{case} g{size}", backend.name), place);
                let mut largest = vec![0.0; n / size];
                let mut ends = vec![(0.0, 0.0); n / size];
                group.throughput(Throughput::Bytes(2 * n as u64));
                group.bench_function(id("magnitudes"), |b| {
                    b.iter(|| (backend.magnitudes)(black_box(source), size, 2048, &mut largest));
                });
                group.bench_function(id("extremes"), |b| {
                    b.iter(|| (backend.extremes)(black_box(source), size, &mut ends));
                });
                (backend.magnitudes)(source, size, 2048, &mut largest);
                (backend.extremes)(source, size, &mut ends);
                let mut pairs = largest.iter().zip(&ends);
                let same =
                    |(a, (low, high)): (&f32, &(f32, f32))| a.to_bits() == high.max(-low).to_bits();
                assert!(pairs.all(same));
            }
        }
    }
}

criterion_group!(benches, encode, look);
criterion_main!(benches);
