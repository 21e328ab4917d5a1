//! `audit` and `explain` from outside: statuses, every form of report, hostile names, baselines.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::schema::check;
use crate::support::{Ran, Tensor, root, run, safetensors, workplace};

/// A name that is markup, a control sequence, a workflow command and the end of a script in one.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{1b}[31m\n::error::</script>\u{202e}&\"'";

/// A checkpoint with an FP8 weight of that name, whose scale is missing.
fn hostile(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let tensor = |name: String, dtype, shape: &[u64], bytes| Tensor {
        name,
        dtype,
        shape: shape.to_vec(),
        bytes,
    };
    let tensors = [
        tensor(
            format!("{HOSTILE}.weight"),
            "F8_E4M3",
            &[2, 2],
            vec![0x38; 4],
        ),
        tensor("ok.weight".to_owned(), "F8_E4M3", &[2, 2], vec![0x38; 4]),
        tensor(
            "ok.weight_scale_inv".to_owned(),
            "F32",
            &[1, 1],
            vec![0, 0, 0x80, 0x3f],
        ),
    ];
    fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
    let config =
        json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn audit(folder: &Path, options: &str) -> Ran {
    run(folder, &format!("safequant audit hostile {options}"))
}

#[test]
fn statuses_follow_findings_and_levels() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    run(path, "safequant audit model").expect(0);
    let found = audit(path, "").expect(1);
    assert!(found.stdout.contains("SC001"), "{}", found.stdout);
    audit(path, "--fail-on never").expect(0);
    audit(path, "--ignore SC001,QT,QC").expect(0);
    audit(path, "--select sc001").expect(1);
    audit(path, "--select XY").expect(4);
    let unknown = audit(path, "--runtime nobody").expect(4);
    assert!(unknown.stderr.contains("vLLM"), "{}", unknown.stderr);
    run(path, "safequant audit nowhere").expect(3);
    run(path, "safequant explain NOPE").expect(4);
    // A file that is cut is a finding, not an end.
    let whole = fs::read(path.join("model/model.safetensors")).unwrap();
    fs::write(path.join("cut.safetensors"), &whole[..whole.len() - 1]).unwrap();
    let cut = run(path, "safequant audit cut.safetensors").expect(1);
    assert!(cut.stdout.contains("ST001"), "{}", cut.stdout);
}

#[test]
fn the_record_follows_its_schema() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    run(
        path,
        "safequant quantize model -o model-w4a16 --scheme W4A16 --quiet",
    )
    .expect(0);
    let lines = [
        ("safequant audit hostile --format json --depth full", 1),
        ("safequant audit model --format json --depth headers", 0),
        (
            "safequant audit model-w4a16 --reference model --depth full --format json",
            0,
        ),
        (
            "safequant audit model-w4a16 --reference model-w4a16 --format json",
            0,
        ),
    ];
    for (line, status) in lines {
        let record = run(path, line).expect(status).json();
        check("audit.schema.json", &record);
    }
    let plan = run(path, "safequant tp-plan model-w4a16 --tp 1,2,3 --json")
        .expect(0)
        .json();
    check("tp-plan.schema.json", &plan);
    assert_eq!(plan["degrees"][0]["works"], true);
    assert_eq!(plan["degrees"][2]["works"], false);
    let loss = run(path, lines[2].0).json();
    let recorded = loss["loss"]["recorded"].as_array().unwrap();
    assert!(
        !recorded.is_empty() && recorded.iter().all(|m| m["method"] == "rtn"),
        "{loss}"
    );
    assert!(
        loss["loss"]["modules"]
            .as_array()
            .is_some_and(|modules| !modules.is_empty())
    );
    assert!(
        loss["loss"]["total"]["sqnr_db"]
            .as_f64()
            .is_some_and(|db| db > 10.0),
        "{loss}"
    );
}

#[test]
fn nothing_hostile_reaches_a_terminal_or_a_page() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    let text = audit(path, "").stdout;
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    let github = audit(path, "--format github").stdout;
    assert!(
        github.lines().all(|line| line.starts_with("::error file=")
            || line.starts_with("::notice file=")
            || line.starts_with("::warning file=")),
        "{github}"
    );
    let page = audit(path, "--format html").stdout;
    let (_, data) = page.split_once("id=\"data\">").unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    assert!(!data.contains(['<', '>', '&']));
    let data: Value = serde_json::from_str(data).unwrap();
    let named = data["findings"].as_array().unwrap().iter();
    assert!(
        named.filter(|f| f["module"] == HOSTILE).count() > 0,
        "the name is whole in the data"
    );
    assert_eq!(page.matches("<script").count(), 2);
    let junit = audit(path, "--format junit").stdout;
    assert!(
        !junit.contains("<img") && junit.ends_with("</testsuites>\n"),
        "{junit}"
    );
}

#[test]
fn sarif_has_what_its_readers_need() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    let record = audit(path, "--format sarif").expect(1).json();
    let sarif = &record["runs"][0];
    assert_eq!(record["version"], "2.1.0");
    let rules = sarif["tool"]["driver"]["rules"].as_array().unwrap();
    let results = sarif["results"].as_array().unwrap();
    assert!(!results.is_empty() && rules.len() > 60);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        let uri = &result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"];
        assert!(uri.as_str().unwrap().starts_with("hostile"), "{uri}");
    }
}

#[test]
fn a_baseline_hides_what_it_knows_and_nothing_else() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    audit(path, "--write-baseline known.json").expect(0);
    let known = audit(path, "--baseline known.json --format json")
        .expect(0)
        .json();
    assert_eq!(known["findings"], json!([]));
    assert!(known["summary"]["known"].as_u64() > Some(0));
    let bytes = fs::read_to_string(path.join("known.json")).unwrap();
    fs::write(path.join("known.json"), bytes.replace("SC001", "SC999")).unwrap();
    audit(path, "--baseline known.json").expect(1);
    fs::write(path.join("known.json"), "[]").unwrap();
    audit(path, "--baseline known.json").expect(4);
    audit(path, "--baseline nowhere.json").expect(3);
}

#[test]
fn a_report_is_written_whole_or_not_at_all() {
    let workplace = workplace();
    let path = workplace.path();
    hostile(&path.join("hostile"));
    let ran = audit(path, "--format sarif -o report.sarif").expect(1);
    assert_eq!(ran.stdout, "");
    let written: Value =
        serde_json::from_slice(&fs::read(path.join("report.sarif")).unwrap()).unwrap();
    assert_eq!(written["version"], "2.1.0");
    audit(path, "-o nowhere/report.txt").expect(3);
    let left = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        left.into_iter()
            .all(|name| !name.to_string_lossy().starts_with('.'))
    );
}

#[test]
fn every_rule_explains_itself() {
    let workplace = workplace();
    let list = run(workplace.path(), "safequant explain").expect(0).stdout;
    let ids: Vec<&str> = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(ids.len() > 60, "{list}");
    for id in ids {
        let text = run(workplace.path(), &format!("safequant explain {id}"))
            .expect(0)
            .stdout;
        assert!(
            text.starts_with(id) && text.contains("What to do"),
            "{text}"
        );
    }
}

/// The defective checkpoints of `fixtures/comfyui-audit`: each is found, where it is broken.
#[test]
fn defective_fixtures_are_found() {
    let mut visited = 0;
    for entry in fs::read_dir(root().join("fixtures/comfyui-audit")).unwrap() {
        let folder = entry.unwrap().path();
        let workplace = workplace();
        let to = workplace.path().join("defective");
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(&folder).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if name != "fixture.json"
                && !name.starts_with("expected")
                && !name.starts_with("source")
                && !name.starts_with("extra")
            {
                fs::copy(file.path(), to.join(name)).unwrap();
            }
        }
        let ran = run(
            workplace.path(),
            "safequant audit defective --depth full --format json --fail-on never",
        );
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let record = ran.json();
        let found = record["findings"].as_array().unwrap().iter();
        let grave = found
            .filter(|f| f["severity"] != "note" && !f["rule"].as_str().unwrap().starts_with("PV"))
            .count();
        assert!(grave > 0, "{name}: {record}");
        visited += 1;
    }
    assert_eq!(visited, 13);
}
