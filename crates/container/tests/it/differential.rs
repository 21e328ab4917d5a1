//! Generated and mutated headers: our verdict is the official parser's, but for the closed list.

use std::cell::RefCell;
use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safequant_container::Dtype;

use crate::mutation::{Mutation, mutate, pick};
use crate::peer::{Verdict, file, judge};

/// Mutated headers of one run.
const N_CASES: u32 = 100_000;

/// One tensor of a generated header. The indexes choose from the tables below, modulo their length.
#[derive(Clone, Debug)]
struct Entry {
    name: u8,
    dtype: u8,
    dims: Vec<u8>,
    style: u8,
    extra: u8,
}

const NAMES: &[&str] = &[
    "a",
    "b",
    "a.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "",
    r"\u0061",
    r"\ud83d\ude00",
    "\u{1F600}",
    "é",
    "__metadata__",
    r"__metadata\u005f_",
    r"\n\t\\\/",
    "dtype",
    "shape",
];

const EXTRAS: &[&str] = &[
    "",
    "",
    "",
    "",
    r#","x":1"#,
    r#","x":{"y":[1,{"z":null}]}"#,
    r#","x":{"y":1,"y":2}"#,
    r#","x":1e308"#,
    r#","x":1e309"#,
    r#","x":-0.0"#,
    r#","x":"\ud800""#,
    r#","x":[]"#,
    r#","x":[1,2,3],"w":true"#,
    r#","x":1,"\u0078":2"#,
    r#","Dtype":"F32""#,
    r#","shape":[1]"#,
    r#","x":123456789012345678901234567890"#,
];

const METADATA: &[&str] = &[
    "",
    "",
    r#""__metadata__":{"format":"pt"},"#,
    r#""__metadata__":{},"#,
    r#""__metadata__":null,"#,
    r#""__metadata__":{"a":1},"#,
    r#""__metadata__":{"a":"1","b":"é\n"},"#,
    r#""__metadata__":[],"#,
    r#""__metadata__":{"a":"1","\u0061":"2"},"#,
];

/// The text of a header that tiles its data, in a style that may be refused; and the data's length.
fn render(entries: &[Entry], metadata: u8) -> (String, usize) {
    let mut offset = 0;
    let mut texts = Vec::new();
    for entry in entries {
        let dtype = Dtype::ALL[usize::from(entry.dtype) % Dtype::ALL.len()];
        let dims: Vec<u64> = entry.dims.iter().map(|&dim| u64::from(dim)).collect();
        let bits = dims.iter().product::<u64>() * dtype.bits();
        let begin = offset;
        offset += bits / 8;
        let (name, extra) = (pick(NAMES, entry.name), pick(EXTRAS, entry.extra));
        let text = match entry.style % 16 {
            0 => format!(r#""{name}":["{dtype}",{dims:?},[{begin},{offset}]]"#),
            1 => format!(
                r#""{name}":{{"dtype":{{"{dtype}":null}},"shape":{dims:?},"data_offsets":[{begin},{offset}]{extra}}}"#
            ),
            2 => format!(
                "\"{name}\" :\n{{ \"shape\":{dims:?},\t\"data_offsets\":[ {begin} ,{offset} ] , \"dtype\":\"{dtype}\"{extra}}}"
            ),
            _ => format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{dims:?},"data_offsets":[{begin},{offset}]{extra}}}"#
            ),
        };
        if entry.style % 16 == 3 {
            texts.push(text.clone());
        }
        texts.push(text);
    }
    if metadata.is_multiple_of(3) {
        texts.reverse();
    }
    let json = format!("{{{}{}}}", pick(METADATA, metadata), texts.join(","));
    (json, usize::try_from(offset).unwrap())
}

fn entry() -> impl Strategy<Value = Entry> {
    let dims = prop::collection::vec(0..5_u8, 0..4);
    (any::<u8>(), any::<u8>(), dims, any::<u8>(), any::<u8>()).prop_map(
        |(name, dtype, dims, style, extra)| Entry {
            name,
            dtype,
            dims,
            style,
            extra,
        },
    )
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<(u16, u8)>().prop_map(|(at, token)| Mutation::Insert(at, token)),
        any::<(u16, u8)>().prop_map(|(at, token)| Mutation::Replace(at, token)),
        any::<(u16, u8)>().prop_map(|(at, len)| Mutation::Delete(at, len)),
        any::<(u16, u16, u8)>().prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
        any::<(u16, u8)>().prop_map(|(at, byte)| Mutation::Byte(at, byte)),
    ]
}

/// A fixed seed, so that a failure is a failure for everybody; exploring is the business of the fuzz target.
fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn verdicts_on_mutated_headers_are_the_official_parsers_but_for_the_closed_list() {
    let counts: RefCell<HashMap<String, u32>> = RefCell::default();
    let case = (
        prop::collection::vec(entry(), 0..5),
        prop::collection::vec(mutation(), 0..3),
        any::<u8>(),
        prop_oneof![9 => Just(0_i8), 1 => any::<i8>()],
    );
    let outcome = runner(N_CASES).run(&case, |(entries, mutations, metadata, delta)| {
        let (json, n_data) = render(&entries, metadata);
        let mut json = json.into_bytes();
        for mutation in &mutations {
            mutate(&mut json, mutation);
        }
        let n_data = n_data.saturating_add_signed(isize::from(delta));
        let verdict = judge(&file(json, n_data));
        *counts
            .borrow_mut()
            .entry(format!("{verdict:?}"))
            .or_default() += 1;
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let counts = counts.into_inner();
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<u32>(), N_CASES);
    for verdict in [
        Verdict::BothAccept,
        Verdict::BothRefuse,
        Verdict::DuplicateKey,
        Verdict::EntryNotObject,
        Verdict::DtypeNotString,
    ] {
        let n = counts.get(&format!("{verdict:?}")).copied().unwrap_or(0);
        assert!(n > 200, "{verdict:?} occurred {n} times only: {counts:?}");
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_has_one_verdict() {
    let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]},"\u0062":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]}}"#;
    let whole = file(json, 7);
    assert_eq!(judge(&whole), Verdict::BothAccept);
    let mut n_judged = 0;
    for len in 0..whole.len() {
        assert_eq!(judge(&whole[..len]), Verdict::BothRefuse, "{len} bytes");
        n_judged += 1;
    }
    for bit in 0..8 * (whole.len() - 7) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        judge(&flipped);
        n_judged += 1;
    }
    assert_eq!(n_judged, 9 * whole.len() - 56);
}
