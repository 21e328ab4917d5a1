//! Packings: codes per byte to packed runs and back.

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{SIZES, bytes, copy, group, kernel};
use safequant_kernels::{Backend, Packing};

const PACKINGS: &[(&str, Packing)] = &[
    ("lsb_first_2", Packing::LsbFirst { bits: 2 }),
    ("lsb_first_3", Packing::LsbFirst { bits: 3 }),
    ("lsb_first_4", Packing::LsbFirst { bits: 4 }),
    ("lsb_first_5", Packing::LsbFirst { bits: 5 }),
    ("lsb_first_8", Packing::LsbFirst { bits: 8 }),
    (
        "lsb_first_no_straddle_3",
        Packing::LsbFirstNoStraddle { bits: 3 },
    ),
    ("planar_3", Packing::Planar { bits: 3 }),
    ("nibbles_high_first", Packing::NibblesHighFirst),
    ("awq_interleaved", Packing::AwqInterleaved),
];

fn benches(criterion: &mut Criterion) {
    for (direction, is_unpack) in [("unpack", true), ("pack", false)] {
        let mut group = group(criterion, direction);
        for &(place, n) in SIZES {
            for &(case, packing) in PACKINGS {
                let codes: Vec<u8> = bytes(n).iter().map(|b| b >> (8 - packing.bits())).collect();
                let mut packed = vec![0; packing.packed_len_bytes(n, 4)];
                packing.pack(&codes, &mut packed);
                let (n_in, n_out) = if is_unpack {
                    (packed.len(), n)
                } else {
                    (n, packed.len())
                };
                copy(&mut group, (case, place), n_in, n_out);
                for backend in Backend::available() {
                    let id = (backend.name, case, place);
                    if is_unpack {
                        let mut out = vec![0; n];
                        kernel(&mut group, id, &packed, &mut out, |i, o| {
                            (backend.unpack)(packing, i, o);
                        });
                        assert_eq!(out, codes, "{case}");
                    } else {
                        let mut out = vec![0; packed.len()];
                        kernel(&mut group, id, &codes, &mut out, |i, o| {
                            (backend.pack)(packing, i, o);
                        });
                        assert_eq!(out, packed, "{case}");
                    }
                }
            }
        }
    }
}

criterion_group!(unpack, benches);
criterion_main!(unpack);
