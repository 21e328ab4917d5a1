//! `docs/conversions.md`: what becomes of every kind of weight in `fixtures/` in every convention that can be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use safequant::container::{Checkpoint, FileSource, Limits, ReadAt};
use safequant::rewrite::Label;
use safequant::rewrite::convert::conversion;
use safequant::schemes::{CONVENTIONS, Convention, ConventionWriter, Model};

use xtask::process::{files, root};

pub(crate) const PAGE: &str = "docs/conversions.md";

/// A source: its convention, and the kind of weight in one phrase.
type Kind = (usize, String);

/// What becomes of the kinds of weights, by target.
struct Table {
    targets: Vec<&'static dyn ConventionWriter>,
    /// For each kind the label and reason in each target, worst weight first, and the number of weights.
    kinds: BTreeMap<Kind, (usize, Vec<(Label, String)>)>,
    n_checkpoints: usize,
}

/// The page, computed.
pub(crate) fn page() -> Result<String, String> {
    let writers = CONVENTIONS.iter().filter_map(|c| c.writer());
    let mut table = Table {
        targets: writers.collect(),
        kinds: BTreeMap::new(),
        n_checkpoints: 0,
    };
    for folder in folders()? {
        table.add(&folder)?;
    }
    if table.n_checkpoints < 50 {
        return Err(format!(
            "only {} checkpoints were found",
            table.n_checkpoints
        ));
    }
    Ok(table.text())
}

/// Folders under `fixtures/` that hold a checkpoint of a tool: those with a `fixture.json` that expects weights.
fn folders() -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    for name in files()? {
        let Some(folder) = name
            .strip_prefix("fixtures/")
            .and_then(|n| n.strip_suffix("/fixture.json"))
        else {
            continue;
        };
        found.insert(format!("fixtures/{folder}"));
    }
    Ok(found)
}

/// The checkpoint's own files: all but what lies beside it for the tests.
fn open(folder: &Path) -> Result<Option<Checkpoint>, String> {
    let (mut shards, mut documents) = (Vec::new(), BTreeMap::new());
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        let beside = ["expected", "source", "extra", "fixture.json"];
        if beside.iter().any(|p| name.starts_with(p)) {
            continue;
        }
        let path = folder.join(&name);
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        match ending {
            "gguf" => {
                return Checkpoint::open(&path, &Limits::default())
                    .map(Some)
                    .map_err(|e| e.to_string());
            }
            "safetensors" => {
                let source = FileSource::open(&path).map_err(|e| format!("{name}: {e}"))?;
                let source: Arc<dyn ReadAt> = Arc::new(source);
                shards.push((name, source));
            }
            "json" => {
                let bytes = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
                documents.insert(name, bytes);
            }
            _ => {}
        }
    }
    if shards.is_empty() {
        return Ok(None);
    }
    let name = folder.display().to_string();
    Checkpoint::from_sources(&name, shards, documents, &Limits::default())
        .map(Some)
        .map_err(|e| e.to_string())
}

impl Table {
    fn add(&mut self, folder: &str) -> Result<(), String> {
        // Fixtures that are wrong on purpose do not bind: they have no weights to convert.
        let Some(checkpoint) = open(&root().join(folder))? else {
            return Ok(());
        };
        let Ok(model) = Model::bind(&checkpoint) else {
            return Ok(());
        };
        self.n_checkpoints += usize::from(!model.quantized.is_empty());
        let mut seen = BTreeMap::new();
        for tensor in &model.quantized {
            let order = CONVENTIONS
                .iter()
                .position(|c| c.id() == tensor.convention)
                .unwrap_or(usize::MAX);
            let kind = (order, tensor.scheme.to_string());
            // Two weights of a kind per checkpoint are enough: their numbers differ little.
            let n: &mut usize = seen.entry(kind.clone()).or_default();
            *n += 1;
            if *n > 2 {
                continue;
            }
            let mut labels = Vec::new();
            for target in &self.targets {
                let found = conversion(&checkpoint, tensor, *target)
                    .map_err(|e| format!("{folder}: {}: {e}", tensor.module))?;
                labels.push((found.label, found.reason));
            }
            self.merge(kind, labels);
        }
        Ok(())
    }

    fn merge(&mut self, kind: Kind, labels: Vec<(Label, String)>) {
        let Some((n, known)) = self.kinds.get_mut(&kind) else {
            self.kinds.insert(kind, (1, labels));
            return;
        };
        *n += 1;
        for (known, new) in known.iter_mut().zip(labels) {
            if new.0 > known.0 {
                *known = new;
            }
        }
    }

    fn text(&self) -> String {
        let mut out = String::from(
            "# Conversions\n\n\
             Generated by `cargo xtask generate` from the weights in `fixtures/`; do not edit.\n\n\
             What `safequant convert SRC -o DST --to CONVENTION` makes of each kind of weight: **exact** (the same codes and \
             scales, and the way back gives the same bytes), *cast* (scales are rounded to another dtype, or repeated for \
             smaller groups), lossy (only with `--allow-lossy`: the codes change), – (impossible). Where weights of a kind \
             differ, the worst is shown. Labels are decided by schemes and numbers: `convert --dry-run` tells those of a \
             checkpoint.\n\n",
        );
        let _ = writeln!(
            out,
            "{} kinds of weights from {} checkpoints, {} conventions to write.\n",
            self.kinds.len(),
            self.n_checkpoints,
            self.targets.len()
        );
        let ids: Vec<String> = self
            .targets
            .iter()
            .map(|t| format!("`{}`", t.id()))
            .collect();
        let _ = writeln!(out, "| from | weights | {} |", ids.join(" | "));
        let _ = writeln!(out, "| --- | --- |{}", " --- |".repeat(ids.len()));
        for ((order, phrase), (_, labels)) in &self.kinds {
            let cells: Vec<&str> = labels.iter().map(|(label, _)| cell(*label)).collect();
            let _ = writeln!(
                out,
                "| `{}` | {phrase} | {} |",
                id(*order),
                cells.join(" | ")
            );
        }
        out.push_str("\n## Why not exact\n\nThe reason of the worst weight of each kind.\n\n");
        out.push_str("| from | weights | to | label | why |\n| --- | --- | --- | --- | --- |\n");
        for ((order, phrase), (_, labels)) in &self.kinds {
            for (target, (label, reason)) in self.targets.iter().zip(labels) {
                if *label != Label::Exact {
                    let reason = reason.replace('|', "/");
                    let (from, to, word) = (id(*order), target.id(), label.word());
                    let _ = writeln!(out, "| `{from}` | {phrase} | `{to}` | {word} | {reason} |");
                }
            }
        }
        out
    }
}

fn id(order: usize) -> &'static str {
    CONVENTIONS
        .get(order)
        .map_or("?", |c: &&dyn Convention| c.id())
}

const fn cell(label: Label) -> &'static str {
    match label {
        Label::Exact => "**exact**",
        Label::Cast => "*cast*",
        Label::Lossy => "lossy",
        Label::Impossible => "–",
    }
}
