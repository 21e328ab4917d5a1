//! Codes times scale, in groups of 128, and the whole way from packed 4-bit codes to BF16.
#![expect(clippy::float_cmp, reason = "answers are defined to the last bit")]

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{SIZES, bytes, copy, group, kernel};
use safequant_kernels::{Backend, Codebook, Float, Minifloat, Packing};

const GROUP: usize = 128;

fn benches(criterion: &mut Criterion) {
    let mut group = group(criterion, "dequantize");
    for &(place, n) in SIZES {
        copy(&mut group, ("1 to 4 bytes", place), n, 4 * n);
        let codes: Vec<u8> = bytes(n).iter().map(|b| b & 15).collect();
        for backend in Backend::available() {
            let mut out = vec![0.0f32; n];
            kernel(
                &mut group,
                (backend.name, "integer", place),
                &codes,
                &mut out,
                |i, o| {
                    for (codes, out) in i.chunks(GROUP).zip(o.chunks_mut(GROUP)) {
                        (backend.dequantize_integer)(codes, 8, 0.25, out);
                    }
                },
            );
            assert!(
                codes
                    .iter()
                    .zip(&out)
                    .all(|(&c, &v)| v == (f32::from(c) - 8.0) * 0.25)
            );
            for (case, table) in [
                ("nf4", Codebook::Nf4.table()),
                ("e2m1", Minifloat::E2M1.table()),
            ] {
                kernel(
                    &mut group,
                    (backend.name, case, place),
                    &codes,
                    &mut out,
                    |i, o| {
                        for (codes, out) in i.chunks(GROUP).zip(o.chunks_mut(GROUP)) {
                            (backend.dequantize_table)(codes, table, 0.25, out);
                        }
                    },
                );
                assert!(
                    codes
                        .iter()
                        .zip(&out)
                        .all(|(&c, &v)| v == table[usize::from(c)] * 0.25)
                );
            }
        }
        copy(&mut group, ("half a byte to 2 bytes", place), n / 2, 2 * n);
        let packing = Packing::LsbFirst { bits: 4 };
        let mut packed = vec![0; n / 2];
        packing.pack(&codes, &mut packed);
        for backend in Backend::available() {
            let mut out = vec![0u8; 2 * n];
            kernel(
                &mut group,
                (backend.name, "4 bits to bf16", place),
                &packed,
                &mut out,
                |i, o| {
                    let (mut codes, mut values) = ([0; GROUP], [0.0; GROUP]);
                    for (packed, out) in i.chunks(GROUP / 2).zip(o.chunks_mut(2 * GROUP)) {
                        (backend.unpack)(packing, packed, &mut codes);
                        (backend.dequantize_integer)(&codes, 8, 0.25, &mut values);
                        (backend.round)(Float::Bf16, &values, out);
                    }
                },
            );
            let mut wide = vec![0.0; n];
            (backend.widen)(Float::Bf16, &out, &mut wide);
            assert!(
                codes
                    .iter()
                    .zip(&wide)
                    .all(|(&c, &v)| v == (f32::from(c) - 8.0) * 0.25)
            );
        }
    }
}

criterion_group!(dequantize, benches);
criterion_main!(dequantize);
