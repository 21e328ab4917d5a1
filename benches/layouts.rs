//! Layouts of more than one run (tiles, planes), and rotations.

use criterion::{Criterion, criterion_group, criterion_main};
use safequant_benches::{SIZES, bytes, copy, group, kernel, weights};
use safequant_kernels::{Backend, Float, Planes, Tile};

fn tiles(criterion: &mut Criterion) {
    let mut group = group(criterion, "unpack_tile");
    for &(place, n) in SIZES {
        for &tile in Tile::ALL {
            let case = format!("{tile:?}");
            let (n_in, n_out) = (tile.len_bytes(), tile.n_entries() * tile.entry_bytes());
            let n_tiles = n / n_out;
            let packed = bytes(n_tiles * n_in);
            copy(&mut group, (&case, place), packed.len(), n_tiles * n_out);
            for backend in Backend::available() {
                let mut out = vec![0; n_tiles * n_out];
                kernel(
                    &mut group,
                    (backend.name, &case, place),
                    &packed,
                    &mut out,
                    |i, o| {
                        for (packed, out) in i.chunks_exact(n_in).zip(o.chunks_exact_mut(n_out)) {
                            (backend.unpack_tile)(tile, packed, out);
                        }
                    },
                );
                let mut expected = vec![0; n_out];
                tile.unpack(&packed[..n_in], &mut expected);
                assert_eq!(out[..n_out], expected, "{case}");
            }
        }
    }
}

fn planes(criterion: &mut Criterion) {
    let mut group = group(criterion, "unpack_plane");
    for &(place, n) in SIZES {
        for &planes in Planes::ALL {
            let case = format!("{planes:?}");
            let words = bytes(n / planes.word_bytes() * planes.word_bytes());
            let n_out = words.len() / planes.word_bytes();
            copy(&mut group, (&case, place), words.len(), n_out);
            for backend in Backend::available() {
                let mut out = vec![0; n_out];
                kernel(
                    &mut group,
                    (backend.name, &case, place),
                    &words,
                    &mut out,
                    |i, o| {
                        (backend.unpack_plane)(planes, 0, i, o);
                    },
                );
                let mut expected = vec![0; n_out];
                planes.unpack(0, &words, &mut expected);
                assert_eq!(out, expected, "{case}");
            }
        }
    }
}

fn rotations(criterion: &mut Criterion) {
    const GROUP: usize = 256;
    let mut group = group(criterion, "rotate");
    for &(place, n) in SIZES {
        let codes: Vec<i8> = bytes(n).iter().map(|&byte| byte.cast_signed()).collect();
        let values = weights(n);
        copy(&mut group, ("codes_256", place), n, 4 * n);
        copy(&mut group, ("rounded_256", place), 4 * n, 4 * n);
        for backend in Backend::available() {
            let mut out = vec![0.0; n];
            kernel(
                &mut group,
                (backend.name, "codes_256", place),
                &codes,
                &mut out,
                |i, o| {
                    (backend.rotate_codes)(i, 0.01, GROUP, o);
                },
            );
            kernel(
                &mut group,
                (backend.name, "rounded_256", place),
                &values,
                &mut out,
                |i, o| {
                    (backend.rotate_rounded)(Float::Bf16, i, GROUP, o);
                },
            );
            let mut again = vec![0.0; n];
            (backend.rotate_rounded)(Float::F32, &out, GROUP, &mut again);
            let largest = values.iter().fold(0f32, |a, v| a.max(v.abs()));
            let is_close = |(a, v): (&f32, &f32)| (a - v).abs() < largest / 16.0;
            assert!(
                again.iter().zip(&values).all(is_close),
                "twice is the identity"
            );
        }
    }
}

criterion_group!(layouts, tiles, planes, rotations);
criterion_main!(layouts);
