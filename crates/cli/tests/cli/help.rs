//! The help texts, and that what they say can be run.

use crate::support::{command, run, workplace, write_calibration};

/// In an order in which each finds what the ones before it made. Those of `repair` need a spoilt model: `repair.rs` runs it.
const VERBS: [&str; 11] = [
    "inspect",
    "explain",
    "quantize",
    "refine",
    "dequantize",
    "convert",
    "audit",
    "tp-plan",
    "diff",
    "bench",
    "completions",
];

fn examples(help: &str) -> Vec<String> {
    let after = help.split("Examples:\n").nth(1).expect("help has examples");
    let lines = after
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty());
    lines
        .filter(|line| line.starts_with("safequant "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_example_of_every_verb_runs() {
    let workplace = workplace();
    write_calibration(&workplace.path().join("inputs.safetensors"));
    let mut n_run = 0;
    for verb in VERBS {
        let help = run(workplace.path(), &format!("safequant {verb} --help")).expect(0);
        let examples = examples(&help.stdout);
        assert!(
            (3..=5).contains(&examples.len()),
            "{verb} has {} examples",
            examples.len()
        );
        for example in examples {
            let ran = run(workplace.path(), &example).expect(0);
            assert!(!ran.stdout.is_empty(), "{example} printed nothing");
            n_run += 1;
        }
    }
    assert_eq!(n_run, 40);
}

#[test]
fn the_examples_of_the_program_run() {
    let workplace = workplace();
    let help = run(workplace.path(), "safequant --help").expect(0);
    let examples = examples(&help.stdout);
    assert_eq!(examples.len(), 5);
    for example in examples {
        run(workplace.path(), &example).expect(0);
    }
}

#[test]
fn help_lists_what_the_registries_hold() {
    let workplace = workplace();
    let help = run(workplace.path(), "safequant quantize --help")
        .expect(0)
        .stdout;
    for word in [
        "W4A16_ASYM",
        "FP8_BLOCK",
        "compressed-tensors",
        "gptq",
        "rtn",
        "auto",
        "refine",
        "min-pivot",
        "1GiB",
        "5GB",
    ] {
        assert!(help.contains(word), "{word} is missing from\n{help}");
    }
    let top = run(workplace.path(), "safequant --help").expect(0).stdout;
    for status in 0..=4 {
        assert!(
            top.contains(&format!("\n  {status}  ")),
            "status {status} is not explained"
        );
    }
}

#[test]
fn color_is_for_terminals_unless_it_is_asked_for() {
    let workplace = workplace();
    let plain = run(workplace.path(), "safequant inspect model").expect(0);
    assert!(!plain.stdout.contains('\u{1b}'));
    let colored = run(workplace.path(), "safequant inspect model --color always").expect(0);
    assert!(colored.stdout.contains('\u{1b}'));
    let mut command = command(workplace.path());
    let output = command
        .args(["inspect", "model"])
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    assert_eq!(output.stdout, plain.stdout.as_bytes());
}
