//! What shards decide: the index, names of scales, and `__metadata__`.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Checkpoint, Index, Shard, TensorInfo, TensorRef};
use safequant_schemes::Role;

use super::{IndexEdit, IndexWork, Work};
use crate::{Finding, Rule, problem};

/// The name of an index where there was none.
const INDEX: &str = "model.safetensors.index.json";

/// Bytes that are compared at a time.
const CHUNK: u64 = 1 << 20;

/// Refuses a checkpoint of which files are missing or do not open: they would be missing in the repaired one as well.
pub(super) fn refuse_broken(work: &mut Work<'_>, rules: &[&'static Rule]) {
    let checkpoint = work.report.subject.checkpoint;
    let rule = rules.first().map_or("IX001", |rule| rule.id);
    let is_open = |name: &str| {
        let shards = checkpoint.shards();
        let found = shards.binary_search_by(|shard| shard.name.as_str().cmp(name));
        found.is_ok()
    };
    let wanted: Vec<&str> = match checkpoint.index() {
        Some(index) => index.shard_names(),
        None => checkpoint
            .unreferenced()
            .iter()
            .map(String::as_str)
            .collect(),
    };
    let broken: Vec<String> = wanted
        .into_iter()
        .filter(|name| !is_open(name))
        .map(|name| why_broken(work, name))
        .collect();
    for why in broken {
        work.refuse(rule, why);
    }
    if checkpoint.shards().is_empty() && work.repair.refused.is_empty() {
        work.refuse(rule, "no weights could be opened");
    }
    if checkpoint.gguf().is_some() {
        work.refuse(
            rule,
            "a GGUF file has neither index nor documents to repair",
        );
    }
}

fn why_broken(work: &Work<'_>, name: &str) -> String {
    let problems = work.report.subject.problems.iter();
    let mut own = problems.filter(|error| problem::place(error).file.as_deref() == Some(name));
    match own.next() {
        Some(error) => format!("{error}: a file that is missing or broken cannot be repaired"),
        None => format!("{name}: it is missing, and nothing can be repaired without it"),
    }
}

/// The index is to be written from the shards.
pub(super) fn rebuild_index(work: &mut Work<'_>, findings: &[&Finding]) {
    let of_rule = |id: &str| findings.iter().filter(|finding| finding.rule == id).count();
    // What is wrong with an index that could not be read says which file it is.
    let unread = findings.iter().find(|finding| finding.rule == "IX009");
    let unread = unread.and_then(|finding| finding.place.file.clone());
    let name = rebuild(work, unread);
    for rule in ["IX001", "IX002", "IX009"] {
        let n = of_rule(rule);
        if n > 0 {
            work.reason(
                rule,
                format!("{name}: weight_map is written from the shards"),
            );
        }
    }
}

fn rebuild(work: &mut Work<'_>, unread: Option<String>) -> String {
    let index = work.report.subject.checkpoint.index();
    let name = index.map(|index| index.name.clone()).or(unread);
    let name = name.unwrap_or_else(|| INDEX.to_owned());
    work.index = IndexWork::Rebuild(name.clone());
    name
}

/// The index is to be written from all files. Each tensor must be in one of them, and what a lost shard held in another.
pub(super) fn rebuild_from_all(work: &mut Work<'_>, old: &Index) {
    let checkpoint = work.report.subject.checkpoint;
    let is_there = |shard: &str| checkpoint.shards().iter().any(|open| open.name == *shard);
    let lost = old.weight_map.iter();
    let lost = lost.filter(|(name, shard)| !is_there(shard) && checkpoint.tensor(name).is_none());
    let mut lost: Vec<String> = lost
        .map(|(name, shard)| format!("{shard} is missing, and {name} with it"))
        .collect();
    lost.truncate(1);
    let doubled = work
        .report
        .findings
        .iter()
        .filter(|finding| finding.rule == "IX007");
    let doubled =
        doubled.map(|finding| format!("{}: no index says which one counts", finding.message));
    let refused: Vec<String> = lost.into_iter().chain(doubled.take(1)).collect();
    for why in refused {
        work.refuse("IX001", why);
    }
    work.index = IndexWork::Rebuild(old.name.clone());
    let text = format!(
        "{}: weight_map is written from all files, those that it did not name as well",
        old.name
    );
    work.reason("IX001", text);
}

/// `total_size` becomes the bytes of the tensors.
pub(super) fn count_bytes(work: &mut Work<'_>, findings: &[&Finding]) {
    if work.index == IndexWork::Keep {
        work.index = IndexWork::Count;
    }
    let file = findings
        .first()
        .and_then(|finding| finding.place.file.clone());
    let file = file.unwrap_or_else(|| INDEX.to_owned());
    work.reason(
        "IX005",
        format!("{file}: total_size is the bytes of the listed tensors"),
    );
}

/// Of tensors that several shards hold byte for byte one is kept: the one that the index names, or the first.
pub(super) fn drop_copies(work: &mut Work<'_>, findings: &[&Finding]) {
    let checkpoint = work.report.subject.checkpoint;
    let rule = findings.first().map_or("IX007", |finding| finding.rule);
    let named = findings
        .iter()
        .filter_map(|finding| finding.place.tensor.as_deref());
    let named: BTreeSet<&str> = named.collect();
    for name in named {
        let Some(kept) = checkpoint.tensor(name) else {
            continue;
        };
        for (shard, info) in stored(checkpoint, name) {
            if shard.name == kept.shard.name {
                continue;
            }
            let (ours, theirs) = (&kept.shard.name, &shard.name);
            match have_equal_bytes(kept, TensorRef { shard, info }) {
                Some(true) => {
                    let copy = (shard.name.clone(), name.to_owned());
                    work.repair.dropped.insert(copy);
                    work.reason(
                        rule,
                        format!("{name}: the copy in {theirs} goes, {ours} has the same bytes"),
                    );
                }
                Some(false) => {
                    let why = format!(
                        "{name}: {ours} and {theirs} hold different tensors, and none says which is right"
                    );
                    work.refuse(rule, why);
                }
                None => work.refuse(rule, format!("{name}: {theirs} cannot be read")),
            }
        }
    }
    rebuild(work, None);
}

/// Every tensor of this name.
fn stored<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
) -> impl Iterator<Item = (&'a Shard, &'a TensorInfo)> {
    checkpoint.shards().iter().filter_map(move |shard| {
        let mut tensors = shard.header.tensors.iter();
        Some((shard, tensors.find(|tensor| tensor.name.as_str() == name)?))
    })
}

/// Whether two tensors are one, byte for byte; `None` if one of them cannot be read.
pub(super) fn have_equal_bytes(a: TensorRef<'_>, b: TensorRef<'_>) -> Option<bool> {
    let len_bytes = a.info.len_bytes();
    if a.dtype() != b.dtype() || a.shape() != b.shape() || len_bytes != b.info.len_bytes() {
        return Some(false);
    }
    let chunk = usize::try_from(len_bytes.min(CHUNK)).ok()?;
    let (mut ours, mut theirs) = (vec![0; chunk], vec![0; chunk]);
    let mut at = 0;
    while at < len_bytes {
        let n = usize::try_from((len_bytes - at).min(CHUNK)).ok()?;
        a.read_exact_at(at, ours.get_mut(..n)?).ok()?;
        b.read_exact_at(at, theirs.get_mut(..n)?).ok()?;
        if ours.get(..n) != theirs.get(..n) {
            return Some(false);
        }
        at = at.saturating_add(n as u64);
    }
    Some(true)
}

/// Gives scales the name that loaders of the format look for.
pub(super) fn rename_scales(work: &mut Work<'_>, findings: &[&Finding]) {
    for finding in findings {
        let (Some(module), Some(old)) = (&finding.place.module, &finding.place.tensor) else {
            continue;
        };
        match new_name(work, module, old, &finding.expected) {
            Ok(new) => {
                work.reason("SC002", format!("{old} becomes {new}"));
                work.repair.renames.insert(old.clone(), new);
            }
            Err(why) => work.refuse("SC002", format!("{old}: {why}")),
        }
    }
}

/// The usual name of a scale: where the rule offers two, that of the other weights, or the one that fits its shape.
fn new_name(work: &Work<'_>, module: &str, old: &str, expected: &str) -> Result<String, String> {
    let subject = &work.report.subject;
    // Stacks of experts have their scale's name glued to their own.
    if subject.headers.tensor(module).is_some() {
        return Err("a stack of experts: loaders do not agree on its scale's name".to_owned());
    }
    let offered: Vec<&str> = expected.split(" or ").collect();
    let new = match offered.as_slice() {
        [only] => (*only).to_owned(),
        _ => format!("{module}.{}", usual_ending(work, old)),
    };
    if subject.headers.tensor(&new).is_some() || work.repair.renames.values().any(|n| *n == new) {
        return Err(format!("{new} is there already"));
    }
    Ok(new)
}

fn usual_ending(work: &Work<'_>, old: &str) -> &'static str {
    let subject = &work.report.subject;
    let mut counts = [("weight_scale_inv", 0_usize), ("weight_scale", 0)];
    let of_fp8 = subject.model.quantized.iter();
    let scales = of_fp8.filter_map(|tensor| tensor.part(Role::Scale));
    for scale in scales {
        let ending = scale.name.rsplit('.').next().unwrap_or_default();
        for (name, count) in &mut counts {
            *count += usize::from(*name == ending);
        }
    }
    let [(inverse, n_inverse), (plain, n_plain)] = counts;
    let shape = subject.headers.tensor(old).map(|info| info.shape.to_vec());
    let is_grid = shape.is_some_and(|shape| shape.iter().filter(|n| **n > 1).count() > 1);
    let is_inverse = n_inverse > n_plain || (n_inverse == n_plain && is_grid);
    if is_inverse { inverse } else { plain }
}

/// Says in `__metadata__` which framework's tensors these are.
pub(super) fn state_format(work: &mut Work<'_>, findings: &[&Finding]) {
    let subject = &work.report.subject;
    let conventions = &subject.model.conventions;
    let is_mlx = !conventions.is_empty() && conventions.iter().all(|(name, _)| *name == "mlx");
    let format = if is_mlx { "mlx" } else { "pt" };
    for finding in findings {
        let Some(file) = &finding.place.file else {
            continue;
        };
        let mut shards = subject.checkpoint.shards().iter();
        let Some(shard) = shards.find(|shard| shard.name == *file) else {
            continue;
        };
        let mut entries: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in shard.header.metadata.iter().flatten() {
            entries.entry(key.clone()).or_insert_with(|| value.clone());
        }
        entries.insert("format".to_owned(), format.to_owned());
        let is_new = work
            .repair
            .metadata
            .insert(file.clone(), entries.into_iter().collect());
        if is_new.is_none() {
            work.reason(
                finding.rule,
                format!("{file}: `format` is `{format}` in __metadata__"),
            );
        }
    }
}

/// What becomes of the index, once all else is known.
pub(super) fn write_index(work: &mut Work<'_>) {
    let checkpoint = work.report.subject.checkpoint;
    let index = checkpoint.index();
    let rename = |name: &str| {
        let new = work.repair.renames.get(name);
        new.map_or_else(|| name.to_owned(), Clone::clone)
    };
    let listed = |index: &Index| -> BTreeMap<String, String> {
        let entries = index.weight_map.iter();
        entries
            .map(|(tensor, shard)| (rename(tensor), shard.to_string()))
            .collect()
    };
    let of_shards = || -> BTreeMap<String, String> {
        let tensors = checkpoint.tensors();
        tensors
            .map(|tensor| (rename(tensor.name()), tensor.shard.name.clone()))
            .collect()
    };
    let (name, weight_map) = match (&work.index, index) {
        (IndexWork::Rebuild(name), _) => (name.clone(), of_shards()),
        (IndexWork::Keep, Some(_)) if work.repair.renames.is_empty() => return,
        (IndexWork::Keep | IndexWork::Count, Some(index)) => (index.name.clone(), listed(index)),
        (IndexWork::Keep | IndexWork::Count, None) => return,
    };
    let is_counted = work.index != IndexWork::Keep;
    let sizes = checkpoint
        .tensors()
        .filter(|tensor| weight_map.contains_key(&rename(tensor.name())));
    let total = sizes.fold(0_u64, |sum, tensor| {
        sum.saturating_add(tensor.info.len_bytes())
    });
    work.repair.index = Some(IndexEdit {
        name,
        weight_map,
        total_size: is_counted.then_some(total),
    });
}
