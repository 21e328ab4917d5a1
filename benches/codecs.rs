//! 16-bit floats to F32, and F32 to them and to small floats (`decode_rows` has the way back).
#![expect(clippy::float_cmp, reason = "answers are defined to the last bit")]

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{SIZES, copy, group, kernel, weights};
use safequant_kernels::{Backend, Float, Minifloat, NanRule, OverflowRule};

const FORMATS: &[(&str, Minifloat)] = &[
    ("e4m3", Minifloat::E4M3),
    ("e5m2", Minifloat::E5M2),
    ("e2m1", Minifloat::E2M1),
];
const FLOATS: &[(&str, Float)] = &[("bf16", Float::Bf16), ("f16", Float::F16)];
const RULES: (OverflowRule, NanRule) = (OverflowRule::Saturate, NanRule::Torch);

fn widen(criterion: &mut Criterion) {
    let mut group = group(criterion, "widen");
    for &(place, n) in SIZES {
        copy(&mut group, ("2 to 4 bytes", place), 2 * n, 4 * n);
        for backend in Backend::available() {
            let mut out = vec![0.0f32; n];
            for &(case, float) in FLOATS {
                let mut halves = vec![0; 2 * n];
                (backend.round)(float, &weights(n), &mut halves);
                kernel(
                    &mut group,
                    (backend.name, case, place),
                    &halves,
                    &mut out,
                    |i, o| {
                        (backend.widen)(float, i, o);
                    },
                );
                assert!(
                    out.iter()
                        .zip(weights(n))
                        .all(|(&v, w)| v == float.nearest(w)),
                    "{case}"
                );
            }
        }
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = group(criterion, "encode");
    for &(place, n) in SIZES {
        copy(&mut group, ("4 to 1 bytes", place), 4 * n, n);
        copy(&mut group, ("4 to 2 bytes", place), 4 * n, 2 * n);
        let values: Vec<f32> = weights(n).iter().map(|w| w * 500.0).collect();
        for backend in Backend::available() {
            for &(case, format) in FORMATS {
                let mut codes = vec![0u8; n];
                kernel(
                    &mut group,
                    (backend.name, case, place),
                    &values,
                    &mut codes,
                    |i, o| {
                        (backend.encode_minifloat)(format, RULES.0, RULES.1, i, o);
                    },
                );
                let right = |(&v, &c): (&f32, &u8)| format.encode(v, RULES.0, RULES.1) == c;
                assert!(values.iter().zip(&codes).all(right), "{case}");
            }
            for &(case, float) in FLOATS {
                let mut halves = vec![0u8; 2 * n];
                kernel(
                    &mut group,
                    (backend.name, case, place),
                    &values,
                    &mut halves,
                    |i, o| {
                        (backend.round)(float, i, o);
                    },
                );
                let mut wide = vec![0.0; n];
                (backend.widen)(float, &halves, &mut wide);
                assert!(
                    wide.iter()
                        .zip(&values)
                        .all(|(&w, &v)| w == float.nearest(v)),
                    "{case}"
                );
            }
        }
    }
}

criterion_group!(codecs, widen, encode);
criterion_main!(codecs);
