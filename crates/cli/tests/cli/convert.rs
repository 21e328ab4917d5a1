//! `convert` from outside: labels, refusals, and the way back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

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

/// The tensors of a safetensors file by name, as dtype, shape and bytes; and its metadata.
fn contents(file: &Path) -> (BTreeMap<String, (String, Vec<u8>)>, Value) {
    let bytes = fs::read(file).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
    let (header, data) = rest.split_at(length);
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let metadata = header.remove("__metadata__").unwrap_or_default();
    let tensor = |(name, entry): (String, Value)| {
        let at = |i: usize| usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap();
        let about = format!("{} {}", entry["dtype"], entry["shape"]);
        (name, (about, data[at(0)..at(1)].to_vec()))
    };
    (header.into_iter().map(tensor).collect(), metadata)
}

/// `ComfyUI` knows a file by its markers alone: nothing stands in the metadata, and no document beside it.
#[test]
fn a_single_file_for_comfyui_describes_itself() {
    let workplace = workplace();
    let path = workplace.path();
    let line = "safequant quantize model/model.safetensors -o out.safetensors --scheme NVFP4";
    let refused = run(path, line).expect(4);
    assert!(
        refused.stderr.contains("--convention comfyui"),
        "{}",
        refused.stderr
    );
    run(path, &format!("{line} --convention comfyui --quiet")).expect(0);
    let (tensors, metadata) = contents(&path.join("out.safetensors"));
    assert_eq!(metadata["quantization_config"], Value::Null);
    let markers = tensors.keys().filter(|name| name.ends_with(".comfy_quant"));
    assert!(markers.count() > 5);
    run(
        path,
        "safequant convert out.safetensors -o same.safetensors --to comfyui --quiet",
    )
    .expect(0);
    assert!(tensors == contents(&path.join("same.safetensors")).0);
    for line in [
        "quantize model -o there --scheme NVFP4 --convention comfyui",
        "convert there -o far --to modelopt",
        "convert far -o home --to comfyui",
    ] {
        run(path, &format!("safequant {line} --quiet")).expect(0);
    }
    assert!(weights(path, "there") == weights(path, "home"));
    let config = |folder: &str| fs::read(path.join(folder).join("config.json")).unwrap();
    assert!(config("home") == config("model"));
}

/// Old scaled FP8 of `ComfyUI` is described by one tensor for the whole file, which no weight owns.
#[test]
fn what_describes_a_whole_file_stays_where_every_weight_does() {
    let workplace = workplace();
    let path = workplace.path();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/comfyui/scaled-fp8");
    fs::copy(root.join("model.safetensors"), path.join("old.safetensors")).unwrap();
    run(
        path,
        "safequant convert old.safetensors -o same.safetensors --to comfyui --quiet",
    )
    .expect(0);
    let (tensors, _) = contents(&path.join("same.safetensors"));
    assert!(tensors.contains_key("scaled_fp8"));
    assert!(tensors == contents(&path.join("old.safetensors")).0);
    let line =
        "safequant convert old.safetensors -o part.safetensors --to comfyui --ignore '*mlp.0'";
    let refused = run(path, line).expect(4);
    assert!(
        refused.stderr.contains("the whole file"),
        "{}",
        refused.stderr
    );
}
