//! Hostile names and floods: nothing but text reaches the terminal, and not too much of it.

use std::fs;

use crate::support::{Tensor, bf16, hostile_characters, names, run, safetensors};

/// Names as an attacker would choose them.
fn hostile_tensors() -> Vec<Tensor> {
    let names = [
        "\u{1b}]52;c;ZXZpbA==\u{7}.weight".to_owned(),
        "\u{1b}[31mred\u{1b}[0m\r\nerror: forged.weight".to_owned(),
        "a\u{202e}thgiew.b\u{2066}.weight".to_owned(),
        "c1\u{9b}31m\u{85}.weight".to_owned(),
        "del\u{7f}nul\u{0}.weight".to_owned(),
        "<script>alert(1)</script>.weight".to_owned(),
        "../../etc/passwd".to_owned(),
        format!("{}.weight", "long\u{1b}".repeat(400_000)),
        String::new(),
    ];
    names.iter().map(|name| bf16(name, &[128, 128])).collect()
}

#[test]
fn names_are_escaped_and_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(
        path.join("evil.safetensors"),
        safetensors(&hostile_tensors()),
    )
    .unwrap();
    for line in [
        "safequant inspect evil.safetensors",
        "safequant inspect evil.safetensors --tensors",
        "safequant inspect evil.safetensors --filter '*'",
        "safequant quantize evil.safetensors -o out.safetensors --scheme W8A16 --targets '*' --dry-run",
        "safequant quantize evil.safetensors -o out.safetensors --scheme W8A16 --targets '*'",
    ] {
        let ran = run(path, line);
        for text in [&ran.stdout, &ran.stderr] {
            assert_eq!(hostile_characters(text), "", "{line}");
            assert!(!text.contains("\nerror: forged"), "{line}");
            assert!(text.len() < 1 << 20, "{line}: {} bytes", text.len());
            assert!(text.lines().all(|l| l.chars().count() < 3000), "{line}");
        }
        assert!(
            matches!(ran.status, Some(0 | 2 | 4)),
            "{line}: {:?}",
            ran.status
        );
    }
    assert!(!names(path).iter().any(|name| name == "passwd"));
}

#[test]
fn json_is_escaped_and_lossless() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("evil.safetensors"),
        safetensors(&hostile_tensors()),
    )
    .unwrap();
    let ran = run(
        directory.path(),
        "safequant inspect evil.safetensors --tensors --json",
    )
    .expect(0);
    assert_eq!(hostile_characters(&ran.stdout), "");
    let record = ran.json();
    let mut listed: Vec<_> = record["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    let mut expected: Vec<_> = hostile_tensors()
        .into_iter()
        .map(|tensor| tensor.name)
        .collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[test]
fn what_was_typed_is_escaped_too() {
    let directory = tempfile::tempdir().unwrap();
    for line in [
        "safequant inspect \u{1b}[31m\u{202e}",
        "safequant \u{1b}]0;x\u{7}",
        "safequant inspect x --filter re:(\u{9b}",
    ] {
        let ran = run(directory.path(), line);
        assert_eq!(hostile_characters(&ran.stderr), "", "{line}");
    }
}

#[test]
fn a_hundred_thousand_tensors_stay_readable() {
    let directory = tempfile::tempdir().unwrap();
    let tensor = |layer: u64, expert: u64| Tensor {
        name: format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"),
        dtype: "BF16",
        shape: vec![2, 2],
        bytes: vec![0; 8],
    };
    let tensors: Vec<_> = (0..100_000).map(|i| tensor(i / 1000, i % 1000)).collect();
    fs::write(
        directory.path().join("big.safetensors"),
        safetensors(&tensors),
    )
    .unwrap();
    let ran = run(directory.path(), "safequant inspect big.safetensors").expect(0);
    assert!(ran.stdout.lines().count() < 40, "{}", ran.stdout);
    let row = "model.layers.{0..99}.mlp.experts.{0..999}.up_proj.weight";
    assert!(
        ran.stdout.contains(row) && ran.stdout.contains("100,000"),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_flood_of_different_names_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..5000).map(|i| bf16(&format!("name{i}"), &[1])).collect();
    fs::write(
        directory.path().join("flood.safetensors"),
        safetensors(&tensors),
    )
    .unwrap();
    let ran = run(directory.path(), "safequant inspect flood.safetensors").expect(0);
    assert!(
        ran.stdout.lines().count() < 240,
        "{} lines",
        ran.stdout.lines().count()
    );
    assert!(ran.stdout.contains("and 4800 more"), "{}", ran.stdout);
}
