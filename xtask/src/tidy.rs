//! What can be checked by reading the sources: size, `unsafe`, leftovers, machine paths.

use crate::Outcome;
use crate::process::{files, read, root};
use crate::rust_source::{Source, has_word, is_rust};

/// Most lines of non-test code in one file.
const MAX_LINES: usize = 600;

/// Written in pieces, so that this file does not contain what it looks for.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wor", "k/"),
    concat!("/roo", "t/"),
    concat!("/hom", "e/"),
    concat!("/Use", "rs/"),
    concat!("/tmp/ba", "sh_"),
    concat!("artifac", "tory"),
];

const LEFTOVERS: &[(&str, &str)] = &[
    ("todo!", "finish it or leave it out"),
    ("unimplemented!", "finish it or leave it out"),
    ("dbg!", "a debugging leftover"),
];

/// Runs every rule over every file.
pub(crate) fn check() -> Outcome {
    let names = files()?;
    let mut faults = Vec::new();
    let (mut sources, mut texts) = (0, 0);
    for name in &names {
        let bytes = std::fs::read(root().join(name)).map_err(|e| format!("{name}: {e}"))?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        if has_extension(name, &["safetensors", "bin"]) {
            continue;
        }
        texts += 1;
        check_text(name, &text, &mut faults);
        if is_rust(name) {
            sources += 1;
            check_source(name, &Source::parse(name, &text), &mut faults);
        }
    }
    let crates = check_crates(&names, &mut faults)?;
    if sources == 0 || crates == 0 {
        faults.push("nothing was visited".to_owned());
    }
    println!(
        "tidy: {} files, {texts} texts, {sources} Rust sources, {crates} crates",
        names.len()
    );
    crate::check::verdict(&faults)
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, e)| extensions.contains(&e))
}

fn check_text(name: &str, text: &str, faults: &mut Vec<String>) {
    for (at, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
            faults.push(format!(
                "{name}:{}: a machine's own path or host (`{path}`)",
                at + 1
            ));
        }
    }
    if text
        .lines()
        .any(|line| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> "))
    {
        faults.push(format!("{name}: an unresolved merge"));
    }
}

fn check_source(name: &str, source: &Source, faults: &mut Vec<String>) {
    let lines = source.code.len();
    if lines > MAX_LINES {
        faults.push(format!(
            "{name}: {lines} lines of code, at most {MAX_LINES}: split it"
        ));
    }
    for (at, line) in source.all.iter().enumerate() {
        let place = format!("{name}:{}", at + 1);
        if has_word(line, "unsafe") && !may_be_unsafe(name) {
            faults.push(format!(
                "{place}: `unsafe` outside kernels, container/src/mmap.rs and python/src/memory"
            ));
        }
        for (word, why) in LEFTOVERS.iter().filter(|(word, _)| line.contains(word)) {
            faults.push(format!("{place}: `{word}`: {why}"));
        }
        if line.contains("#[ignore") {
            faults.push(format!("{place}: an ignored test is no test"));
        }
        if line.contains("#[test]") && name.starts_with("benches/") && !name.contains("/peers/") {
            faults.push(format!(
                "{place}: `cargo xtask test` leaves out the benches"
            ));
        }
        if line.contains("#[non_exhaustive]") {
            faults.push(format!(
                "{place}: it would force a `_` arm over our own enum"
            ));
        }
    }
    for (at, line) in source.raw.iter().enumerate() {
        let comment = line.split_once("//").map_or("", |(_, c)| c);
        let todo = has_word(comment, concat!("TO", "DO")) && !comment.contains("(#");
        if todo || has_word(comment, concat!("FIX", "ME")) || has_word(comment, concat!("XX", "X"))
        {
            faults.push(format!(
                "{name}:{}: a note without an issue; write `{}(#N)`",
                at + 1,
                concat!("TO", "DO")
            ));
        }
    }
}

fn may_be_unsafe(name: &str) -> bool {
    // A workspace of its own that only benches call: C functions of other libraries.
    if name.starts_with("benches/peers/rust/") {
        return true;
    }
    name.starts_with("crates/kernels/")
        || name == "crates/container/src/mmap.rs"
        || name.starts_with("crates/python/src/memory")
}

/// Each crate has its `clippy.toml` and says in its root what `unsafe` it allows.
fn check_crates(names: &[String], faults: &mut Vec<String>) -> Result<usize, String> {
    let manifests = names
        .iter()
        .filter(|n| n.starts_with("crates/") && n.ends_with("/Cargo.toml"));
    let mut visited = 0;
    for manifest in manifests {
        visited += 1;
        let folder = manifest.trim_end_matches("Cargo.toml");
        if !names.contains(&format!("{folder}clippy.toml")) {
            faults.push(format!("{folder}: no clippy.toml"));
        }
        let roots = ["src/lib.rs", "src/main.rs"].map(|r| format!("{folder}{r}"));
        let Some(top) = roots.iter().find(|r| names.contains(r)) else {
            faults.push(format!("{folder}: neither src/lib.rs nor src/main.rs"));
            continue;
        };
        let wanted: &[&str] = match folder {
            "crates/kernels/" => &[],
            "crates/container/" | "crates/python/" => &["#![deny(unsafe_code)]"],
            _ => &["#![forbid(unsafe_code)]"],
        };
        let text = read(top)?;
        for line in wanted.iter().filter(|line| !text.contains(**line)) {
            faults.push(format!("{top}: lacks `{line}`"));
        }
        if !read(manifest)?.contains("[lints]\nworkspace = true") {
            faults.push(format!("{manifest}: does not take the workspace's lints"));
        }
    }
    Ok(visited)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(name: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        check_text(name, text, &mut faults);
        check_source(name, &Source::parse(name, text), &mut faults);
        faults
    }

    #[test]
    fn every_rule_finds_its_offender() {
        let offenders = [
            "fn a() { unsafe { b() } }\n".to_owned(),
            format!("fn a() {{ {}() }}\n", concat!("unimple", "mented!")),
            format!("{}]\nfn a() {{}}\n", concat!("#[ign", "ore")),
            format!("// see {}x\n", concat!("/wor", "k/")),
            format!("// {}: later\n", concat!("TO", "DO")),
            "fn a() {}\n".repeat(MAX_LINES + 1),
        ];
        for text in offenders {
            assert_eq!(
                faults_of("crates/schemes/src/x.rs", &text).len(),
                1,
                "{text:.80}"
            );
        }
    }

    #[test]
    fn clean_code_has_no_fault() {
        let text = format!(
            "#![forbid(unsafe_code)]\n// {}(#7): a note with its issue\nfn a() {{}}\n",
            concat!("TO", "DO")
        );
        assert!(faults_of("crates/schemes/src/x.rs", &text).is_empty());
    }
}
