//! `cargo xtask interop`: what we write, read by the field's own libraries.

use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::process::{command, run as run_command, run_and_show_later};
use crate::{python, testing, wheel};

/// Readers that `--all` adds, each in an environment of its own; the flag of `run.py` that names its interpreter, and its
/// requirements.
const HEAVY: [(&str, &str); 8] = [
    ("--mlx", "interop/requirements-mlx.txt"),
    ("--bitsandbytes", "interop/requirements-bitsandbytes.txt"),
    ("--hqq", "interop/requirements-hqq.txt"),
    ("--quanto", "interop/requirements-quanto.txt"),
    ("--torchao", "interop/requirements-torchao.txt"),
    ("--modelopt", "interop/requirements-modelopt.txt"),
    ("--comfyui", "interop/requirements-comfyui.txt"),
    ("--gguf", "interop/requirements-gguf.txt"),
];

/// Makes the environments, builds the program and runs `interop/run.py`.
pub(crate) fn run(args: &[&str]) -> Outcome {
    let mut venv = None;
    let mut passed_on = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--venv" => venv = Some(*rest.next().ok_or("--venv needs a path")?),
            other => passed_on.push(other),
        }
    }
    let python = match venv {
        Some(path) => python::given(path)?,
        None => python::environment("venv-interop", "interop/requirements.txt")?,
    };
    let mut heavy = Vec::new();
    for (flag, requirements) in HEAVY {
        if passed_on.contains(&"--all") && !passed_on.contains(&flag) {
            let folder = format!("venv{}", &flag[1..]);
            heavy.push((flag, python::environment(&folder, requirements)?));
        }
    }
    // The program that the tests built: what others make of our files does not depend on how fast they were written.
    let binary = testing::binary("safequant")?;
    for script in ["interop/check_reports.py", "interop/check_runtimes.py"] {
        run_command(offline(&python).arg(script).arg(&binary))?;
    }
    wheel::install(&python, &wheel::build("dev")?)?;
    wheel::check_types(&python)?;
    let mut tests = wheel::unittest(&python, "crates/python/tests/interop");
    ask_nobody(&mut tests);
    let mut run = offline(&python);
    run.arg("interop/run.py").arg(&binary).args(passed_on);
    for (flag, python) in heavy {
        run.arg(flag).arg(python);
    }
    // Side by side: both are Python, which keeps one core busy and no more for most of the time.
    std::thread::scope(|scope| {
        let tests = scope.spawn(move || run_and_show_later(&mut tests, "interop-tests.log"));
        let compared = run_command(&mut run);
        let tested = tests.join().map_err(|_| "the tests were not run")?;
        tested.and(compared)
    })
}

/// An interpreter that asks nobody on the network and finds no GPU.
fn offline(python: &Path) -> Command {
    let mut command = command(python);
    ask_nobody(&mut command);
    command
}

fn ask_nobody(command: &mut Command) -> &mut Command {
    command
        .env("HF_HUB_OFFLINE", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("PYTHONDONTWRITEBYTECODE", "1")
}
