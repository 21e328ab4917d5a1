//! The import table of the workspace: who may know whom (`docs/architecture.md`).

use toml::Table;

use crate::Outcome;
use crate::process::{files, read};
use crate::rust_source::{Source, has_word, is_rust};

/// What one crate may use.
struct Row {
    /// Folder below `crates/`.
    folder: &'static str,
    /// Crates of ours that it may depend on.
    ours: &'static [&'static str],
    /// Crates of others that it may depend on. Tests may use more.
    others: &'static [&'static str],
    /// Paths that its code must not mention, with the reason.
    never: &'static [(&'static str, &'static str)],
}

const NO_FILE: (&str, &str) = ("std::fs", "bytes come through container's ReadAt");
const NO_THREAD: (&str, &str) = (
    "std::thread",
    "threads belong to rewrite::stream, the audit runner and the leaves",
);
const NO_ENVIRONMENT: (&str, &str) = ("std::env", "options are arguments");
const NO_CLOCK: (&str, &str) = ("Instant", "clocks belong to the leaves");
const NO_WALL_CLOCK: (&str, &str) = ("SystemTime::now", "clocks belong to the leaves");

const TABLE: &[Row] = &[
    Row {
        folder: "kernels",
        ours: &[],
        others: &["half"],
        never: &[
            NO_FILE,
            NO_THREAD,
            NO_ENVIRONMENT,
            NO_CLOCK,
            NO_WALL_CLOCK,
            ("std::io", "kernels see slices only"),
        ],
    },
    Row {
        folder: "container",
        ours: &[],
        others: &[
            "blake3",
            "bytemuck",
            "memmap2",
            "rustix",
            "serde_json",
            "thiserror",
        ],
        never: &[NO_THREAD, NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "schemes",
        ours: &["container", "kernels"],
        others: &[
            "fancy-regex",
            "globset",
            "half",
            "serde",
            "serde_json",
            "thiserror",
        ],
        never: &[NO_FILE, NO_THREAD, NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "quantize",
        ours: &["schemes", "kernels"],
        // Factors of second moments on rayon's pool (style.md: threads inside a quantizer's linear algebra).
        others: &["half", "rayon", "thiserror"],
        never: &[NO_FILE, NO_THREAD, NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "rewrite",
        ours: &["quantize", "schemes", "kernels", "container"],
        others: &[
            "blake3",
            "rayon",
            "rustix",
            "serde",
            "serde_json",
            "thiserror",
        ],
        never: &[NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "audit",
        ours: &["schemes", "kernels", "container"],
        others: &["rayon", "serde_json", "thiserror"],
        never: &[NO_FILE, NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "safequant",
        ours: &[
            "audit",
            "rewrite",
            "quantize",
            "schemes",
            "kernels",
            "container",
        ],
        // What public views are made of: element types, arrays, and the cast between them. Whole tensors on rayon's pool.
        others: &[
            "bytemuck",
            "float8",
            "half",
            "ndarray",
            "rayon",
            // Recipes: YAML, and values as JSON has them.
            "saphyr-parser",
            "serde_json",
            "thiserror",
        ],
        never: &[NO_FILE, NO_THREAD, NO_ENVIRONMENT, NO_CLOCK, NO_WALL_CLOCK],
    },
    Row {
        folder: "cli",
        ours: &["safequant"],
        others: &[
            "clap",
            "clap_complete",
            "indicatif",
            "rustix",
            "serde_json",
            "signal-hook",
        ],
        never: &[],
    },
    Row {
        folder: "python",
        // The command line for `python -m safequant` (docs/adr/0010-python.md).
        ours: &["safequant", "cli"],
        // The parser of regular expressions for its features alone (see the manifest).
        others: &["pyo3", "rayon", "regex-syntax"],
        never: &[],
    },
];

/// Compares every crate with its row.
pub(crate) fn check() -> Outcome {
    let names = files()?;
    let mut faults = Vec::new();
    let mut crates = 0;
    let mut sources = 0;
    for manifest in names
        .iter()
        .filter(|n| n.starts_with("crates/") && n.ends_with("/Cargo.toml"))
    {
        let folder = manifest
            .trim_start_matches("crates/")
            .trim_end_matches("/Cargo.toml");
        let Some(row) = TABLE.iter().find(|row| row.folder == folder) else {
            faults.push(format!(
                "{manifest}: the crate has no row in xtask/src/imports.rs"
            ));
            continue;
        };
        crates += 1;
        check_manifest(row, manifest, &mut faults)?;
        let prefix = format!("crates/{folder}/src/");
        for name in names
            .iter()
            .filter(|n| n.starts_with(&prefix) && is_rust(n))
        {
            sources += 1;
            check_source(row, name, &Source::parse(name, &read(name)?), &mut faults);
        }
    }
    if crates != TABLE.len() {
        faults.push(format!(
            "{crates} crates found, {} rows in the import table",
            TABLE.len()
        ));
    }
    println!("import table: {crates} crates, {sources} sources");
    crate::check::verdict(&faults)
}

fn check_manifest(row: &Row, manifest: &str, faults: &mut Vec<String>) -> Outcome {
    let table: Table = read(manifest)?
        .parse()
        .map_err(|e| format!("{manifest}: {e}"))?;
    let mut names: Vec<(String, bool)> = Vec::new();
    let mut collect = |table: &Table| {
        for (section, is_test) in [
            ("dependencies", false),
            ("build-dependencies", false),
            ("dev-dependencies", true),
        ] {
            let entries = table.get(section).and_then(toml::Value::as_table);
            names.extend(
                entries
                    .into_iter()
                    .flat_map(Table::keys)
                    .map(|k| (k.clone(), is_test)),
            );
        }
    };
    collect(&table);
    for target in table
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(Table::values)
    {
        target.as_table().into_iter().for_each(&mut collect);
    }
    for (name, is_test) in names {
        let ours = name
            .strip_prefix("safequant-")
            .or((name == "safequant").then_some("safequant"));
        match ours {
            Some("test-support") if is_test => {}
            Some(role) if !row.ours.contains(&role) => {
                faults.push(format!("{manifest}: must not import {name}"));
            }
            None if !is_test && !row.others.contains(&name.as_str()) => {
                faults.push(format!(
                    "{manifest}: {name} is not in the crate's row of xtask/src/imports.rs"
                ));
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

fn check_source(row: &Row, name: &str, source: &Source, faults: &mut Vec<String>) {
    let sibling = name
        .split_once("/conventions/")
        .and_then(|(_, rest)| rest.split_once('/'))
        .map(|(own, _)| own);
    for (at, line) in source.code.iter().enumerate() {
        for (path, why) in row.never.iter().filter(|(path, _)| mentions(line, path)) {
            faults.push(format!(
                "{name}:{}: {path} in {}: {why}",
                at + 1,
                row.folder
            ));
        }
        if let Some(own) = sibling {
            check_convention(own, name, at + 1, line, faults);
        }
        if row.folder == "kernels"
            && !name.ends_with("/backend.rs")
            && !name.contains("/arch/")
            && mentions(line, "crate::arch")
        {
            faults.push(format!(
                "{name}:{}: arch is reached only through backend.rs",
                at + 1
            ));
        }
    }
}

/// A convention imports no other convention and runs no kernel.
fn check_convention(
    own: &str,
    name: &str,
    line_number: usize,
    line: &str,
    faults: &mut Vec<String>,
) {
    if let Some((_, rest)) = line.split_once("crate::conventions::") {
        let other: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if other != own && !other.is_empty() {
            faults.push(format!(
                "{name}:{line_number}: a convention imports no other convention ({other})"
            ));
        }
    }
    for path in [
        "safequant_kernels::Backend",
        "safequant_kernels::portable",
        "safequant_kernels::packing",
        "crate::decode",
        "crate::encode",
    ] {
        if mentions(line, path) {
            faults.push(format!(
                "{name}:{line_number}: a convention never computes ({path})"
            ));
        }
    }
}

fn mentions(line: &str, path: &str) -> bool {
    has_word(line, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_path_is_a_fault_with_its_line() {
        let text = "fn a() {}\nuse std::fs::File;\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        let mut faults = Vec::new();
        let name = "crates/schemes/src/x.rs";
        check_source(&TABLE[2], name, &Source::parse(name, text), &mut faults);
        assert_eq!(
            faults,
            [
                "crates/schemes/src/x.rs:2: std::fs in schemes: bytes come through container's ReadAt"
            ]
        );
    }

    #[test]
    fn a_convention_may_name_itself_but_no_other() {
        let mut faults = Vec::new();
        let name = "crates/schemes/src/conventions/gptq/mod.rs";
        let text = "use crate::conventions::gptq::config;\nuse crate::conventions::fp8::config;\n";
        check_source(&TABLE[2], name, &Source::parse(name, text), &mut faults);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(":2:"));
    }
}
