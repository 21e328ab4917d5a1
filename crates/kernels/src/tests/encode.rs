//! The passes of quantizing: each backend beside portable, over the stored bytes of each dense type.

use super::cases::{self, LENGTHS, OFFSETS};
use crate::blocks::CodeValue;
use crate::encode::{CodeForm, CodeRule, Difference, Floats, GroupRules};
use crate::{
    Backend, BlockFormat, Codebook, E2M1Rule, Float, Minifloat, PORTABLE, Packing, Stores,
};

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

#[test]
fn magnitudes() {
    for backend in Backend::available() {
        let mut visited = 0;
        for values in [cases::weights, cases::floats, with_specials, |len| {
            vec![-0.0; len]
        }] {
            visited += each_source(values, |case, source| {
                for &group in GROUPS {
                    let n = source.len().div_ceil(group);
                    let mut outs = [vec![9.0_f32; n], vec![9.0; n]];
                    for (table, out) in [backend, &PORTABLE].into_iter().zip(&mut outs) {
                        (table.magnitudes)(source, group, 2048, out);
                    }
                    let bits = outs.map(|out| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                    assert_eq!(bits[0], bits[1], "{} {case} {group}", backend.name);
                }
            });
        }
        println!(
            "magnitudes: {} equals portable in {visited} cases",
            backend.name
        );
    }
}

#[test]
fn extremes_and_magnitudes_are_of_the_groups() {
    let source = Floats::F32(&[1.0, -3.0, 2.0, -0.5, 0.25]);
    let (mut ends, mut largest) = ([(9.0, 9.0); 3], [9.0; 3]);
    (PORTABLE.extremes)(source, 2, &mut ends);
    (PORTABLE.magnitudes)(source, 2, 0, &mut largest);
    assert_eq!(ends, [(-3.0, 1.0), (-0.5, 2.0), (0.25, 0.25)]);
    assert_eq!(largest, [3.0, 2.0, 0.25]);
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
                        let rules = GroupRules::Each(&rules);
                        let (form, stores) = (CodeForm::BYTES, Stores::Ordinary);
                        (table.encode)(source, group, rules, form, out, stores);
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
                    let rules = GroupRules::Each(&[rule]);
                    let (form, stores) = (CodeForm::BYTES, Stores::Ordinary);
                    (table.encode)(source, 1 << 16, rules, form, out, stores);
                }
                let at = outs[0].iter().zip(&outs[1]).position(|(a, b)| a != b);
                assert_eq!(at, None, "{} {float:?} {rule:?}", backend.name);
                visited += 1;
            }
        }
    }
    assert_eq!(visited, 2 * rules().len() * others().count());
}

/// How many codes a rule has: what they can be packed to.
fn n_codes(rule: CodeRule) -> u32 {
    match rule {
        CodeRule::Integer { min, max, .. } | CodeRule::Product { min, max, .. } => {
            (max - min).unsigned_abs() + 1
        }
        CodeRule::Shifted { max, .. } | CodeRule::Repacked { max, .. } => max.unsigned_abs() + 1,
        CodeRule::Divided { format, .. } | CodeRule::Multiplied { format, .. } => {
            1 << format.bits()
        }
        CodeRule::E2M1 { .. } | CodeRule::Nearest { .. } | CodeRule::NearestQuotient { .. } => 16,
        CodeRule::Truncated { max, .. } => u32::from(max) + 1,
        CodeRule::AwayFromZero { .. } | CodeRule::Constant { .. } => 256,
    }
}

/// Every way to store codes of so few values.
fn forms(n_codes: u32) -> impl Iterator<Item = CodeForm> {
    Packing::all()
        .filter(move |packing| 1_u32 << packing.bits() >= n_codes)
        .flat_map(|packing| {
            let half = 1 << (packing.bits() - 1);
            [0, half].map(|flip| CodeForm { packing, flip })
        })
}

/// One rule for all groups, with a number for each: every rule, packing, and kind of store, at several addresses, which
/// nothing around the output may notice.
#[test]
fn encode_packed() {
    let numbers: Vec<f32> = (0..64).map(|i| 0.003 + i as f32 * 0.017).collect();
    let mut visited = 0;
    for (at, rule) in rules().into_iter().enumerate() {
        for &float in Float::ALL {
            for (case, values) in [cases::weights(544), with_specials(544)].iter().enumerate() {
                let mut bytes = vec![0; 1 + values.len() * float.size_bytes()];
                (PORTABLE.round)(float, values, &mut bytes[1..]);
                // Whole turns, halves of them, and what ends within one.
                for (len, group) in [(512, 128), (512, 16), (544, 64), (491, 32), (96, 5000)] {
                    let source = Floats::Bytes(float, &bytes[1..]).cut(0..len);
                    let mut numbers = numbers.clone();
                    numbers.resize(len.div_ceil(group), 0.37);
                    let rules = GroupRules::Same(rule, &numbers);
                    for form in forms(n_codes(rule)) {
                        check_packed((source, group), rules, form, at + case);
                        visited += 1;
                    }
                }
            }
        }
    }
    println!("encode_packed: {visited} cases");
    assert!(visited > 100_000, "{visited}");
}

/// Compares backends; the address and the kind of store follow from `turn`.
fn check_packed(
    (source, group): (Floats<'_>, usize),
    rules: GroupRules<'_>,
    form: CodeForm,
    turn: usize,
) {
    let len = form.packing.packed_len_bytes(source.len(), 1);
    let offset = [0, 16, 1, 32][turn % 4];
    let mut expected = vec![0xa5; len];
    let stores = [Stores::Ordinary, Stores::Streaming][turn / 4 % 2];
    (PORTABLE.encode)(source, group, rules, form, &mut expected, stores);
    for backend in Backend::available().filter(|b| b.name != PORTABLE.name) {
        let mut found = vec![0xa5; len + 96];
        let at = found.as_ptr().align_offset(32) + offset;
        let out = &mut found[at..at + len];
        (backend.encode)(source, group, rules, form, out, stores);
        let wrong = out.iter().zip(&expected).position(|(a, b)| a != b);
        let rule = rules.rule(0);
        assert_eq!(wrong, None, "{} {form:?} {rule:?} {group}", backend.name);
        let mut around = found[..at].iter().chain(&found[at + len..]);
        assert!(
            around.all(|&byte| byte == 0xa5),
            "{} {form:?}",
            backend.name
        );
    }
}

#[test]
fn packed_codes_are_the_codes_packed() {
    let values = cases::weights(100);
    let source = Floats::F32(&values);
    let rule = CodeRule::Integer {
        arith: Float::F32,
        divisor: 0.0,
        zero: 0,
        min: -8,
        max: 7,
    };
    let numbers = [0.13, 0.2, 0.07];
    let each = numbers.map(|number| rule.with_number(number));
    let mut codes = [0; 100];
    let (one, stores) = (CodeForm::BYTES, Stores::Ordinary);
    (PORTABLE.encode)(source, 40, GroupRules::Each(&each), one, &mut codes, stores);
    assert!(
        codes[0] < 4 && codes.iter().all(|&code| code < 16),
        "{codes:?}"
    );
    let packing = Packing::NibblesHighFirst;
    let (mut packed, mut expected) = ([0; 50], [0; 50]);
    let form = CodeForm { packing, flip: 8 };
    let rules = GroupRules::Same(rule, &numbers);
    (PORTABLE.encode)(source, 40, rules, form, &mut packed, stores);
    packing.pack(&codes.map(|code| code ^ 8), &mut expected);
    assert_eq!(packed, expected);
}

/// Blocks of weights, of values that decide, and with special ones.
#[test]
fn encode_blocks() {
    let mut visited = 0;
    for &format in BlockFormat::ALL {
        if format.quantizer().is_none() {
            continue;
        }
        for (turn, values) in blocks_of(format).iter().enumerate() {
            for &float in Float::ALL {
                let mut bytes = vec![0; 1 + values.len() * float.size_bytes()];
                (PORTABLE.round)(float, values, &mut bytes[1..]);
                let source = Floats::Bytes(float, &bytes[1..]);
                let len = values.len() / format.elements() * format.bytes();
                let (mut found, mut expected) = (vec![0xa5; len], vec![0x5a; len]);
                let stores = [Stores::Ordinary, Stores::Streaming][turn % 2];
                (PORTABLE.encode_blocks)(format, source, &mut expected, stores);
                for backend in Backend::available() {
                    (backend.encode_blocks)(format, source, &mut found, stores);
                    let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
                    let block = wrong.map(|at| at / format.bytes());
                    let name = format.name();
                    assert_eq!(block, None, "{} {name} {float:?} {turn}", backend.name);
                    visited += 1;
                }
            }
        }
    }
    println!("encode_blocks: {visited} cases");
    assert!(visited >= 18 * 3 * 40, "{visited}");
}

/// Values of some hundred blocks, several times; of a few, less often, where the search of a lattice takes its time.
fn blocks_of(format: BlockFormat) -> Vec<Vec<f32>> {
    let value = format.layout().map(|layout| layout.value);
    let is_slow = matches!(value, Some(CodeValue::Lattice(_)));
    let n = if is_slow { 1 } else { 96 } * format.elements();
    let mut all = vec![
        cases::weights(n),
        cases::floats(n),
        with_specials(n),
        vec![-0.0; n],
    ];
    // Magnitudes of all sizes, equal extremes of either sign, halfway quotients, zeros among positive values.
    let exponents = [-149, -20, 127, -130, -110, -60, 0, 7, 30, 90, 110];
    for &exponent in &exponents[..if is_slow { 3 } else { 11 }] {
        let power = 2.0_f32.powi(exponent);
        all.push(cases::weights(n).iter().map(|v| v * power).collect());
        let half = |i: usize| ((i * 7) % 33) as f32 / 2.0 - 8.0;
        all.push((0..n).map(|i| half(i) * power).collect());
        let ends = |i: usize| if i * 31 % 17 < 8 { power } else { -power };
        all.push((0..n).map(ends).collect());
        all.push((0..n).map(|i| ((i * 13) % 21) as f32 * power).collect());
    }
    all
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
