//! The profiles themselves, and how strict their reader is.

use std::collections::BTreeSet;

use safequant_schemes::CONVENTIONS;

use super::*;

/// Codes that lines may name besides ggml's block types: every spelling that [`traits::codes`] gives.
const CODES: &[&str] = &[
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "e4m3",
    "e5m2",
    "e4m3fnuz",
    "e5m2fnuz",
    "e2m3",
    "e3m2",
    "e2m1",
    "nf4",
    "bnbfp4",
    "iq4nl",
    "doublede2m1",
    "w4a8",
    "codebook",
    "f32",
    "f16",
    "bf16",
];

#[test]
fn every_profile_loads() {
    let mut n_lines = 0;
    for (name, text) in FILES {
        let profile = load(name, text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(*name, format!("{}.json", profile.runtime));
        n_lines += profile.lines.len();
        for line in &profile.lines {
            check_line(name, line);
        }
    }
    println!("{} profiles, {n_lines} lines", FILES.len());
    assert!(n_lines > 8 * CONVENTIONS.len() / 4, "{n_lines} lines");
}

fn check_line(name: &str, line: &Line) {
    let is_thread = |s: &str| {
        let number = s.split_once('#').map(|(_, number)| number);
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_file = |s: &str| {
        let parts = s.split_once('@').and_then(|(_, rest)| rest.split_once(':'));
        parts.is_some_and(|(revision, path)| !revision.is_empty() && !path.is_empty())
    };
    let source = line.source.as_str();
    assert!(
        source.contains('/') && (is_thread(source) || is_file(source)),
        "{name}: {source:?} is no source"
    );
    for id in &line.conventions {
        let is_ours = CONVENTIONS.iter().any(|c| c.id() == id);
        assert!(is_ours, "{name}: {id} is no convention");
    }
    let limited: &[String] = if let Limit::Codes(codes) = &line.limit {
        codes
    } else {
        &[]
    };
    for code in limited.iter().chain(&line.codes) {
        let is_block = safequant_kernels::BlockFormat::from_name(code).is_some();
        assert!(is_block || CODES.contains(&code.as_str()), "{name}: {code}");
    }
    if let Limit::ScaleDtypes(dtypes) | Limit::ModelDtypes(dtypes) = &line.limit {
        for dtype in dtypes {
            let is_dtype = safequant_container::Dtype::from_name(dtype).is_some();
            assert!(is_dtype, "{name}: {dtype}");
        }
    }
}

#[test]
fn every_profile_answers_for_every_convention_once() {
    for profile in profiles() {
        for convention in CONVENTIONS {
            let lines = profile.lines.iter().filter(|line| {
                matches!(line.limit, Limit::Loads(_))
                    && line.conventions.iter().any(|id| id == convention.id())
            });
            assert_eq!(lines.count(), 1, "{}: {}", profile.runtime, convention.id());
        }
    }
}

#[test]
fn names_are_unique_and_found() {
    let mut seen = BTreeSet::new();
    for profile in profiles() {
        let range = (profile.runtime.as_str(), profile.versions.from.as_str());
        assert!(seen.insert(range), "{range:?} twice");
        assert_eq!(
            super::profile(&profile.runtime).map(|p| &p.runtime),
            Some(&profile.runtime)
        );
        let versioned = format!("{}@{}", profile.runtime, profile.versions.from);
        assert_eq!(super::profile(&versioned), Some(profile));
    }
    assert_eq!(seen.len(), 8);
    assert_eq!(super::profile("no-such-runtime"), None);
    assert_eq!(super::profile("vllm@0.1"), None);
}

#[test]
fn the_reader_is_strict() {
    let line = r#"{"for": ["gptq"], "loads": true, "source": "a/b@1:c"}"#;
    let file = |head: &str, line: &str| {
        format!(r#"{{"runtime": "r", "title": "R", "from": "1"{head}, "lines": [{line}]}}"#)
    };
    assert!(load("r", &file("", line)).is_ok());
    let cases = [
        (file(r#", "color": 1"#, line), "\"color\" is not known"),
        (file("", r#"{"loads": true}"#), "source is missing"),
        (
            file("", r#"{"loads": true, "source": " "}"#),
            "a text is empty",
        ),
        (file("", r#"{"source": "a/b@1:c"}"#), "no limit"),
        (
            file("", r#"{"loads": true, "codes": [], "source": "a/b@1:c"}"#),
            "a second limit",
        ),
        (
            file("", r#"{"out_multiple": 0, "source": "a/b@1:c"}"#),
            "multiple of 0",
        ),
        (
            file("", r#"{"dense": ["head"], "source": "a/b@1:c"}"#),
            "no part of a model",
        ),
        (
            file(
                "",
                r#"{"loads": true, "effect": "bad", "source": "a/b@1:c"}"#,
            ),
            "no effect",
        ),
        (
            file("", r#"{"config": {"key": "x"}, "source": "a/b@1:c"}"#),
            "neither refuses",
        ),
        ("{".to_owned(), "EOF"),
    ];
    for (text, problem) in cases {
        let error = load("r", &text).unwrap_err().to_string();
        assert!(error.contains(problem), "{error} lacks {problem}");
    }
}

#[test]
fn versions_are_compared_number_by_number() {
    let versions = Versions {
        from: "0.9.2".to_owned(),
        before: Some("0.10".to_owned()),
    };
    assert!(versions.holds("0.9.2") && versions.holds("v0.9.12"));
    assert!(!versions.holds("0.9.1") && !versions.holds("0.10.0"));
}
