//! `cargo xtask fuzz`: corpus from the fixtures, then each target for a while.

use std::path::Path;

use serde_json::Value;

use crate::Outcome;
use crate::process::{command, files, is_installed, root, run as run_command};

/// Every target, with the dictionary it uses (`fuzz/dictionaries/<name>.dict`).
const TARGETS: &[(&str, &str)] = &[
    ("header", "header"),
    ("index", "json"),
    ("config", "json"),
    ("bind", "header"),
    ("gguf", "gguf"),
    ("calibration", "header"),
];

/// Longest seed; larger ones slow the fuzzer down more than they teach it.
const MAX_SEED_BYTES: usize = 64 << 10;

/// Prepares the corpus and runs the targets, one at a time.
pub(crate) fn run(args: &[&str]) -> Outcome {
    let mut seconds = "60";
    let mut only = None;
    let mut runs = true;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--seconds" => seconds = rest.next().ok_or("--seconds needs a number")?,
            "--target" => only = Some(*rest.next().ok_or("--target needs a name")?),
            "--prepare" => runs = false,
            other => return Err(format!("fuzz: unexpected argument {other}")),
        }
    }
    prepare()?;
    if !runs {
        return Ok(());
    }
    if !is_installed("cargo", &["fuzz", "--version"]) {
        return Err("cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`".to_owned());
    }
    let chosen: Vec<_> = TARGETS
        .iter()
        .filter(|(target, _)| only.is_none_or(|o| o == *target))
        .collect();
    if chosen.is_empty() {
        return Err(format!(
            "no such target; there are {:?}",
            TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        ));
    }
    for (target, dictionary) in chosen {
        fuzz(target, dictionary, seconds)?;
    }
    Ok(())
}

/// `RUSTC_BOOTSTRAP` lets a stable compiler take the flags that cargo-fuzz passes (coverage).
fn fuzz(target: &str, dictionary: &str, seconds: &str) -> Outcome {
    let mut fuzz = command("cargo");
    fuzz.current_dir(root().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1");
    fuzz.args(["fuzz", "run", "--sanitizer", "none", target])
        .arg(format!("corpus/{target}"));
    fuzz.arg(format!("regressions/{target}"));
    fuzz.args([
        "--",
        &format!("-max_total_time={seconds}"),
        "-timeout=10",
        "-max_len=16384",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]);
    fuzz.arg(format!("-dict=dictionaries/{dictionary}.dict"));
    run_command(&mut fuzz)
}

/// Seeds from the fixtures. `header`: header bytes; `index` and `config`: the documents; `bind`: see `fuzz/src/lib.rs`;
/// `gguf`: the first bytes of a
/// file; `calibration`: importance matrices.
fn prepare() -> Outcome {
    let mut counts = [0_usize; TARGETS.len()];
    for (target, _) in TARGETS {
        for folder in ["corpus", "regressions"] {
            let place = root().join("fuzz").join(folder).join(target);
            std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
        }
    }
    for name in files()?.iter().filter(|n| n.starts_with("fixtures/")) {
        let file = name.rsplit('/').next().unwrap_or_default();
        let slug = name.trim_start_matches("fixtures/").replace('/', "-");
        if file.ends_with(".safetensors") && !file.starts_with("expected") {
            let header = header_of(name)?;
            seed("header", &slug, &header)?;
            counts[0] += 1;
            let config = read_sibling(name, "config.json");
            if let Some(bytes) = config.and_then(|config| bind_seed(&header, &config)) {
                seed("bind", &slug, &bytes)?;
                counts[3] += 1;
            }
        } else if file.ends_with(".index.json") {
            seed("index", &slug, &bytes_of(name)?)?;
            counts[1] += 1;
        } else if file == "config.json" || file == "quantize_config.json" {
            seed("config", &slug, &bytes_of(name)?)?;
            counts[2] += 1;
        } else if std::path::Path::new(&file)
            .extension()
            .is_some_and(|e| e == "gguf")
        {
            let mut head = bytes_of(name)?;
            head.truncate(8 << 10);
            seed("gguf", &slug, &head)?;
            counts[4] += 1;
        }
        if name.starts_with("fixtures/llama.cpp-imatrix/") {
            seed("calibration", &slug, &bytes_of(name)?)?;
            counts[5] += 1;
        }
    }
    for ((target, _), count) in TARGETS.iter().zip(counts) {
        println!("fuzz/corpus/{target}: {count} seeds from the fixtures");
    }
    if counts.contains(&0) {
        Err("a target got no seed".to_owned())
    } else {
        Ok(())
    }
}

fn bytes_of(name: &str) -> Result<Vec<u8>, String> {
    std::fs::read(root().join(name)).map_err(|e| format!("{name}: {e}"))
}

fn read_sibling(name: &str, file: &str) -> Option<Vec<u8>> {
    let (folder, _) = name.rsplit_once('/')?;
    std::fs::read(root().join(folder).join(file)).ok()
}

/// Length prefix and header of a file, without the data.
fn header_of(name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = bytes_of(name)?;
    let prefix: [u8; 8] = bytes
        .get(..8)
        .and_then(|p| p.try_into().ok())
        .ok_or(format!("{name}: too short"))?;
    let end = usize::try_from(u64::from_le_bytes(prefix))
        .ok()
        .and_then(|n| n.checked_add(8));
    bytes.truncate(end.ok_or(format!("{name}: header too long"))?);
    Ok(bytes)
}

/// The config's quantization part, a zero byte, then the header's JSON: the layout that the `bind` target splits again.
fn bind_seed(header: &[u8], config: &[u8]) -> Option<Vec<u8>> {
    let json: Value = serde_json::from_slice(config).ok()?;
    let small = serde_json::json!({ "quantization_config": json.get("quantization_config")? });
    let mut seed = serde_json::to_vec(&small).ok()?;
    seed.push(0);
    seed.extend_from_slice(&header[8..]);
    Some(seed)
}

fn seed(target: &str, slug: &str, bytes: &[u8]) -> Outcome {
    if bytes.len() > MAX_SEED_BYTES {
        return Ok(());
    }
    let path = root()
        .join("fuzz/corpus")
        .join(target)
        .join(Path::new(slug));
    std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}
