//! `diff` from outside: exit statuses, what is named, and the schema.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::schema::check;
use crate::support::{Ran, run, safetensors, tiny_llama, workplace};

/// A workplace with `model`, what it is quantized to, and the same in another convention.
fn places() -> tempfile::TempDir {
    let places = workplace();
    for line in [
        "quantize model -o ct --scheme W4A16",
        "convert ct -o gptq --to gptq",
    ] {
        run(places.path(), &format!("safequant {line} --quiet")).expect(0);
    }
    places
}

/// Runs a comparison as JSON and holds it to its schema.
fn json(path: &Path, line: &str, status: i32) -> Value {
    let record = run(path, &format!("safequant diff {line} --json"));
    let record = record.expect(status).json();
    check("diff.schema.json", &record);
    record
}

fn says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
}

#[test]
fn a_checkpoint_is_equal_to_itself_in_every_respect() {
    let places = places();
    for folder in ["model", "ct", "gptq"] {
        let record = json(places.path(), &format!("{folder} {folder}"), 0);
        assert_eq!(record["equal"], true);
        assert_eq!(record["weights"], Value::Array(Vec::new()));
        assert_eq!(record["totals"]["weights"], 21);
        let ran = run(places.path(), &format!("safequant diff {folder} {folder}")).expect(0);
        says(&ran, &["no differences", "\nequal\n"]);
    }
}

#[test]
fn a_conversion_differs_in_structure_and_documents_alone() {
    let places = places();
    let path = places.path();
    let record = json(path, "ct gptq", 1);
    let differs = &record["differs"];
    assert_eq!(
        (&differs["structure"], &differs["config"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&differs["codes"], &differs["values"]),
        (&false.into(), &false.into())
    );
    let totals = &record["totals"];
    assert!(totals["codes"].as_u64() > Some(100_000));
    assert_eq!(
        (&totals["codes_flipped"], &totals["scales_differ"]),
        (&0.into(), &0.into())
    );
    let changes = record["weights"][0]["changes"].as_array().unwrap();
    assert_eq!(changes[0]["what"], "convention");
    let paths = record["documents"][0]["values"].as_array().unwrap();
    assert!(
        paths
            .iter()
            .any(|v| v["path"] == "quantization_config.quant_method")
    );
    let ran = run(path, "safequant diff ct gptq").expect(1);
    says(
        &ran,
        &[
            "0 of",
            "compressed-tensors -> gptq",
            "are equal",
            "\ndifferent\n",
        ],
    );
    json(path, "ct gptq --level codes,values", 0);
    json(path, "ct gptq --level structure", 1);
    let none = json(
        path,
        "ct gptq --level structure,codes --filter 'no such thing'",
        1,
    );
    assert_eq!(
        (&none["totals"]["weights"], &none["differs"]["codes"]),
        (&0.into(), &false.into())
    );
}

#[test]
fn one_number_is_found_and_named() {
    let places = places();
    let path = places.path();
    let mut tensors = tiny_llama();
    let one = tensors
        .iter_mut()
        .find(|t| t.name.ends_with("1.mlp.up_proj.weight"));
    // A sign.
    one.unwrap().bytes[2 * (3 * 256 + 5) + 1] ^= 0x80;
    fs::create_dir(path.join("changed")).unwrap();
    fs::write(
        path.join("changed/model.safetensors"),
        safetensors(&tensors),
    )
    .unwrap();
    let config = fs::read_to_string(path.join("model/config.json")).unwrap();
    let config = config.replace("256", "512");
    fs::write(path.join("changed/config.json"), config).unwrap();
    let record = json(path, "model changed", 1);
    let weight = &record["weights"][0];
    assert_eq!(weight["a"]["name"], "model.layers.1.mlp.up_proj.weight");
    assert_eq!(weight["values"]["differ"], 1);
    assert_eq!(weight["values"]["first"], serde_json::json!([3, 5]));
    assert!(weight["values"]["relative_l2"].as_f64() > Some(0.0));
    assert_eq!(record["weights"].as_array().unwrap().len(), 1);
    let documents = record["documents"].as_array().unwrap();
    let of_config = documents
        .iter()
        .find(|d| d["name"] == "config.json")
        .unwrap();
    assert_eq!(of_config["values"][0]["path"], "hidden_size");
    assert_eq!(of_config["values"][0]["b"], 512);
    let tokenizer = documents
        .iter()
        .find(|d| d["name"] == "tokenizer.json")
        .unwrap();
    assert_eq!(
        (&tokenizer["in_a"], &tokenizer["in_b"]),
        (&true.into(), &false.into())
    );
    let ran = run(path, "safequant diff model changed").expect(1);
    says(
        &ran,
        &["hidden_size: 256 -> 512", "1 of 21", "1.mlp.up_proj.weight"],
    );
    json(path, "model changed --level values --filter '*.0.*'", 0);
    json(path, "model changed --level values --tolerance 0.5", 0);
}

#[test]
fn what_a_weight_lost_is_shown() {
    let places = places();
    let path = places.path();
    let record = json(path, "model ct --level codes,values", 1);
    assert_eq!(record["totals"]["codes_not_compared"], 14);
    assert_eq!(record["totals"]["values_differ"], 14);
    let values = &record["weights"][0]["values"];
    assert!(values["sqnr_db"].as_f64() > Some(10.0), "{values}");
    let ran = run(path, "safequant diff model ct").expect(1);
    says(&ran, &["Worst 12 of 14 weights", "SQNR, dB"]);
    json(path, "model ct --level values --tolerance 0.2", 0);
    // 8 bits that are used are no 4 bits, however they are shifted.
    run(
        path,
        "safequant quantize model -o wide --scheme W8A16 --quiet",
    )
    .expect(0);
    for line in ["ct wide", "wide ct"] {
        let record = json(path, &format!("{line} --level codes"), 1);
        assert_eq!(record["totals"]["codes_not_compared"], 14, "{line}");
    }
}

#[test]
fn wrong_input_and_wrong_usage_have_their_own_statuses() {
    let places = places();
    let path = places.path();
    fs::create_dir(path.join("bad")).unwrap();
    fs::write(path.join("bad/model.safetensors"), b"not at all").unwrap();
    run(path, "safequant diff model bad").expect(2);
    run(path, "safequant diff model missing").expect(3);
    run(path, "safequant diff model model --tolerance -1").expect(4);
    run(path, "safequant diff model model --tolerance=-1").expect(4);
    run(path, "safequant diff model model --level everything").expect(4);
    let line = "safequant diff model model --filter re:( --json";
    let record = run(path, line).expect(4).json();
    check("error.schema.json", &record);
}
