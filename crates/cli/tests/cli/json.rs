//! What `--json` prints, against the schemas in `specs/cli`.

use std::fs;

use crate::schema::check;
use crate::support::{bf16, root, run, safetensors, workplace};

fn is_of_the_checkpoint(name: &std::ffi::OsStr) -> bool {
    let name = name.to_str().unwrap();
    name.starts_with("model") || name.ends_with("config.json")
}

#[test]
fn inspect_follows_its_schema() {
    let workplace = workplace();
    let path = workplace.path();
    let scales = [bf16("a.weight", &[4]), bf16("b.weight", &[4])];
    fs::create_dir(path.join("odd")).unwrap();
    fs::write(path.join("odd/model.safetensors"), safetensors(&scales)).unwrap();
    fs::write(
        path.join("odd/config.json"),
        r#"{"quantization_config":{"quant_method":"awq","bits":4}}"#,
    )
    .unwrap();
    let fixtures = root().join("fixtures");
    let mut sources = vec![
        path.join("model"),
        path.join("model/model.safetensors"),
        path.join("odd"),
    ];
    // The expectations that lie beside a fixture are no part of the checkpoint.
    let mut n = 0;
    for producer in ["llm-compressor", "gptqmodel", "transformers"] {
        for entry in fs::read_dir(fixtures.join(producer)).unwrap() {
            let (from, to) = (entry.unwrap().path(), path.join(format!("fixture{n}")));
            fs::create_dir(&to).unwrap();
            let files = fs::read_dir(from).unwrap().map(|file| file.unwrap());
            for file in files.filter(|file| is_of_the_checkpoint(&file.file_name())) {
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
            if to.join("config.json").exists() {
                sources.push(to);
                n += 1;
            } else {
                fs::remove_dir_all(to).unwrap();
            }
        }
    }
    let mut quantized = 0;
    for source in &sources {
        let line = format!("safequant inspect {} --json --tensors", source.display());
        let ran = run(path, &line);
        assert!(matches!(ran.status, Some(0 | 2)), "{line}: {}", ran.stderr);
        let record = ran.json();
        check("inspect.schema.json", &record);
        quantized += u32::from(record["totals"]["quantized"]["count"].as_u64() > Some(0));
        let tensors = record["tensors"].as_array().unwrap();
        let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(bytes), record["totals"]["bytes"].as_u64(), "{line}");
        let groups = record["groups"].as_array().unwrap();
        let bytes: u64 = groups.iter().map(|g| g["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(bytes), record["totals"]["bytes"].as_u64(), "{line}");
    }
    assert!(
        sources.len() > 30 && quantized > 30,
        "{quantized} of {} sources are quantized",
        sources.len()
    );
}

#[test]
fn an_unsupported_convention_is_inspected_as_a_container() {
    let workplace = workplace();
    let path = workplace.path();
    let config = r#"{"quantization_config":{"quant_method":"no-such-method","bits":4}}"#;
    fs::write(path.join("model/config.json"), config).unwrap();
    let ran = run(path, "safequant inspect model").expect(0);
    assert!(ran.stdout.contains("no-such-method"), "{}", ran.stdout);
    let record = run(path, "safequant inspect model --json").expect(0).json();
    check("inspect.schema.json", &record);
    assert_eq!(record["error"]["group"], "unsupported", "{record:#}");
    assert!(record["totals"]["parameters"].is_null());
    assert_eq!(record["totals"]["tensors"], 21);
    run(path, "safequant dequantize model -o out").expect(2);
}

#[test]
fn plans_summaries_and_errors_follow_their_schemas() {
    let workplace = workplace();
    let path = workplace.path();
    let line = "safequant quantize model -o q --scheme W4A16 --json --quiet";
    check(
        "plan.schema.json",
        &run(path, &format!("{line} --dry-run")).expect(0).json(),
    );
    check("summary.schema.json", &run(path, line).expect(0).json());
    let back = "safequant dequantize q -o back --json --quiet";
    check(
        "plan.schema.json",
        &run(path, &format!("{back} --dry-run")).expect(0).json(),
    );
    check("summary.schema.json", &run(path, back).expect(0).json());
    for (line, status, code) in [
        ("safequant inspect missing --json", 3, "io"),
        (
            "safequant quantize model -o q --scheme W4A16 --json",
            4,
            "destination_exists",
        ),
        (
            "safequant quantize model -o r --scheme FP8 --group-size 8 --json",
            4,
            "usage",
        ),
        (
            "safequant quantize model -o r --scheme FP8 --targets nothing --json",
            4,
            "nothing_selected",
        ),
        (
            "safequant quantize model -o r --scheme W4A16 --memory 1kB --json",
            4,
            "memory_too_small",
        ),
        (
            "safequant dequantize model -o r --json",
            2,
            "nothing_quantized",
        ),
    ] {
        let record = run(path, line).expect(status).json();
        check("error.schema.json", &record);
        assert_eq!(record["error"]["code"], code, "{line}");
    }
}
