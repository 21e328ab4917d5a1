//! Hostile files by name: each has its condition, and none has a verdict of its own.

use safequant_container::{Error, ErrorGroup, Header, Limits, ReadAt};

use crate::peer::{Verdict, file, judge, read};

const OK: &str = "";

fn entry(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{}}}"#, entry(dtype, shape, offsets))
}

/// Two U8 tensors, each given as shape, space, offsets.
fn two(a: &str, b: &str) -> String {
    let entry = |text: &str| {
        let (shape, offsets) = text.split_once(' ').unwrap();
        entry("U8", shape, offsets)
    };
    format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b))
}

fn extra(field: &str) -> String {
    format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],{field}}}}}"#)
}

fn with_metadata(metadata: &str) -> String {
    format!(
        r#"{{"__metadata__":{metadata},"a":{}}}"#,
        entry("U8", "[1]", "[0,1]")
    )
}

fn nested(depth: usize) -> String {
    extra(&format!(
        r#""x":{}{}"#,
        "[".repeat(depth),
        "]".repeat(depth)
    ))
}

/// Name, bytes, expected code; `OK` where the file is valid.
#[expect(clippy::too_many_lines, reason = "one table")]
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let u8_1 = || one("U8", "[1]", "[0,1]");
    let mut length_word = u64::MAX.to_le_bytes().to_vec();
    length_word.resize(100, b' ');
    vec![
        // Length word.
        ("empty file", vec![], "container_too_small"),
        ("seven bytes", vec![0; 7], "container_too_small"),
        ("eight zeros", vec![0; 8], "container_json"),
        ("length 2^64 - 1", length_word, "container_header_too_large"),
        (
            "length 10^8 + 1 in a small file",
            100_000_001_u64.to_le_bytes().to_vec(),
            "container_header_too_large",
        ),
        (
            "length 10^8 in a small file",
            100_000_000_u64.to_le_bytes().to_vec(),
            "container_header_beyond_file",
        ),
        (
            "length one too many",
            [3_u64.to_le_bytes().as_slice(), b"{}"].concat(),
            "container_header_beyond_file",
        ),
        // Other files.
        (
            "git lfs pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(),
            "container_foreign_format",
        ),
        (
            "gguf",
            b"GGUF\x03\0\0\0\0\0\0\0".to_vec(),
            "container_foreign_format",
        ),
        (
            "zip, with a small length word",
            b"PK\x03\x04\0\0\0\0\0\0\0\0".to_vec(),
            "container_foreign_format",
        ),
        (
            "pickle",
            b"\x80\x02}q\0(X\x01\0\0\0a".to_vec(),
            "container_foreign_format",
        ),
        (
            "html",
            b"\n<!DOCTYPE html><html></html>".to_vec(),
            "container_foreign_format",
        ),
        (
            "json error",
            b"{\"error\":\"Repository not found\"}".to_vec(),
            "container_foreign_format",
        ),
        // Valid oddities.
        ("no tensor", file("{}", 0), OK),
        ("whitespace around", file(" \t\r\n{} \t\r\n", 0), OK),
        ("scalar", file(one("F64", "[]", "[0,8]"), 8), OK),
        ("zero dimension", file(one("F64", "[3,0]", "[0,0]"), 0), OK),
        ("F4 of 2 x 3", file(one("F4", "[2,3]", "[0,3]"), 3), OK),
        (
            "unaligned F64",
            file(
                format!(
                    r#"{{"a":{},"b":{}}}"#,
                    entry("U8", "[1]", "[0,1]"),
                    entry("F64", "[1]", "[1,9]")
                ),
                9,
            ),
            OK,
        ),
        (
            "name with NUL, path and emoji",
            file(
                r#"{"../\u0000\ud83d\ude00":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            OK,
        ),
        (
            "empty name",
            file(r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1),
            OK,
        ),
        (
            "unknown field",
            file(extra(r#""x":{"y":[1,null,"z"]}"#), 1),
            OK,
        ),
        ("metadata null", file(with_metadata("null"), 1), OK),
        ("metadata empty", file(with_metadata("{}"), 1), OK),
        (
            "escaped field names",
            file(
                r#"{"a":{"\u0064type":"\u00558","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            OK,
        ),
        (
            "rank 100",
            file(one("U8", &format!("{:?}", [1; 100]), "[0,1]"), 1),
            OK,
        ),
        (
            "zero times huge",
            file(one("U8", "[0,18446744073709551615,4294967296]", "[0,0]"), 0),
            OK,
        ),
        (
            "zero-size tensor listed after one of the same begin",
            file(two("[2] [0,2]", "[0] [0,0]"), 2),
            OK,
        ),
        ("out of order", file(two("[2] [1,3]", "[1] [0,1]"), 3), OK),
        // The rows of safetensors-core.md, section 8.
        ("trailing byte", file(u8_1(), 2), "container_trailing"),
        (
            "hole",
            file(two("[1] [0,1]", "[1] [2,3]"), 3),
            "container_hole",
        ),
        (
            "hole at the start",
            file(one("U8", "[1]", "[1,2]"), 2),
            "container_hole",
        ),
        (
            "overlap",
            file(two("[2] [0,2]", "[2] [1,3]"), 3),
            "container_overlap",
        ),
        (
            "alias",
            file(two("[1] [0,1]", "[1] [0,1]"), 1),
            "container_overlap",
        ),
        (
            "duplicate name",
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "container_duplicate_key",
        ),
        (
            "duplicate name, escaped",
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "container_duplicate_key",
        ),
        (
            "truncated data",
            file(one("U8", "[2]", "[0,2]"), 1),
            "container_truncated",
        ),
        (
            "size is not dtype x shape",
            file(one("U8", "[1]", "[0,2]"), 2),
            "container_size_mismatch",
        ),
        (
            "size product wraps (MLX)",
            file(one("F32", "[4611686018427387905]", "[0,4]"), 4),
            "container_size_overflow",
        ),
        (
            "bits overflow before bytes do",
            file(one("U8", "[2305843009213693952]", "[0,0]"), 0),
            "container_size_overflow",
        ),
        (
            "huge times zero",
            file(one("U8", "[4294967296,4294967296,0]", "[0,0]"), 0),
            "container_size_overflow",
        ),
        ("NUL padding", file("{}\0\0", 0), "container_json"),
        ("byte order mark", file("\u{feff}{}", 0), "container_json"),
        (
            "invalid UTF-8",
            file(b"{\"\xff\":1}", 0),
            "container_not_utf8",
        ),
        (
            "metadata value is a number",
            file(with_metadata(r#"{"a":1}"#), 1),
            "container_metadata",
        ),
        (
            "metadata value is null",
            file(with_metadata(r#"{"a":null}"#), 1),
            "container_metadata",
        ),
        (
            "metadata is a list",
            file(with_metadata("[]"), 1),
            "container_metadata",
        ),
        (
            "metadata twice",
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
            "container_duplicate_key",
        ),
        (
            "metadata key twice",
            file(with_metadata(r#"{"a":"1","a":"2"}"#), 1),
            "container_duplicate_key",
        ),
        (
            "duplicate field",
            file(extra(r#""dtype":"U8""#), 1),
            "container_duplicate_key",
        ),
        (
            "duplicate unknown field",
            file(extra(r#""x":1,"x":2"#), 1),
            "container_duplicate_key",
        ),
        (
            "duplicate deep in an unknown field",
            file(extra(r#""x":[{"y":1,"y":2}]"#), 1),
            "container_duplicate_key",
        ),
        ("nesting of 127", file(nested(125), 1), OK),
        (
            "nesting of 128",
            file(nested(126), 1),
            "container_json_depth",
        ),
        (
            "nesting of a million",
            file(nested(1_000_000), 1),
            "container_json_depth",
        ),
        (
            "1e999999 in an ignored field",
            file(extra(r#""x":1e999999"#), 1),
            "container_json_number",
        ),
        (
            "a digit run that overflows a double",
            file(extra(&format!(r#""x":1{}"#, "0".repeat(309))), 1),
            "container_json_number",
        ),
        (
            "shape 1.0",
            file(one("U8", "[1.0]", "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape 1e0",
            file(one("U8", "[1e0]", "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape true",
            file(one("U8", "[true]", "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape text",
            file(one("U8", r#"["1"]"#, "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape -0",
            file(one("U8", "[-0]", "[0,0]"), 0),
            "container_field",
        ),
        (
            "shape 01",
            file(one("U8", "[01]", "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape 2^64",
            file(one("U8", "[18446744073709551616]", "[0,1]"), 1),
            "container_field",
        ),
        (
            "shape null",
            file(one("U8", "null", "[0,1]"), 1),
            "container_field",
        ),
        (
            "offset -0",
            file(one("U8", "[1]", "[-0,1]"), 1),
            "container_field",
        ),
        (
            "one offset",
            file(one("U8", "[1]", "[0]"), 1),
            "container_field",
        ),
        (
            "three offsets",
            file(one("U8", "[1]", "[0,1,1]"), 1),
            "container_field",
        ),
        (
            "lone surrogate in a name",
            file(
                r#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "container_json",
        ),
        (
            "entry as array",
            file(r#"{"a":["U8",[1],[0,1]]}"#, 1),
            "container_field",
        ),
        (
            "dtype as object",
            file(
                r#"{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "container_field",
        ),
        (
            "unknown dtype",
            file(one("F8_E4M3FN", "[1]", "[0,1]"), 1),
            "container_unknown_dtype",
        ),
        (
            "dtype in lower case",
            file(one("u8", "[1]", "[0,1]"), 1),
            "container_unknown_dtype",
        ),
        // And more.
        (
            "end before begin",
            file(two("[1] [0,1]", "[1] [1,0]"), 1),
            "container_offsets_reversed",
        ),
        (
            "offsets past 2^63",
            file(
                one("U8", "[0]", "[18446744073709551615,18446744073709551615]"),
                0,
            ),
            "container_hole",
        ),
        (
            "size that no file has",
            file(
                one("U8", "[2305843009213693951]", "[0,2305843009213693951]"),
                0,
            ),
            "container_truncated",
        ),
        (
            "F4 of 3",
            file(one("F4", "[3]", "[0,1]"), 1),
            "container_fractional_bytes",
        ),
        (
            "F4 scalar",
            file(one("F4", "[]", "[0,1]"), 1),
            "container_fractional_bytes",
        ),
        (
            "field missing",
            file(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 0),
            "container_field_missing",
        ),
        (
            "field in capitals",
            file(
                r#"{"a":{"Dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "container_field_missing",
        ),
        ("entry null", file(r#"{"a":null}"#, 0), "container_field"),
        ("top is a list", file("[]", 0), "container_json"),
        ("two documents", file("{}{}", 0), "container_json"),
        ("trailing comma", file(r#"{"a":1,}"#, 0), "container_field"),
        ("comment", file("{/**/}", 0), "container_json"),
        (
            "raw control character in a name",
            file("{\"\u{1}\":1}", 0),
            "container_json",
        ),
        ("unterminated string", file("{\"a", 0), "container_json"),
        (
            "half an escape at the end",
            file("{\"\\u00", 0),
            "container_json",
        ),
    ]
}

#[test]
fn every_hostile_file_has_its_condition_and_the_official_verdict() {
    let cases = cases();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    for (name, bytes, expected) in &cases {
        let outcome = read(bytes);
        let code = outcome.as_ref().map_or_else(Error::code, |_| OK);
        assert_eq!(code, *expected, "{name}: {outcome:?}");
        match judge(bytes) {
            Verdict::BothAccept => assert_eq!(code, OK, "{name}"),
            Verdict::BothRefuse => assert_ne!(code, OK, "{name}"),
            Verdict::DuplicateKey => assert_eq!(code, "container_duplicate_key", "{name}"),
            Verdict::EntryNotObject | Verdict::DtypeNotString => {
                assert_eq!(code, "container_field", "{name}");
            }
        }
        if let Err(error) = outcome {
            let message = error.to_string();
            assert!(message.starts_with("file: "), "{name}: {message}");
            assert!(
                message.len() < 600 && !message.contains(char::is_control),
                "{name}: {message}"
            );
            assert_ne!(error.group(), ErrorGroup::Io, "{name}");
        }
    }
}

/// A header of spaces around `{}` and nothing else, without holding it in memory.
struct Spaces(u64);

impl ReadAt for Spaces {
    fn len_bytes(&self) -> u64 {
        8 + self.0
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let head = [&self.0.to_le_bytes()[..], b"{}"].concat();
        for (byte, position) in out.iter_mut().zip(offset..) {
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            *byte = head.get(position).copied().unwrap_or(b' ');
        }
        Ok(())
    }
}

#[test]
fn a_header_of_exactly_the_cap_is_read_and_one_more_byte_is_not() {
    let header = Header::read(&Spaces(100_000_000), "x", &Limits::default()).unwrap();
    assert_eq!(header.data_start(), 100_000_008);
    let error = Header::read(&Spaces(100_000_001), "x", &Limits::default()).unwrap_err();
    assert_eq!(
        (error.code(), error.group()),
        ("container_header_too_large", ErrorGroup::Limit)
    );
    let limits = Limits {
        max_header_bytes: 10,
        ..Limits::default()
    };
    assert!(Header::read(&Spaces(11), "x", &limits).is_err());
}

/// A source whose every read fails, and which must not be asked for more than the length word.
struct Liar(u64);

impl ReadAt for Liar {
    fn len_bytes(&self) -> u64 {
        self.0
    }

    fn read_exact_at(&self, _offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        assert!(out.len() <= 64, "{} bytes were asked for", out.len());
        out.fill(0x01);
        Ok(())
    }
}

#[test]
fn nothing_is_allocated_from_a_declared_length() {
    for len in [8, 100, 1 << 40, u64::MAX] {
        assert!(
            Header::read(
                &Liar(len),
                "x",
                &Limits {
                    max_header_bytes: u64::MAX,
                    ..Limits::default()
                }
            )
            .is_err()
        );
    }
}
