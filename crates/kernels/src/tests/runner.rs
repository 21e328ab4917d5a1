//! Runs each operation of each available backend beside portable, bit for bit.

use super::cases::{self, LENGTHS, OFFSETS};
use crate::{Backend, Codebook, Float, Minifloat, PORTABLE, Packing, Planes, Tile};

/// Calls `check` for each backend, length and offset, and says how many cases each backend had.
fn run(operation: &str, check: impl Fn(&Backend, usize, usize)) {
    let mut backends = 0;
    for backend in Backend::available() {
        let mut visited = 0;
        for &len in LENGTHS {
            for &offset in OFFSETS {
                check(backend, len, offset);
                visited += 1;
            }
        }
        assert_eq!(visited, LENGTHS.len() * OFFSETS.len());
        println!(
            "{operation}: {} equals portable in {visited} cases",
            backend.name
        );
        backends += 1;
    }
    assert_eq!(
        backends,
        crate::BACKENDS
            .iter()
            .filter(|b| (b.is_available)())
            .count()
    );
    assert!(backends >= 1, "no backend ran");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// As [`bits`], with one NaN: payloads of NaN products are the processor's choice.
fn bits_one_nan(values: &[f32]) -> Vec<u32> {
    values
        .iter()
        .map(|v| {
            if v.is_nan() {
                f32::NAN.to_bits()
            } else {
                v.to_bits()
            }
        })
        .collect()
}

#[test]
fn unpack_and_pack() {
    for packing in Packing::all() {
        run(&format!("{packing:?}"), |backend, len, offset| {
            let packed = cases::bytes(offset + packing.packed_len_bytes(len, 8));
            let mut outs = [vec![0xa5; offset + len + 1], vec![0xa5; offset + len + 1]];
            for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                (table.unpack)(packing, &packed[offset..], &mut out[offset..offset + len]);
            }
            assert_eq!(
                outs[0], outs[1],
                "{} unpack {packing:?} {len} {offset}",
                backend.name
            );
            let codes = &outs[1][offset..offset + len];
            let mut packs = [vec![0xa5; packed.len() + 1], vec![0xa5; packed.len() + 1]];
            for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut packs) {
                (table.pack)(packing, codes, &mut out[offset..packed.len()]);
            }
            assert_eq!(
                packs[0], packs[1],
                "{} pack {packing:?} {len} {offset}",
                backend.name
            );
        });
    }
}

#[test]
fn tiles() {
    for &tile in Tile::ALL {
        for offset in OFFSETS {
            let packed = cases::bytes(offset + tile.len_bytes());
            let len = tile.n_entries() * tile.entry_bytes();
            for backend in Backend::available() {
                let mut outs = [vec![0xa5; offset + len], vec![0xa5; offset + len]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                    (table.unpack_tile)(tile, &packed[*offset..], &mut out[*offset..]);
                }
                assert_eq!(outs[0], outs[1], "{} {tile:?} {offset}", backend.name);
                let mut packs = [vec![0xa5; packed.len()], vec![0xa5; packed.len()]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut packs) {
                    (table.pack_tile)(tile, &outs[1][*offset..], &mut out[*offset..]);
                }
                assert_eq!(packs[0], packs[1], "{} {tile:?} {offset}", backend.name);
            }
        }
    }
}

#[test]
fn planes() {
    for &planes in Planes::ALL {
        run(&format!("{planes:?}"), |backend, len, offset| {
            let words = cases::bytes(offset + len * planes.word_bytes());
            for plane in 0..planes.n_planes() {
                let case = format!("{} {planes:?} {plane} {len} {offset}", backend.name);
                let mut outs = [vec![0xa5; offset + len], vec![0xa5; offset + len]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                    (table.unpack_plane)(planes, plane, &words[offset..], &mut out[offset..]);
                }
                assert_eq!(outs[0], outs[1], "{case}");
                let mut packs = [vec![0xa5; words.len()], vec![0xa5; words.len()]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut packs) {
                    (table.pack_plane)(planes, plane, &outs[1][offset..], &mut out[offset..]);
                }
                assert_eq!(packs[0], packs[1], "{case}");
            }
        });
    }
}

#[test]
fn rotations() {
    run("rotations", |backend, len, offset| {
        for group in [4, 16, 64, 256] {
            let n = len / group * group;
            let values = &cases::weights(offset + n)[offset..];
            let codes: Vec<i8> = cases::bytes(offset + n).iter().map(|&b| b as i8).collect();
            let mut rows = [
                [(); 5].map(|()| vec![0.0; n]),
                [(); 5].map(|()| vec![0.0; n]),
            ];
            for (table, outs) in [backend, &PORTABLE].into_iter().zip(&mut rows) {
                outs[0].copy_from_slice(values);
                (table.rotate)(&mut outs[0], group);
                (table.rotate_codes)(&codes[offset..], 0.0173, group, &mut outs[1]);
                for (&float, out) in Float::ALL.iter().zip(&mut outs[2..]) {
                    (table.rotate_rounded)(float, values, group, out);
                }
            }
            for (ours, expected) in rows[0].iter().zip(&rows[1]) {
                assert_eq!(bits(ours), bits(expected), "{} {n} {group}", backend.name);
            }
        }
    });
}

#[test]
fn dequantize_integer() {
    run("dequantize_integer", |backend, len, offset| {
        let codes = cases::bytes(offset + len);
        for (zero, scale) in [
            (0, 0.0123),
            (8, -1.5),
            (128, 3e-41),
            (-7, 3e38),
            (i32::MIN, 1.0),
        ] {
            let mut outs = [vec![0.0; offset + len], vec![0.0; offset + len]];
            for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                (table.dequantize_integer)(&codes[offset..], zero, scale, &mut out[offset..]);
            }
            assert_eq!(
                bits(&outs[0]),
                bits(&outs[1]),
                "{} {len} {offset} {zero}",
                backend.name
            );
        }
    });
}

#[test]
fn dequantize_table() {
    run("dequantize_table", |backend, len, offset| {
        let codes = cases::bytes(offset + len);
        let minifloats = Minifloat::ALL.iter().map(|format| format.table());
        for table in minifloats.chain(Codebook::ALL.iter().map(|book| book.table())) {
            for scale in [1.0, -0.037, 3e38] {
                let mut outs = [vec![0.0; offset + len], vec![0.0; offset + len]];
                for (functions, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                    (functions.dequantize_table)(
                        &codes[offset..],
                        table,
                        scale,
                        &mut out[offset..],
                    );
                }
                let (ours, expected) = (bits_one_nan(&outs[0]), bits_one_nan(&outs[1]));
                assert_eq!(ours, expected, "{} {len} {offset} {scale}", backend.name);
            }
        }
    });
}

#[test]
fn widen_and_round() {
    for &float in Float::ALL {
        run(&format!("{float:?}"), |backend, len, offset| {
            let size = float.size_bytes();
            let values = cases::floats(offset + len);
            let mut bytes = [
                vec![0xa5; offset + len * size],
                vec![0xa5; offset + len * size],
            ];
            for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut bytes) {
                (table.round)(float, &values[offset..], &mut out[offset..]);
            }
            assert_eq!(
                bytes[0], bytes[1],
                "{} round {float:?} {len} {offset}",
                backend.name
            );
            let mut wide = [vec![0.0; offset + len], vec![0.0; offset + len]];
            for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut wide) {
                (table.widen)(float, &bytes[1][offset..], &mut out[offset..]);
            }
            assert_eq!(
                bits(&wide[0]),
                bits(&wide[1]),
                "{} widen {float:?} {len}",
                backend.name
            );
        });
    }
}

/// All 65536 halves of both kinds, and many floats of any bits and of the size of weights.
#[test]
fn every_half_and_a_million_floats() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut state = 0x9e37_79b9_u32;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from_bits(state)
    };
    let floats: Vec<f32> = (0..1 << 20).map(|_| random()).collect();
    for backend in Backend::available() {
        for float in [Float::F16, Float::Bf16] {
            let mut wide = [vec![0.0; 1 << 16], vec![0.0; 1 << 16]];
            let mut narrow = [vec![0; 1 << 21], vec![0; 1 << 21]];
            for (at, table) in [backend, &PORTABLE].into_iter().enumerate() {
                (table.widen)(float, &halves, &mut wide[at]);
                (table.round)(float, &floats, &mut narrow[at]);
            }
            assert_eq!(bits(&wide[0]), bits(&wide[1]), "{} {float:?}", backend.name);
            assert!(narrow[0] == narrow[1], "{} {float:?}", backend.name);
        }
        for &format in Minifloat::ALL {
            let mut codes = [vec![0; 1 << 20], vec![0; 1 << 20]];
            for (table, codes) in [backend, &PORTABLE].into_iter().zip(&mut codes) {
                let (overflow, nan) = (crate::OverflowRule::Torch, crate::NanRule::Torch);
                (table.encode_minifloat)(format, overflow, nan, &floats, codes);
            }
            assert!(codes[0] == codes[1], "{} {format:?}", backend.name);
        }
        println!("{} equals portable for every half", backend.name);
    }
}

#[test]
fn encode_minifloat() {
    for &format in Minifloat::ALL {
        run(&format!("encode {format:?}"), |backend, len, offset| {
            let values = cases::floats(offset + len);
            for (overflow, nan) in cases::rules() {
                let mut outs = [vec![0xa5; offset + len], vec![0xa5; offset + len]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                    let (values, out) = (&values[offset..], &mut out[offset..]);
                    (table.encode_minifloat)(format, overflow, nan, values, out);
                }
                let case = format!("{} {format:?} {overflow:?} {nan:?} {len}", backend.name);
                assert_eq!(outs[0], outs[1], "{case}");
            }
        });
    }
}

#[test]
fn scans() {
    run("scans", |backend, len, offset| {
        let mut values = cases::weights(offset + len);
        // The first round is finite; then one bad value or a zero of either sign wanders through.
        for bad in [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0] {
            if len > 0 {
                values[offset + (len * 5) / 7] = bad;
            }
            let values = &values[offset..];
            let case = format!("{} {len} {offset} {bad}", backend.name);
            let expected = (PORTABLE.first_non_finite)(values);
            assert_eq!((backend.first_non_finite)(values), expected, "{case}");
        }
    });
}
