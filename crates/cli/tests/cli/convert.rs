//! `convert` from outside: labels, refusals, and the way back.

use std::fs;
use std::path::Path;

use crate::schema::check;
use crate::support::{run, workplace};

fn weights(path: &Path, folder: &str) -> Vec<u8> {
    fs::read(path.join(folder).join("model.safetensors")).unwrap()
}

#[test]
fn exact_conversions_come_back_to_the_same_files() {
    let workplace = workplace();
    let path = workplace.path();
    let quantize = "safequant quantize model -o gptq --scheme W4A16 --convention gptq --quiet";
    run(path, quantize).expect(0);
    for (line, label) in [
        ("gptq -o awq --to awq", "exact"),
        ("awq -o ct --to compressed-tensors", "exact"),
        ("ct -o mlx --to mlx", "exact"),
        ("mlx -o home --to gptq", "exact"),
    ] {
        let line = format!("safequant convert {line} --json --quiet");
        let plan = run(path, &format!("{line} --dry-run")).expect(0).json();
        check("plan.schema.json", &plan);
        let summary = run(path, &line).expect(0).json();
        check("summary.schema.json", &summary);
        for record in [&plan, &summary] {
            let modules = record["modules"].as_array().unwrap();
            let converted = modules.iter().filter(|m| m["action"] == "convert");
            assert!(converted.clone().all(|m| m["label"] == label), "{line}");
            assert!(converted.count() > 5, "{line}");
        }
    }
    assert!(weights(path, "gptq") == weights(path, "home"));
}

/// A workplace with `model` and what it is quantized to.
fn quantized() -> tempfile::TempDir {
    let workplace = workplace();
    let line = "safequant quantize model -o model-w4a16 --scheme W4A16 --quiet";
    run(workplace.path(), line).expect(0);
    workplace
}

#[test]
fn what_is_of_the_convention_already_keeps_its_bytes_and_documents() {
    let workplace = quantized();
    let path = workplace.path();
    run(
        path,
        "safequant convert model-w4a16 -o same --to compressed-tensors --quiet",
    )
    .expect(0);
    assert!(weights(path, "model-w4a16") == weights(path, "same"));
    let config = |folder: &str| fs::read(path.join(folder).join("config.json")).unwrap();
    assert!(config("model-w4a16") == config("same"));
}

#[test]
fn codes_that_would_change_are_refused_before_anything_is_written() {
    let workplace = quantized();
    let path = workplace.path();
    let line = "safequant convert model-w4a16 -o fp8 --to fp8 --quiet";
    let refused = run(path, line).expect(4);
    for word in ["--allow-lossy", "E4M3", "down_proj"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    assert!(!path.join("fp8").exists());
    let code = run(path, &format!("{line} --json")).expect(4).json();
    assert_eq!(code["error"]["code"], "would_lose", "{code}");
    let summary = run(path, &format!("{line} --allow-lossy --json"))
        .expect(0)
        .json();
    let modules = summary["modules"].as_array().unwrap();
    assert!(modules.iter().any(|m| m["label"] == "lossy"));
    let dense = run(path, "safequant convert model -o x --to fp8 --quiet").expect(2);
    assert!(dense.stderr.contains("nothing"), "{}", dense.stderr);
}
