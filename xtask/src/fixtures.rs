//! `cargo xtask fixtures`: `fixtures/MANIFEST.toml` against the files it lists.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::Outcome;
use crate::process::{files, read, root};

const MANIFEST: &str = "fixtures/MANIFEST.toml";

/// Most bytes that all fixtures together may have.
const MAX_LEN_BYTES: u64 = 60_000_000;

/// What each entry says beside its files.
const FIELDS: &[&str] = &["producer", "versions", "command", "license", "proves"];

const HEAD: &str = "\
# Where every file under fixtures/ comes from: one entry per folder, every file with its sha256.
#
# `cargo xtask fixtures` verifies it. `cargo xtask fixtures --update` recomputes the digests, keeps what is written here,
# and takes the entry of a new folder from its fixture.json; what it cannot know it leaves empty, to be filled in by hand.
# Folders under fixtures/tools/ hold our own scripts and are not listed.
";

/// Every folder with the files directly in it, and the digest of each: `{folder: {file: sha256}}`.
type Folders = BTreeMap<String, BTreeMap<String, String>>;

/// One folder of fixtures.
#[derive(Clone, Default)]
struct Entry {
    fields: BTreeMap<String, String>,
    digests: BTreeMap<String, String>,
}

/// Verifies the manifest, or rewrites its digests.
pub(crate) fn run(args: &[&str]) -> Outcome {
    match args {
        [] => verify(),
        ["--update"] => update(),
        _ => Err(format!("fixtures: unexpected arguments {args:?}")),
    }
}

/// What lies under `fixtures/`, and its total length in bytes.
fn on_disk() -> Result<(Folders, u64), String> {
    let mut folders = Folders::new();
    let mut total = 0;
    for name in files()? {
        let Some(rest) = name.strip_prefix("fixtures/") else {
            continue;
        };
        let Some((folder, file)) = rest.rsplit_once('/') else {
            continue;
        };
        if folder == "tools" || folder.starts_with("tools/") {
            continue;
        }
        let bytes = std::fs::read(root().join(&name)).map_err(|e| format!("{name}: {e}"))?;
        total += bytes.len() as u64;
        folders
            .entry(folder.to_owned())
            .or_default()
            .insert(file.to_owned(), hex(&Sha256::digest(&bytes)));
    }
    Ok((folders, total))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn read_manifest() -> Result<BTreeMap<String, Entry>, String> {
    let table: Table = read(MANIFEST)?
        .parse()
        .map_err(|e| format!("{MANIFEST}: {e}"))?;
    let mut entries = BTreeMap::new();
    for item in table
        .get("fixture")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = |key: &str| {
            item.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let files = item.get("files").and_then(Value::as_table);
        let digests = files.into_iter().flatten();
        let entry = Entry {
            fields: FIELDS
                .iter()
                .map(|field| ((*field).to_owned(), text(field)))
                .collect(),
            digests: digests
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect(),
        };
        if entries.insert(text("path"), entry).is_some() {
            return Err(format!("{MANIFEST}: {} is listed twice", text("path")));
        }
    }
    Ok(entries)
}

fn verify() -> Outcome {
    let (folders, total) = on_disk()?;
    let entries = read_manifest()?;
    let faults = compare(&folders, &entries, total);
    let count: usize = folders.values().map(BTreeMap::len).sum();
    println!(
        "fixtures: {} folders, {count} files, {total} bytes (at most {MAX_LEN_BYTES})",
        folders.len()
    );
    crate::check::verdict(&faults)
}

fn compare(folders: &Folders, entries: &BTreeMap<String, Entry>, total: u64) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, entry) in entries {
        for field in FIELDS
            .iter()
            .filter(|f| entry.fields.get(**f).is_none_or(|v| v.trim().is_empty()))
        {
            faults.push(format!("{path}: the entry does not say `{field}`"));
        }
        let files = folders.get(path);
        for (file, digest) in &entry.digests {
            match files.and_then(|f| f.get(file)) {
                None => faults.push(format!("{path}/{file}: listed, but not there")),
                Some(found) if found != digest => {
                    faults.push(format!("{path}/{file}: sha256 {found}, listed {digest}"));
                }
                Some(_) => {}
            }
        }
    }
    for (path, files) in folders {
        let listed = entries.get(path).map(|e| &e.digests);
        for file in files
            .keys()
            .filter(|file| listed.is_none_or(|l| !l.contains_key(*file)))
        {
            faults.push(format!("{path}/{file}: no entry of {MANIFEST} lists it"));
        }
    }
    if folders.is_empty() {
        faults.push("no fixture was visited".to_owned());
    }
    if total > MAX_LEN_BYTES {
        faults.push(format!(
            "{total} bytes of fixtures, at most {MAX_LEN_BYTES}"
        ));
    }
    faults
}

fn update() -> Outcome {
    let (folders, total) = on_disk()?;
    let known = if root().join(MANIFEST).exists() {
        read_manifest()?
    } else {
        BTreeMap::new()
    };
    let mut out = HEAD.to_owned();
    for (path, digests) in folders {
        let told = known
            .get(&path)
            .map(|e| e.fields.clone())
            .unwrap_or_default();
        let fields = from_description(&path, told)?;
        let _ = write!(out, "\n[[fixture]]\npath = {}\n", quoted(&path));
        for field in FIELDS {
            let _ = writeln!(
                out,
                "{field} = {}",
                quoted(fields.get(*field).map_or("", String::as_str))
            );
        }
        out.push_str("[fixture.files]\n");
        for (file, digest) in digests {
            let _ = writeln!(out, "{} = {}", quoted(&file), quoted(&digest));
        }
    }
    std::fs::write(root().join(MANIFEST), out).map_err(|e| format!("{MANIFEST}: {e}"))?;
    println!("{MANIFEST} written, {total} bytes of fixtures");
    verify()
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// Fills what is not yet told from the folder's own `fixture.json`.
fn from_description(
    path: &str,
    told: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let name = format!("fixtures/{path}/fixture.json");
    if !root().join(&name).exists() {
        return Ok(told);
    }
    let json: Json = serde_json::from_str(&read(&name)?).map_err(|e| format!("{name}: {e}"))?;
    let mut fields = describe(&json);
    fields.extend(told.into_iter().filter(|(_, v)| !v.is_empty()));
    Ok(fields)
}

fn describe(json: &Json) -> BTreeMap<String, String> {
    let text = |key: &str| {
        json.get(key)
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let versions = json.get("version").and_then(Json::as_object);
    let versions = versions
        .into_iter()
        .flatten()
        .map(|(tool, v)| format!("{tool} {}", v.as_str().unwrap_or_default()));
    let config = json.get("config").map(Json::to_string).unwrap_or_default();
    let real = config.contains("minilm");
    let license = if real {
        "Apache-2.0 (slices of sentence-transformers/all-MiniLM-L6-v2)"
    } else {
        "Apache-2.0 OR MIT (seeded random weights, made for this project)"
    };
    let seed = json
        .get("seed")
        .map(|s| format!(", seed {s}"))
        .unwrap_or_default();
    BTreeMap::from([
        (
            "producer".to_owned(),
            text("tool").replace("this script", "the fixture generator"),
        ),
        (
            "versions".to_owned(),
            versions.collect::<Vec<_>>().join(", "),
        ),
        (
            "command".to_owned(),
            format!("configuration {config}{seed}"),
        ),
        ("license".to_owned(), license.to_owned()),
        (
            "proves".to_owned(),
            format!(
                "{}; expected values by: {}",
                text("what"),
                text("reference")
            ),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(file: &str, digest: &str) -> Folders {
        BTreeMap::from([(
            "a/b".to_owned(),
            BTreeMap::from([(file.to_owned(), digest.to_owned())]),
        )])
    }

    fn entry(file: &str, digest: &str) -> BTreeMap<String, Entry> {
        let fields = FIELDS
            .iter()
            .map(|f| ((*f).to_owned(), "told".to_owned()))
            .collect();
        let digests = BTreeMap::from([(file.to_owned(), digest.to_owned())]);
        BTreeMap::from([("a/b".to_owned(), Entry { fields, digests })])
    }

    #[test]
    fn a_changed_missing_unlisted_or_untold_file_is_a_fault() {
        assert!(compare(&folder("x", "1"), &entry("x", "1"), 1).is_empty());
        assert_eq!(compare(&folder("x", "1"), &entry("x", "2"), 1).len(), 1);
        assert_eq!(compare(&folder("x", "1"), &entry("y", "1"), 1).len(), 2);
        assert_eq!(compare(&folder("x", "1"), &BTreeMap::new(), 1).len(), 1);
        assert_eq!(
            compare(&folder("x", "1"), &entry("x", "1"), MAX_LEN_BYTES + 1).len(),
            1
        );
        let untold = BTreeMap::from([(
            "a/b".to_owned(),
            Entry {
                fields: BTreeMap::new(),
                ..entry("x", "1")["a/b"].clone()
            },
        )]);
        assert_eq!(compare(&folder("x", "1"), &untold, 1).len(), FIELDS.len());
    }
}
