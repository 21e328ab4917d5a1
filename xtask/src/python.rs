//! Virtual environments below `target/`, made from a pinned requirements file.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::process::{command, read, run, target_dir};

/// The interpreter of a virtual environment with these requirements; made on first use, kept while the file is the same.
pub(crate) fn environment(folder: &str, requirements: &str) -> Result<PathBuf, String> {
    let place = target_dir().join(folder);
    let python = place.join("bin").join("python");
    let stamp = place.join("requirements.stamp");
    let wanted = read(requirements)?;
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    make(&place)?;
    install(&python, |pip| pip.args(["-r", requirements]))?;
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    Ok(python)
}

/// The interpreter of a virtual environment that is made anew, with requirements and packages.
pub(crate) fn fresh(
    folder: &str,
    requirements: &str,
    packages: &[&Path],
) -> Result<PathBuf, String> {
    let place = target_dir().join(folder);
    let python = place.join("bin").join("python");
    make(&place)?;
    install(&python, |pip| pip.args(["-r", requirements]))?;
    install(&python, |pip| pip.arg("--no-deps").args(packages))?;
    Ok(python)
}

fn make(place: &Path) -> Outcome {
    let base = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    run(command(base).args(["-m", "venv", "--clear"]).arg(place))
        .map_err(|e| format!("{e}; Python 3.11 or later with the venv module is needed (PYTHON names another interpreter)"))
}

fn install(python: &Path, what: impl FnOnce(&mut Command) -> &mut Command) -> Outcome {
    let mut pip = command(python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    run(what(&mut pip))
}

/// The interpreter of an environment that somebody else made.
pub(crate) fn given(venv: &str) -> Result<PathBuf, String> {
    let python = Path::new(venv).join("bin").join("python");
    if python.exists() {
        Ok(python)
    } else {
        Err(format!("{}: no interpreter there", python.display()))
    }
}
