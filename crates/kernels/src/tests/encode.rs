//! The passes of quantizing: each backend beside portable, over the stored bytes of each dense type.

use super::cases::{self, LENGTHS, OFFSETS};
use crate::encode::{CodeRule, Difference, Floats};
use crate::{Backend, Codebook, E2M1Rule, Float, Minifloat, PORTABLE};

/// Groups that end inside vectors, at their edges, and with the chunks of the portable code.
const GROUPS: &[usize] = &[1, 7, 16, 32, 64, 128, 300, 5000];

/// Calls `check` with a name and the floats of every type, length and offset.
fn each_source(values: fn(usize) -> Vec<f32>, mut check: impl FnMut(&str, Floats<'_>)) -> usize {
    let mut visited = 0;
    for &len in LENGTHS {
        for &offset in OFFSETS {
            let values = values(offset + len);
            check(
                &format!("f32 {len} {offset}"),
                Floats::F32(&values[offset..]),
            );
            for &float in Float::ALL {
                // The offset is one of bytes here: no load is aligned.
                let mut bytes = vec![0; offset + len * float.size_bytes()];
                (PORTABLE.round)(float, &values[offset..], &mut bytes[offset..]);
                let source = Floats::Bytes(float, &bytes[offset..]);
                check(&format!("{float:?} {len} {offset}"), source);
                visited += 1;
            }
        }
    }
    assert_eq!(visited, LENGTHS.len() * OFFSETS.len() * Float::ALL.len());
    visited
}

fn bits(pairs: &[(f32, f32)]) -> Vec<(u32, u32)> {
    pairs
        .iter()
        .map(|(a, b)| (a.to_bits(), b.to_bits()))
        .collect()
}

/// A zero of either sign, NaN and infinities of either sign among the values; groups without them beside.
fn with_specials(len: usize) -> Vec<f32> {
    let mut values = cases::weights(len);
    for (i, &special) in [-0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
        .iter()
        .enumerate()
    {
        let at = (i + 1) * len / 7;
        if let Some(value) = values.get_mut(at) {
            *value = special;
        }
    }
    values
}

#[test]
fn extremes() {
    for backend in Backend::available() {
        let mut visited = 0;
        for values in [cases::weights, cases::floats, with_specials, |len| {
            vec![-0.0; len]
        }] {
            visited += each_source(values, |case, source| {
                for &group in GROUPS {
                    let n = source.len().div_ceil(group);
                    let mut outs = [vec![(9.0, 9.0); n], vec![(9.0, 9.0); n]];
                    for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                        (table.extremes)(source, group, out);
                    }
                    assert_eq!(
                        bits(&outs[0]),
                        bits(&outs[1]),
                        "{} {case} {group}",
                        backend.name
                    );
                }
            });
        }
        println!(
            "extremes: {} equals portable in {visited} cases",
            backend.name
        );
    }
}

/// Every rule in every arithmetic, with numbers of the size that rules choose, and some beyond.
fn rules() -> Vec<CodeRule> {
    let mut all = vec![CodeRule::Constant { code: 0xa7 }];
    for &arith in Float::ALL {
        for (divisor, zero, min, max) in [
            (0.133, 0, -8, 7),
            (0.01, 7, 0, 15),
            (0.008, 0, -128, 127),
            (1e-30, -3, -3, 0),
            (0.0, 0, -8, 7),
        ] {
            let divisor = arith.nearest(divisor);
            all.push(CodeRule::Integer {
                arith,
                divisor,
                zero,
                min,
                max,
            });
            for &source in Float::ALL {
                all.push(CodeRule::Product {
                    input: source,
                    arith,
                    factor: arith.nearest(1.0 / 0.07),
                    offset: zero as f32 * 0.3,
                    min,
                    max,
                });
                all.push(CodeRule::Repacked {
                    source,
                    arith,
                    divisor,
                    zero,
                    max: max - min,
                });
            }
            all.push(CodeRule::Shifted {
                arith,
                offset: 0.9,
                divisor,
                max: max - min,
            });
        }
        for &format in Minifloat::ALL {
            for scale in [0.0021, 3e-39, 77.0] {
                all.push(CodeRule::Divided {
                    arith,
                    format,
                    divisor: arith.nearest(scale),
                });
                all.push(CodeRule::Multiplied {
                    arith,
                    format,
                    factor: arith.nearest(1.0 / scale),
                });
            }
        }
        for &rule in E2M1Rule::ALL {
            for divisor in [0.25, 0.11] {
                all.push(CodeRule::E2M1 {
                    rule,
                    arith,
                    divisor,
                });
            }
        }
    }
    for factor in [7.9, -7.9, 130.0, 0.0, f32::INFINITY] {
        for (offset, max) in [(8.5, 15), (16.5, 31)] {
            all.push(CodeRule::Truncated {
                factor,
                offset,
                max,
            });
        }
        all.push(CodeRule::AwayFromZero { factor });
    }
    for &book in Codebook::ALL {
        all.push(CodeRule::Nearest { book, factor: 0.93 });
        all.push(CodeRule::NearestQuotient { book, divisor: 0.7 });
    }
    all
}

#[test]
fn encode() {
    let rules = rules();
    for backend in Backend::available() {
        let mut visited = 0;
        for values in [cases::weights, cases::floats] {
            visited += each_source(values, |case, source| {
                // Groups of all rules in turn; the longest sources have one of each.
                for &group in &[1, 7, 16, 33] {
                    let n = source.len().div_ceil(group);
                    let rules: Vec<CodeRule> = rules.iter().cycle().take(n).copied().collect();
                    let mut outs = [vec![0xa5; source.len()], vec![0xa5; source.len()]];
                    for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                        (table.encode)(source, group, &rules, out);
                    }
                    if outs[0] != outs[1] {
                        let at = outs[0]
                            .iter()
                            .zip(&outs[1])
                            .position(|(a, b)| a != b)
                            .unwrap();
                        panic!(
                            "{} {case} {group}: {:?} of {:?} gives {} not {}",
                            backend.name,
                            rules[at / group],
                            source.cut(at..at + 1).widened(&PORTABLE),
                            outs[0][at],
                            outs[1][at]
                        );
                    }
                }
            });
        }
        println!(
            "encode: {} equals portable in {visited} cases",
            backend.name
        );
    }
}

/// Each rule over all halves of its own, in long groups: what the mixed cases above meet by chance only.
#[test]
fn encode_every_half() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut visited = 0;
    let others = || Backend::available().filter(|b| b.name != PORTABLE.name);
    for backend in others() {
        for rule in rules() {
            for float in [Float::F16, Float::Bf16] {
                let source = Floats::Bytes(float, &halves);
                let mut outs = [vec![0xa5; 1 << 16], vec![0x5a; 1 << 16]];
                for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                    (table.encode)(source, 1 << 16, &[rule], out);
                }
                let at = outs[0].iter().zip(&outs[1]).position(|(a, b)| a != b);
                assert_eq!(at, None, "{} {float:?} {rule:?}", backend.name);
                visited += 1;
            }
        }
    }
    assert_eq!(visited, 2 * rules().len() * others().count());
}

#[test]
fn compare() {
    let bits = |d: Difference| {
        let sums = (d.signal.to_bits(), d.noise.to_bits());
        (sums, d.max_error.to_bits(), d.n_values)
    };
    for backend in Backend::available() {
        let mut visited = 0;
        for values in [cases::weights, with_specials] {
            visited += each_source(values, |case, original| {
                let wide = original.widened(&PORTABLE);
                let near: Vec<f32> = wide.iter().map(|v| v * 0.97 + 0.001).collect();
                for &float in Float::ALL {
                    let mut bytes = vec![0; near.len() * float.size_bytes()];
                    (PORTABLE.round)(float, &near, &mut bytes);
                    let decoded = Floats::Bytes(float, &bytes);
                    let found = (backend.compare)(original, decoded);
                    let expected = (PORTABLE.compare)(original, decoded);
                    assert_eq!(
                        bits(found),
                        bits(expected),
                        "{} {case} {float:?}",
                        backend.name
                    );
                    let n_finite = wide.iter().filter(|v| v.is_finite()).count();
                    assert_eq!(found.n_values, n_finite as u64, "{case}");
                }
            });
        }
        println!(
            "compare: {} equals portable in {visited} cases",
            backend.name
        );
    }
}

#[test]
fn sums_are_those_of_one_value_after_the_other() {
    let (a, b) = ([3.0, -4.0, 1.0], [3.5, -4.0, 1.25]);
    let found = (PORTABLE.compare)(Floats::F32(&a), Floats::F32(&b));
    let expected = Difference {
        signal: 26.0,
        noise: 0.3125,
        max_error: 0.5,
        n_values: 3,
    };
    assert_eq!(found, expected);
    // A value that is not finite counts nowhere.
    let found = (PORTABLE.compare)(Floats::F32(&[f32::NAN, 2.0]), Floats::F32(&[0.0, 1.0]));
    assert_eq!((found.signal, found.noise, found.n_values), (4.0, 1.0, 1));
}
