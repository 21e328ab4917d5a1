//! The quick way against the reader: over mutated texts, whatever the quick way accepts is what the reader finds.

use std::ops::Range;

use self::mutation::Mutation;
use super::window::WINDOW_BYTES;
use crate::{BytesSource, Dtype, Error, Header, Index, Limits, ReadAt};

#[path = "../../tests/it/mutation.rs"]
mod mutation;

/// Mutated texts of one run, each read through windows of several sizes.
const N_CASES: usize = 60_000;

/// Rooms of windows: too small for any entry, for some, for the whole text; odd ones, so that pieces end everywhere.
const ROOMS: [usize; 5] = [16, 90, 131, 517, WINDOW_BYTES];

/// A sequence of numbers that is the same for everybody.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

const NAMES: &[&str] = &[
    "model.layers.0.mlp.experts.7.up_proj.weight",
    "a",
    "b",
    "lm_head.weight",
    "é",
    "\u{1F600}",
    "",
    "__metadata__",
    "dtype",
    r"\u0061",
    r"q\n",
];

/// A header as some writer writes it, and the bytes of its data.
fn render(numbers: &mut Numbers) -> (String, u64) {
    let (mut entries, mut end) = (Vec::new(), 0);
    let (comma, colon, gap) =
        [(",", ":", ""), (", ", ": ", ""), (",\n", " : ", "\n  ")][numbers.below(3)];
    if numbers.below(3) == 0 {
        let metadata = [
            "{\"format\":\"pt\"}",
            "{}",
            "{\"a\":\"é\",\"b\": \"\"}",
            "{\"a\":\"1\",\"a\":\"2\"}",
            "null",
        ];
        entries.push(format!(
            "\"__metadata__\"{colon}{}",
            numbers.pick(&metadata)
        ));
    }
    for i in 0..numbers.below(7) {
        let name = format!(
            "{}{}",
            numbers.pick(NAMES),
            ["", "x", ".1"][numbers.below(3)]
        );
        let dtype = Dtype::ALL[numbers.below(Dtype::ALL.len())];
        let dims: Vec<u64> = match numbers.below(3) {
            0 => vec![8, 2],
            _ => (0..numbers.below(6))
                .map(|_| [1, 2, 8, 12][numbers.below(4)])
                .collect(),
        };
        let start = end;
        end += dims.iter().product::<u64>() * dtype.bits() / 8;
        let shape: Vec<String> = dims.iter().map(u64::to_string).collect();
        let mut fields = [
            format!("\"dtype\"{colon}\"{dtype}\""),
            format!("\"shape\"{colon}[{}]", shape.join(comma)),
            format!("\"data_offsets\"{colon}[{start}{comma}{end}]"),
        ];
        fields.rotate_left(numbers.below(6).saturating_sub(3) + usize::from(i == 3));
        entries.push(format!(
            "\"{name}\"{colon}{{{gap}{}{gap}}}",
            fields.join(comma)
        ));
    }
    if numbers.below(4) == 0 {
        entries.reverse();
    }
    let padding = " ".repeat(numbers.below(9));
    (
        format!("{{{gap}{}{gap}}}{padding}", entries.join(comma)),
        end,
    )
}

fn mutate(text: &mut Vec<u8>, numbers: &mut Numbers) {
    let at = |numbers: &mut Numbers| u16::try_from(numbers.below(text.len() + 1)).unwrap();
    let byte = |numbers: &mut Numbers| u8::try_from(numbers.below(256)).unwrap();
    let mutation = match numbers.below(5) {
        0 => Mutation::Insert(at(numbers), byte(numbers)),
        1 => Mutation::Replace(at(numbers), byte(numbers)),
        2 => Mutation::Delete(at(numbers), byte(numbers)),
        3 => Mutation::Copy(at(numbers), at(numbers), byte(numbers)),
        _ => Mutation::Byte(at(numbers), byte(numbers)),
    };
    mutation::mutate(text, &mutation);
}

fn read(
    source: &dyn ReadAt,
    limits: &Limits,
    room: Option<usize>,
) -> (Result<Header, String>, bool) {
    let was_plain = std::cell::Cell::new(false);
    let quick = |range: Range<u64>| {
        let Some(room) = room else { return Ok(None) };
        let plain = super::header(source, range, limits, room)?;
        was_plain.set(plain.is_some());
        Ok(plain)
    };
    let header = Header::read_by(source, "file", limits, quick);
    // Not only the message: the fields too.
    (
        header.map_err(|error| format!("{error}: {error:?}")),
        was_plain.get(),
    )
}

fn file(text: &[u8], n_data: u64) -> BytesSource {
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text);
    file.resize(file.len() + usize::try_from(n_data).unwrap(), 0);
    BytesSource(file.into())
}

#[test]
fn headers_read_quickly_are_those_of_the_reader_and_so_are_the_errors() {
    let mut numbers = Numbers(1);
    let (mut n_plain, mut n_mutated, mut n_refused, mut n_slow) = (0, 0, 0, 0);
    for case in 0..N_CASES {
        let (text, n_data) = render(&mut numbers);
        let mut text = text.into_bytes();
        let n_mutations = case % 3;
        for _ in 0..n_mutations {
            mutate(&mut text, &mut numbers);
        }
        let n_data = n_data + (numbers.below(30) / 29) as u64;
        let limits = Limits {
            max_json_depth: [127, 127, 127, 2, 3][numbers.below(5)],
            ..Limits::default()
        };
        let source = file(&text, n_data);
        let (expected, _) = read(&source, &limits, None);
        for room in ROOMS {
            let (found, was_plain) = read(&source, &limits, Some(room));
            assert_eq!(
                found,
                expected,
                "window of {room}: {:?}",
                String::from_utf8_lossy(&text)
            );
            n_plain += usize::from(was_plain && room == WINDOW_BYTES);
            n_mutated += usize::from(was_plain && room == WINDOW_BYTES && n_mutations > 0);
            n_slow += usize::from(!was_plain && found.is_ok());
        }
        n_refused += usize::from(expected.is_err());
    }
    assert!(
        n_plain > N_CASES / 8 && n_mutated > N_CASES / 50,
        "{n_plain} plain, {n_mutated} of them mutated"
    );
    assert!(
        n_refused > N_CASES / 5 && n_slow > N_CASES / 5,
        "{n_refused} refused, {n_slow} left to the reader"
    );
}

#[test]
fn nearly_usual_entries_are_those_of_the_reader() {
    let long = "n".repeat(127);
    let names = [
        "a",
        "b",
        "a.b",
        "\u{7f}",
        "é",
        "",
        "__metadata__",
        "q\\u0061",
        long.as_str(),
    ];
    let dims = [
        "",
        "0",
        "00",
        "01",
        "1",
        "2,3",
        "1,1,1",
        "1,1,1,1",
        "2, 3",
        "1,1,1,1,1,1,1,1,1",
    ];
    let dims = dims.into_iter().chain([
        "123456789012345",
        "1234567890123456",
        "18446744073709551615",
        "18446744073709551616",
        "4294967296,4294967296,0",
        "0,4294967296,4294967296",
        "1.0",
        "-1",
    ]);
    let starts = [
        "1",
        "01",
        "1 ",
        " 1",
        "1.0",
        "0",
        "2",
        "12",
        "1e0",
        "+1",
        "00000001",
        "000000001",
    ];
    let mut n_plain = 0;
    for dims in dims {
        for dtype in [
            "U8",
            "F4",
            "BF16",
            "u8",
            "U8 ",
            "F8_E4M3FNUZ",
            "F8_E4M3FNUZZZZZZZ",
        ] {
            for (name, start) in names
                .iter()
                .flat_map(|name| starts.map(|start| (name, start)))
            {
                let usual = |name: &str, dtype: &str, dims: &str, start: &str, end: u64| {
                    format!(
                        r#""{name}":{{"dtype":"{dtype}","shape":[{dims}],"data_offsets":[{start},{end}]}}"#
                    )
                };
                // One that is learned from, the odd one, and two behind it, of which one lies where the odd one ends.
                let text = format!(
                    "{{{},{},{},{}}}",
                    usual("a", "U8", "1", "0", 1),
                    usual(name, dtype, dims, start, 2),
                    usual("c", "U8", "1", "2", 3),
                    usual("d", "U8", "1", "3", 4),
                );
                let source = file(text.as_bytes(), 4);
                let (expected, _) = read(&source, &Limits::default(), None);
                for room in [150, WINDOW_BYTES] {
                    let (found, was_plain) = read(&source, &Limits::default(), Some(room));
                    assert_eq!(found, expected, "window of {room}: {text}");
                    n_plain += usize::from(was_plain);
                }
            }
        }
    }
    assert!(n_plain > 100, "{n_plain} plain");
}

#[test]
fn ranges_and_names_in_any_order_are_put_in_order() {
    let mut numbers = Numbers(3);
    for n_tensors in [2, 3, 9, 40, 400] {
        for case in 0..20 {
            // Ranges by number, names by number backwards, entries shuffled; now and then one twice, or one missing.
            let mut entries: Vec<String> = (0..n_tensors)
                .map(|i| {
                    let name = [i, n_tensors - i, i % 7 * 1000 + i][case % 3];
                    let end = i + 1 + usize::from(case == 19 && i == 1);
                    format!(r#""layers.{name}.x":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{end}]}}"#)
                })
                .collect();
            for i in (1..entries.len()).rev() {
                entries.swap(i, numbers.below(i + 1));
            }
            match case {
                17 => drop(entries.pop()),
                18 => entries.push(entries[0].clone()),
                _ => {}
            }
            let source = file(
                format!("{{{}}}", entries.join(",")).as_bytes(),
                n_tensors as u64,
            );
            let (expected, _) = read(&source, &Limits::default(), None);
            let (found, was_plain) = read(&source, &Limits::default(), Some(WINDOW_BYTES));
            assert_eq!(found, expected, "case {case}");
            assert_eq!((found.is_ok(), was_plain), (case < 17, case != 18));
            if let Ok(header) = found {
                let names = header
                    .by_name()
                    .map(|i| header.tensors[i as usize].name.as_str());
                assert!(names.is_sorted_by(|a, b| a < b));
                assert!(header.tensors.is_sorted_by_key(|tensor| tensor.range.start));
            }
        }
    }
}

#[test]
fn every_style_in_use_is_plain() {
    let entry = |fields: &str| format!("{{\"a.weight\":{{{fields}}}}}");
    let styles = [
        // The official writer, alone and with its metadata.
        entry(r#""dtype":"BF16","shape":[2,3],"data_offsets":[0,12]"#),
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#.to_owned(),
        // MLX: keys sorted by nlohmann's JSON.
        entry(r#""data_offsets":[0,12],"dtype":"BF16","shape":[2,3]"#),
        // Python's `json.dumps`.
        entry(r#""dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]"#),
        // Convolutions, and a name that is not ASCII.
        r#"{"名":{"dtype":"U8","shape":[2,1,2,1,3],"data_offsets":[0,12]}}"#.to_owned(),
        "{}".to_owned(),
        " { } ".to_owned(),
    ];
    for text in styles {
        let n_data =
            [12, 4, 0][usize::from(text.contains("F32")) + 2 * usize::from(text.len() < 8)];
        let (header, was_plain) = read(
            &file(text.as_bytes(), n_data),
            &Limits::default(),
            Some(WINDOW_BYTES),
        );
        assert!(header.is_ok() && was_plain, "{text}: {header:?}");
    }
}

#[test]
fn long_headers_are_read_in_pieces_in_any_order_of_names() {
    for step in [1, 7919] {
        let n_tensors = 20_011_u64;
        let entries: Vec<String> = (0..n_tensors)
            .map(|i| {
                let name = format!("model.layers.{:05}.weight", i * step % n_tensors);
                format!(
                    r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                    i + 1
                )
            })
            .collect();
        let text = format!("{{{}}}", entries.join(","));
        assert!(text.len() > 4 * WINDOW_BYTES);
        let source = file(text.as_bytes(), n_tensors);
        let (header, was_plain) = read(&source, &Limits::default(), Some(WINDOW_BYTES));
        assert!(was_plain);
        assert_eq!(header, read(&source, &Limits::default(), None).0);
        let twice = text.replace("model.layers.00003.", "model.layers.00004.");
        let source = file(twice.as_bytes(), n_tensors);
        let (header, was_plain) = read(&source, &Limits::default(), Some(WINDOW_BYTES));
        assert!(!was_plain && header.unwrap_err().contains("DuplicateKey"));
    }
}

#[test]
fn a_source_that_fails_in_the_middle_fails_the_same_way() {
    struct Failing(BytesSource, u64);
    impl ReadAt for Failing {
        fn len_bytes(&self) -> u64 {
            self.0.len_bytes()
        }
        fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            if offset + out.len() as u64 > self.1 {
                return Err(std::io::Error::other("the disk is gone"));
            }
            self.0.read_exact_at(offset, out)
        }
    }
    let text = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    for good in 0..8 + text.len() as u64 {
        let source = Failing(file(text.as_bytes(), 2), good);
        for room in ROOMS {
            let (found, _) = read(&source, &Limits::default(), Some(room));
            assert!(
                found.unwrap_err().contains("the disk is gone"),
                "{good} good bytes, window of {room}"
            );
        }
    }
}

#[test]
fn indexes_read_quickly_are_those_of_the_reader() {
    let limits = Limits::default();
    let any = |text: &[u8]| {
        Index::parse_any("i", "i", text, &limits).map_err(|error: Error| format!("{error:?}"))
    };
    let mut numbers = Numbers(7);
    let (mut n_plain, mut n_refused) = (0, 0);
    for case in 0..N_CASES / 3 {
        let (comma, colon) = [(",", ":"), (",\n    ", ": ")][numbers.below(2)];
        let mut entries: Vec<String> = (0..numbers.below(6))
            .map(|i| {
                let shard = ["1.safetensors", "2.safetensors", "../3.safetensors"]
                    [numbers.below(12) / 5 % 3];
                format!("\"{}{i}\"{colon}\"{shard}\"", numbers.pick(NAMES))
            })
            .collect();
        if numbers.below(2) == 0 {
            entries.sort();
        }
        let metadata = numbers.pick(&[
            "{}",
            "{\"total_size\":12}",
            "{\"x\":\"y\",\"total_size\": 7}",
            "{\"total_size\":1.5}",
            "null",
        ]);
        let mut parts = [
            format!("\"metadata\"{colon}{metadata}"),
            format!("\"weight_map\"{colon}{{{}}}", entries.join(comma)),
        ];
        parts.rotate_left(numbers.below(2));
        let mut text = format!("{{{}}}", parts.join(comma)).into_bytes();
        for _ in 0..case % 3 {
            mutate(&mut text, &mut numbers);
        }
        let expected = any(&text);
        n_refused += usize::from(expected.is_err());
        let source = BytesSource(text.clone().into());
        for room in ROOMS {
            let Some(plain) = super::index(&source, &limits, room).unwrap() else {
                continue;
            };
            n_plain += 1;
            // What the reader refuses here are names of shards, which the quick way does not look at.
            match &expected {
                Ok(index) => assert_eq!(
                    (&index.weight_map, index.total_size),
                    (&plain.weight_map, plain.total_size)
                ),
                Err(error) => assert!(
                    error.starts_with("FileName"),
                    "{error}: {:?}",
                    String::from_utf8_lossy(&text)
                ),
            }
        }
        let found = Index::parse("i", "i", &text, &limits).map_err(|error| format!("{error:?}"));
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(&text));
    }
    assert!(
        n_plain > N_CASES / 8 && n_refused > N_CASES / 15,
        "{n_plain} plain, {n_refused} refused"
    );
}
