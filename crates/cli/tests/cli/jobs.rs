//! `quantize` and `dequantize` as jobs: plan equals run, refusals, interruption.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::schema::check;
use crate::support::{
    Ran, Tensor, command, names, run, safetensors, tree, workplace, write_calibration,
};

/// Names and lengths of the files a record lists.
fn listed(record: &Value) -> Vec<(String, u64)> {
    let files = record["files"].as_array().expect("files");
    let one = |file: &Value| {
        (
            file["name"].as_str().unwrap().to_owned(),
            file["bytes"].as_u64().unwrap(),
        )
    };
    let mut files: Vec<_> = files.iter().map(one).collect();
    files.sort();
    files
}

/// Names and lengths of the files that are there.
fn present(directory: &Path) -> Vec<(String, u64)> {
    let files = tree(directory).into_iter();
    let name = |path: &Path| {
        path.strip_prefix(directory)
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    files
        .map(|(path, bytes)| (name(&path), bytes.len() as u64))
        .collect()
}

#[test]
fn a_dry_run_touches_nothing_and_equals_the_run() {
    let workplace = workplace();
    let path = workplace.path();
    let lines = [
        "safequant quantize model -o out --scheme W4A16 --json --quiet",
        "safequant quantize model -o out --scheme W4A16_ASYM --convention gptq --json --quiet",
        "safequant quantize model -o out --scheme FP8_BLOCK --max-shard-size 200kB --json --quiet",
        "safequant quantize model -o out --scheme W8A8 --ignore 're:.*mlp' --json --quiet",
    ];
    for line in lines {
        let before = tree(path);
        let plan = run(path, &format!("{line} --dry-run")).expect(0).json();
        assert_eq!(tree(path), before, "{line}");
        assert_eq!(names(path), ["model"], "{line}");
        let done = run(path, line).expect(0).json();
        assert_eq!(listed(&plan), listed(&done), "{line}");
        assert_eq!(listed(&plan), present(&path.join("out")), "{line}");
        assert!(
            done["peak_buffer_bytes"].as_u64() <= plan["peak_memory_bytes"].as_u64(),
            "{line}"
        );
        let actions = |record: &Value| {
            let modules = record["modules"].as_array().unwrap();
            modules
                .iter()
                .map(|m| {
                    (
                        m["name"].clone(),
                        m["action"].clone(),
                        m["output_bytes"].clone(),
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(actions(&plan), actions(&done), "{line}");
        fs::remove_dir_all(path.join("out")).unwrap();
    }
}

#[test]
fn there_and_back_keeps_names_and_shapes() {
    let workplace = workplace();
    let path = workplace.path();
    run(path, "safequant quantize model -o q --scheme W8A16").expect(0);
    let back = run(path, "safequant dequantize q -o back --dtype bf16").expect(0);
    assert!(
        back.stdout.contains("dequantize from compressed-tensors"),
        "{}",
        back.stdout
    );
    let tensors = |name: &str| {
        let record = run(path, &format!("safequant inspect {name} --tensors --json"))
            .expect(0)
            .json();
        let tensors = record["tensors"].as_array().unwrap().clone();
        tensors
            .iter()
            .map(|t| (t["name"].clone(), t["dtype"].clone(), t["shape"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(tensors("back"), tensors("model"));
    assert!(path.join("back/tokenizer.json").exists());
}

#[test]
fn statistics_of_inputs_choose_the_method_and_are_what_is_reported() {
    let workplace = workplace();
    let path = workplace.path();
    write_calibration(&path.join("statistics"));
    let line = "safequant quantize model -o q --scheme W4A16 --calibration statistics";
    let plan = run(path, &format!("{line} --dry-run")).expect(0);
    for words in ["quantize to W4A16 by refine", "beside the budget:"] {
        assert!(
            plan.stdout.contains(words),
            "{words} is missing from\n{}",
            plan.stdout
        );
    }
    assert!(
        plan.stderr.contains("--method auto: refine for"),
        "{}",
        plan.stderr
    );
    let record = run(path, &format!("{line} --dry-run --json --quiet"))
        .expect(0)
        .json();
    check("plan.schema.json", &record);
    assert!(record["peak_statistics_bytes"].as_u64() > Some(0));

    let done = run(path, &format!("{line} --effort default --damping 0.02")).expect(0);
    for words in [
        "Worst modules by error of their outputs",
        "output error",
        "%",
        "refine",
    ] {
        assert!(
            done.stdout.contains(words),
            "{words} is missing from\n{}",
            done.stdout
        );
    }
    let record = run(path, &format!("{line} --force --json --quiet"))
        .expect(0)
        .json();
    check("summary.schema.json", &record);
    assert!(record["mean_output_error"].as_f64() > Some(0.0));
    let modules = record["modules"].as_array().unwrap();
    let refined = modules.iter().filter(|m| m["method"] == "refine");
    let mut n_refined = 0;
    for module in refined {
        assert_eq!(module["effort"], "default");
        assert!(module["seconds"].as_f64() > Some(0.0), "{module}");
        assert!(module["output_error"].as_f64() > Some(0.0), "{module}");
        n_refined += 1;
    }
    assert!(n_refined >= 10, "{n_refined} modules");
}

#[test]
fn options_of_methods_that_do_not_go_together_are_usage_errors() {
    let workplace = workplace();
    let path = workplace.path();
    write_calibration(&path.join("statistics"));
    fs::write(
        path.join("r.yaml"),
        "safequant_recipe: 1\ngroups: [{scheme: W4A16}]\n",
    )
    .unwrap();
    fs::write(
        path.join("smooth.yaml"),
        "s_stage: {m_modifiers: {SmoothQuantModifier: {}}}\n",
    )
    .unwrap();
    for (options, words) in [
        ("--scheme W4A16 --method gptq", "--calibration FILE"),
        ("--scheme W4A16 --effort high", "rtn has no effort"),
        (
            "--scheme W4A16 --calibration statistics --damping 7",
            "damping 7",
        ),
        ("--scheme W4A16 --recipe r.yaml", "cannot be used with"),
        ("--scheme W4A16 --target-bpw 4", "--schemes"),
        ("--schemes W4A16,W8A16", "--target-bpw"),
        ("--schemes W4A16,W8A16 --target-bpw -1", "bits per weight"),
        ("--schemes W4A16,W8A16 --target-bpw 3", "cannot be had"),
        ("--recipe smooth.yaml", "SmoothQuantModifier is not covered"),
        ("", "--scheme"),
    ] {
        let line = format!("safequant quantize model -o q {options}");
        let ran = run(path, &line).expect(4);
        assert!(ran.stderr.contains(words), "{line}: {}", ran.stderr);
        assert!(!path.join("q").exists());
    }
}

#[test]
fn a_mixture_is_shown_saved_and_done_again() {
    let workplace = workplace();
    let path = workplace.path();
    let line = "safequant quantize model -o q --target-bpw 6 --schemes W4A16,W8A16";
    let plan = run(path, &format!("{line} --dry-run --save-recipe mixed.json")).expect(0);
    assert!(
        plan.stderr.contains("bits per weight of the"),
        "{}",
        plan.stderr
    );
    for words in ["quantize to W4A16", "quantize to W8A16"] {
        assert!(
            plan.stdout.contains(words),
            "{words} is missing from\n{}",
            plan.stdout
        );
    }
    assert!(!path.join("q").exists());
    run(path, &format!("{line} --dry-run --save-recipe mixed.json")).expect(3);
    run(path, &format!("{line} --quiet")).expect(0);
    run(
        path,
        "safequant quantize model -o again --recipe mixed.json --quiet",
    )
    .expect(0);
    let of = |name: &str| -> Vec<Vec<u8>> {
        tree(&path.join(name))
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect()
    };
    assert!(of("q") == of("again"));
}

#[test]
fn the_summary_names_sizes_and_the_worst_modules() {
    let workplace = workplace();
    let ran = run(
        workplace.path(),
        "safequant quantize model -o q --scheme W4A16",
    )
    .expect(0);
    for words in [
        "quantize to W4A16",
        "bits per weight",
        "Worst modules by SQNR",
        " dB",
        "model.layers.1.",
    ] {
        assert!(
            ran.stdout.contains(words),
            "{words} is missing from\n{}",
            ran.stdout
        );
    }
    assert!(ran.stderr.contains("GB/s"), "{}", ran.stderr);
    let quiet = run(
        workplace.path(),
        "safequant quantize model -o q2 --scheme W4A16 --quiet",
    )
    .expect(0);
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.stdout.replace("q2:", "q:"), ran.stdout);
}

#[test]
fn force_replaces_and_nothing_is_left_behind() {
    let workplace = workplace();
    let path = workplace.path();
    run(path, "safequant quantize model -o out --scheme W4A16").expect(0);
    let first = tree(&path.join("out"));
    run(path, "safequant quantize model -o out --scheme W8A16").expect(4);
    assert_eq!(tree(&path.join("out")), first);
    run(
        path,
        "safequant quantize model -o out --scheme W8A16 --force",
    )
    .expect(0);
    assert_ne!(tree(&path.join("out")), first);
    assert_eq!(names(path), ["model", "out"]);
}

/// 16 linear weights of 8 MB: long enough for a debug build to be interrupted in.
fn write_large_model(path: &Path) {
    let bytes: Vec<u8> = (0..4_000_000u32)
        .flat_map(|i| (0x3c00 | (i % 509) as u16).to_le_bytes())
        .collect();
    let tensor = |i: u32| Tensor {
        name: format!("model.layers.{i}.mlp.up_proj.weight"),
        dtype: "BF16",
        shape: vec![2000, 2000],
        bytes: bytes.clone(),
    };
    fs::create_dir(path).unwrap();
    let tensors: Vec<_> = (0..16).map(tensor).collect();
    fs::write(path.join("model.safetensors"), safetensors(&tensors)).unwrap();
    fs::write(path.join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
}

/// Starts a job, sends it a signal once it reads, and waits for its end.
fn signaled(directory: &Path, args: &[&str], signal: Signal) -> Ran {
    let mut command = command(directory);
    let command = command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("reading ") {
        assert_ne!(
            stderr.read_line(&mut said).unwrap(),
            0,
            "the job ended early: {said}"
        );
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let mut output = child.wait_with_output().unwrap();
    output.stderr = said.into_bytes();
    Ran::new(format!("{} and {signal:?}", args.join(" ")), &output)
}

/// As [`signaled`]; on a busy machine the job may end before it sees the signal, and then it is done again.
fn interrupted(directory: &Path, args: &[&str], signal: Signal) -> Ran {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        let ran = signaled(directory, args, signal);
        if ran.status != Some(0) {
            return ran;
        }
        fs::remove_dir_all(directory.join("out")).unwrap();
    }
    signaled(directory, args, signal)
}

#[test]
fn an_interrupted_job_leaves_no_destination_and_resume_completes_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_large_model(&path.join("large"));
    let args = [
        "quantize",
        "large",
        "-o",
        "out",
        "--scheme",
        "W4A16",
        "--group-size",
        "100",
        "--threads",
        "1",
    ];
    for (signal, kept) in [(Signal::INT, "int"), (Signal::TERM, "term")] {
        let ran = interrupted(path, &args, signal).expect(4);
        assert!(ran.stderr.contains("--resume"), "{}", ran.stderr);
        assert!(!path.join("out").exists(), "{kept}");
        run(path, &format!("safequant {} --resume", args.join(" "))).expect(0);
        fs::rename(path.join("out"), path.join(kept)).unwrap();
    }
    run(path, &format!("safequant {}", args.join(" "))).expect(0);
    let bytes = |name: &str| {
        tree(&path.join(name))
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect::<Vec<_>>()
    };
    assert!(
        bytes("out") == bytes("int") && bytes("out") == bytes("term"),
        "a resumed job differs"
    );
    assert_eq!(names(path), ["int", "large", "out", "term"]);
}
