//! `cargo xtask interop`: what we write, read by the field's own libraries.

use crate::Outcome;
use crate::process::{command, run as run_command};
use crate::{python, testing};

/// Makes the environment, builds the release binary and runs `interop/run.py`.
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
    let binary = testing::binary("release", &["--release"])?;
    let mut run = command(&python);
    run.env("HF_HUB_OFFLINE", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run_command(run.arg("interop/run.py").arg(&binary).args(passed_on))
}
