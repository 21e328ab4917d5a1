//! Running other programs, and where things are.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// The repository's root.
///
/// # Panics
/// Never: the folder that the manifest lies in has a parent.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask lies one folder below the root")
        .to_owned()
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, or `target`.
pub fn target_dir() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root().join(given.unwrap_or_else(|| PathBuf::from("target")))
}

/// A command in the root.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with our standard streams.
///
/// # Errors
/// If it cannot be run or does not succeed.
pub fn run(command: &mut Command) -> Outcome {
    let shown = describe(command);
    println!("$ {shown}");
    let status = command
        .status()
        .map_err(|e| format!("cannot run `{shown}`: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{shown}` ended with {status}"))
    }
}

/// Runs a command beside others: what it prints goes to a file below the target directory, and is shown when it has ended.
///
/// # Errors
/// If it cannot be run or does not succeed, or the file cannot be written.
pub fn run_and_show_later(command: &mut Command, log: &str) -> Outcome {
    let path = target_dir().join(log);
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = File::create(&path).map_err(failed)?;
    let errors = file.try_clone().map_err(failed)?;
    println!(
        "(shown when it has ended, until then in {})",
        path.display()
    );
    let outcome = run(command.stdout(file).stderr(errors));
    println!(
        "$ {}\n{}",
        describe(command),
        String::from_utf8_lossy(&std::fs::read(&path).map_err(failed)?)
    );
    outcome
}

/// Runs a command, shows its standard output and gives back its lines too, with whether it succeeded.
///
/// # Errors
/// If it cannot be run, or read from.
///
/// # Panics
/// Never: standard output is piped.
pub fn run_and_read(command: &mut Command) -> Result<(Vec<String>, bool), String> {
    let shown = describe(command);
    println!("$ {shown}");
    let spawned = command.stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|e| format!("cannot run `{shown}`: {e}"))?;
    let stdout = child
        .stdout
        .take()
        .expect("standard output was piped above");
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|e| format!("cannot read from `{shown}`: {e}"))?;
        println!("{line}");
        lines.push(line);
    }
    let status = child
        .wait()
        .map_err(|e| format!("cannot wait for `{shown}`: {e}"))?;
    Ok((lines, status.success()))
}

/// Whether a program answers to `--version`.
pub fn is_installed(program: &str, args: &[&str]) -> bool {
    let mut command = command(program);
    command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

/// What git tracks or would track, relative to the root, sorted; empty folders do not count.
///
/// # Errors
/// If git cannot be run or refuses, or a name is not UTF-8.
pub fn files() -> Result<Vec<String>, String> {
    let mut git = command("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = git.output().map_err(|e| format!("cannot run git: {e}"))?;
    if !output.status.success() {
        return Err("`git ls-files` failed: the tasks need a git checkout".to_owned());
    }
    let text = String::from_utf8(output.stdout).map_err(|_| "a file name is not UTF-8")?;
    let mut names: Vec<String> = text
        .split('\0')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect();
    names.retain(|name| root().join(name).is_file());
    names.sort();
    names.dedup();
    Ok(names)
}

/// A file of the repository as text.
///
/// # Errors
/// If it cannot be read as UTF-8.
pub fn read(name: &str) -> Result<String, String> {
    std::fs::read_to_string(root().join(name)).map_err(|e| format!("{name}: {e}"))
}
