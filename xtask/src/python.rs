//! Virtual environments below `target/`, made from a pinned requirements file.

use std::path::{Path, PathBuf};

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
    let base = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    run(command(base).args(["-m", "venv", "--clear"]).arg(&place))
        .map_err(|e| format!("{e}; Python 3.11 or later with the venv module is needed (PYTHON names another interpreter)"))?;
    run(command(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        requirements,
    ]))?;
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    Ok(python)
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
