//! specs/cli/exit-status.md, from outside.

use std::fs;
use std::process::Stdio;

use crate::support::{Ran, command, run, with_header, workplace};

#[test]
fn usage_errors_are_4_and_answers_are_0() {
    let workplace = workplace();
    let cases = [
        ("safequant", 4),
        ("safequant frobnicate", 4),
        ("safequant inspect", 4),
        ("safequant inspect model --frobnicate", 4),
        ("safequant inspect model --filter re:(", 4),
        ("safequant quantize model", 4),
        ("safequant quantize model -o out", 4),
        ("safequant quantize model -o out --scheme W5A99", 4),
        (
            "safequant quantize model -o out --scheme W4A16 --convention gguf",
            4,
        ),
        (
            "safequant quantize model -o out --scheme FP8 --convention gptq",
            4,
        ),
        (
            "safequant quantize model -o out --scheme FP8_BLOCK --group-size 64",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --group-size 0",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --memory 0",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --memory 1XB",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --threads 0",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --ignore re:[",
            4,
        ),
        (
            "safequant quantize model -o out --scheme W4A16 --resume --force",
            4,
        ),
        ("safequant dequantize model -o out --dtype f8", 4),
        ("safequant completions tcsh", 4),
        ("safequant --help", 0),
        ("safequant --version", 0),
        ("safequant quantize -h", 0),
    ];
    for (line, status) in cases {
        let ran = run(workplace.path(), line).expect(status);
        let (said, silent) = if status == 0 {
            (&ran.stdout, &ran.stderr)
        } else {
            (&ran.stderr, &ran.stdout)
        };
        assert!(!said.is_empty() && silent.is_empty(), "{line}");
    }
    assert!(!workplace.path().join("out").exists());
}

#[test]
fn a_wrong_scheme_gets_a_suggestion_and_the_list() {
    let workplace = workplace();
    let ran = run(
        workplace.path(),
        "safequant quantize model -o out --scheme W4A61",
    )
    .expect(4);
    assert!(
        ran.stderr.contains("W4A16_ASYM") && ran.stderr.contains("similar"),
        "{}",
        ran.stderr
    );
    run(
        workplace.path(),
        "safequant quantize model -o out --scheme w4a16 --dry-run",
    )
    .expect(0);
}

#[test]
fn garbage_is_2_and_says_so_in_one_line() {
    let workplace = workplace();
    let path = workplace.path();
    let files: [(&str, Vec<u8>); 9] = [
        ("empty.safetensors", vec![]),
        ("zeros.safetensors", vec![0; 4096]),
        ("short.safetensors", b"1234567".to_vec()),
        ("huge.safetensors", u64::MAX.to_le_bytes().repeat(4)),
        (
            "text.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
        ),
        ("zip.safetensors", b"PK\x03\x04 not a checkpoint".to_vec()),
        (
            "deep.safetensors",
            with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), b""),
        ),
        (
            "range.safetensors",
            with_header(
                r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#,
                b"",
            ),
        ),
        (
            "noise.safetensors",
            (0..4096u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect(),
        ),
    ];
    fs::create_dir(path.join("nothing")).unwrap();
    for (name, bytes) in &files {
        fs::write(path.join(name), bytes).unwrap();
    }
    let names = files.iter().map(|(name, _)| *name).chain(["nothing"]);
    let mut n_run = 0;
    for name in names {
        for line in [
            format!("safequant inspect {name}"),
            format!("safequant inspect {name} --json"),
            format!("safequant dequantize {name} -o out"),
            format!("safequant quantize {name} -o out --scheme W4A16 --dry-run"),
        ] {
            let ran = run(path, &line).expect(2);
            assert!(ran.stderr.starts_with("error: "), "{line}: {}", ran.stderr);
            assert_eq!(ran.stderr.lines().count(), 1, "{line}: {}", ran.stderr);
            assert!(ran.stderr.contains(name), "{line}: {}", ran.stderr);
            n_run += 1;
        }
    }
    assert_eq!(n_run, 40);
    assert!(!path.join("out").exists());
}

#[test]
fn the_environment_is_3_and_a_refusal_4() {
    let workplace = workplace();
    let path = workplace.path();
    let ran = run(path, "safequant inspect missing").expect(3);
    assert!(ran.stderr.starts_with("error: missing: "), "{}", ran.stderr);
    fs::create_dir(path.join("taken")).unwrap();
    fs::write(path.join("taken/file"), "precious").unwrap();
    let ran = run(path, "safequant quantize model -o taken --scheme W4A16").expect(4);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(fs::read(path.join("taken/file")).unwrap(), b"precious");
    run(
        path,
        "safequant quantize model -o model --scheme W4A16 --force",
    )
    .expect(4);
    run(
        path,
        "safequant quantize model -o no/such/place --scheme W4A16",
    )
    .expect(3);
}

#[test]
fn a_closed_standard_output_is_quiet() {
    let workplace = workplace();
    for line in [
        &["inspect", "model", "--tensors"][..],
        &["quantize", "--help"],
        &["completions", "bash"],
    ] {
        let mut command = command(workplace.path());
        let mut child = command
            .args(line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ran = Ran::new(line.join(" "), &child.wait_with_output().unwrap()).expect(0);
        assert_eq!(ran.stderr, "");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_3() {
    let workplace = workplace();
    for line in [
        &["inspect", "model"][..],
        &["inspect", "model", "--json"],
        &["quantize", "--help"],
        &["completions", "zsh"],
    ] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = command(workplace.path())
            .args(line)
            .stdout(full)
            .output()
            .unwrap();
        let ran = Ran::new(line.join(" "), &output).expect(3);
        assert!(
            ran.stderr.starts_with("error: standard output: "),
            "{}",
            ran.stderr
        );
    }
}
