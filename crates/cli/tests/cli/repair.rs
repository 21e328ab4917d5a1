//! `repair` from outside: what it shows, what it refuses, and that a dry run writes nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{names, run, tree, workplace};

/// The tiny Llama in a folder `wrong`: quantized, with a list that leaves one quantized module dense.
fn wrong(directory: &Path) {
    let line = "safequant quantize model -o wrong --scheme W8A16 --quiet";
    run(directory, line).expect(0);
    let path = directory.join("wrong/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let list = &mut config["quantization_config"]["ignore"];
    let module = "model.layers.1.mlp.up_proj";
    list.as_array_mut().unwrap().push(json!(module));
    fs::write(path, format!("{config:#}\n")).unwrap();
}

#[test]
fn a_dry_run_shows_the_lines_that_change_and_writes_nothing() {
    let workplace = workplace();
    wrong(workplace.path());
    let before = tree(workplace.path());
    let line = "safequant repair wrong -o right --rule QC010 --dry-run";
    let shown = run(workplace.path(), line).expect(0).stdout;
    assert!(
        shown.contains("- ") && shown.contains("\"model.layers.1.mlp.up_proj\""),
        "{shown}"
    );
    assert!(
        shown.contains("link") && shown.contains("dry run"),
        "{shown}"
    );
    assert_eq!(tree(workplace.path()), before);
}

#[test]
fn what_is_repaired_audits_clean() {
    let workplace = workplace();
    wrong(workplace.path());
    let audit = "safequant audit wrong --select QC010 --fail-on error";
    run(workplace.path(), audit).expect(1);
    let before = tree(&workplace.path().join("wrong"));
    let line = "safequant repair wrong -o right --rule QC010,QC011 --json";
    let record = run(workplace.path(), line).expect(0).json();
    assert_eq!(record["dry_run"], json!(false));
    assert_eq!(record["documents"][0]["name"], json!("config.json"));
    run(workplace.path(), "safequant audit right --fail-on error").expect(0);
    assert_eq!(tree(&workplace.path().join("wrong")), before);
    assert_eq!(names(workplace.path()), ["model", "right", "wrong"]);
    run(workplace.path(), line).expect(4);
    run(workplace.path(), &format!("{line} --force --copy")).expect(0);
}

#[test]
fn what_cannot_be_repaired_is_refused_with_the_reason() {
    let workplace = workplace();
    for (rule, said) in [
        ("SC010", "never changes weights"),
        ("scale-not-finite", "never changes weights"),
        ("TP", "where the checkpoint is wanted"),
        ("XY999", "no audit rule"),
        ("IX005", "nothing to repair"),
    ] {
        let line = format!("safequant repair model -o fixed --rule {rule}");
        let ran = run(workplace.path(), &line).expect(4);
        assert!(ran.stderr.contains(said), "{rule}: {}", ran.stderr);
    }
    assert_eq!(names(workplace.path()), ["model"]);
}

#[test]
fn a_single_file_gets_a_new_header_and_the_same_data() {
    let workplace = workplace();
    let line = "safequant repair model/model.safetensors -o fixed.safetensors --rule ST021";
    run(workplace.path(), line).expect(0);
    let (old, new) = ("model/model.safetensors", "fixed.safetensors");
    let data = |name: &str| {
        let bytes = fs::read(workplace.path().join(name)).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let start = 8 + usize::try_from(len).unwrap();
        (bytes[8..start].to_vec(), bytes[start..].to_vec())
    };
    let ((_, old), (header, new)) = (data(old), data(new));
    assert!(old == new);
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header["__metadata__"], json!({ "format": "pt" }));
    assert_eq!(names(workplace.path()), ["fixed.safetensors", "model"]);
}
