//! Repairs: a fault is planted, repaired and gone; every tensor has the bytes that it had, and the source is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use safequant::audit::repair::{
    are_unlisted_needed, is_repairable, repair_unlisted, repairable, why_not,
};
use safequant::audit::{
    self, Depth, Finding, Options, Place, Rule, Severity, Subject, Wanted, all_rules,
};
use safequant::container::{Checkpoint, Error as ContainerError, Limits, OsDisk};
use safequant::repair::edits;
use safequant::rewrite::repair::{self, Edits, How, RepairOptions, Weights};
use safequant::rewrite::{Destination, Error};
use serde_json::json;
use tempfile::TempDir;

use super::draft::{Draft, INDEX};
use super::faults::{Fault, Random, faults};
use crate::interop::fixture::{self, Fixture};

/// Faults that the tensors do not undo, wherever they are planted: weights are lost; one of several weights has zero points of
/// the other form.
const NEVER: [&str; 2] = ["shard-is-gone", "zeros-are-stored-as-they-are"];

#[test]
fn planted_faults_are_repaired() {
    let all = std::env::var("SAFEQUANT_MUTATE").is_ok_and(|value| value == "all");
    let most = if all { usize::MAX } else { 3 };
    let fixtures = fixture::all();
    let mut rules = BTreeSet::new();
    for (seed, fault) in (1..).zip(faults()) {
        let rule = audit::rule(fault.rule).unwrap();
        if !is_repairable(rule) {
            continue;
        }
        let mut random = Random(seed);
        let mut order: Vec<&Fixture> = fixtures.iter().collect();
        let (mut n_repaired, mut refused) = (0, Vec::new());
        while let (Some(at), true) = (order.len().checked_sub(1), n_repaired < most) {
            let fixture = order.swap_remove(random.below(at + 1));
            match try_one(fault, rule, fixture, &mut random) {
                Outcome::NotPlanted => {}
                Outcome::Refused(why) => refused.push(format!("{}: {why}", fixture.name)),
                Outcome::Repaired => n_repaired += 1,
            }
        }
        let n_refused = refused.len();
        println!(
            "{} {}: repaired {n_repaired}, refused {n_refused}",
            fault.rule, fault.name
        );
        let is_possible = !NEVER.contains(&fault.name);
        assert_eq!(n_repaired > 0, is_possible, "{}: {refused:#?}", fault.name);
        if n_repaired > 0 {
            rules.insert(fault.rule);
        }
    }
    let known: BTreeSet<&str> = repairable().collect();
    assert_eq!(rules, known, "rules whose repair was seen");
}

enum Outcome {
    NotPlanted,
    Refused(String),
    Repaired,
}

fn try_one(fault: &Fault, rule: &'static Rule, fixture: &Fixture, random: &mut Random) -> Outcome {
    let mut draft = Draft::of(fixture);
    let clean = draft.audit(&Wanted::default(), &all_of(rule.depth())).0;
    draft.lay_out();
    if (fault.plant)(&mut draft, random).is_none() {
        return Outcome::NotPlanted;
    }
    let (source, problems) = draft.open();
    let name = format!("{} in {}", fault.name, fixture.name);
    let before = contents(Path::new(source.name()));
    let report = look(&source, problems, rule.depth());
    let mut said = report.findings.clone();
    if said.iter().all(|finding| finding.rule != rule.id) {
        return Outcome::NotPlanted;
    }
    let all = Checkpoint::survey_files(Path::new(source.name()), &Limits::default());
    let (all, problems) = all.unwrap();
    let is_wide = are_unlisted_needed(&report, &[rule], &all);
    let changes = match source.index().filter(|_| is_wide) {
        Some(index) => repair_unlisted(&look(&all, problems, rule.depth()), &[rule], index),
        None => audit::repair(&report, &[rule]),
    };
    let source = if is_wide { all } else { source };
    if let Some(refusal) = changes.refused.first() {
        assert!(
            !refusal.text.is_empty() && refusal.rule == rule.id,
            "{name}"
        );
        return Outcome::Refused(refusal.text.clone());
    }
    assert!(!changes.is_empty() && !changes.reasons.is_empty(), "{name}");
    let (renames, dropped) = (changes.renames.clone(), changes.dropped.clone());
    let place = TempDir::new().unwrap();
    let destination = place.path().join("repaired");
    let plan = repair::plan(&OsDisk, &source, &edits(changes), &options(&destination)).unwrap();
    let planned = plan.files();
    let (preview, problems) = plan.preview().unwrap();
    let seen = look(&preview, problems, rule.depth()).findings;
    assert_eq!(
        names(place.path()),
        [""; 0],
        "{name}: a plan writes nothing"
    );
    let files = repair::run(&plan, &OsDisk).unwrap();
    assert_eq!(names(place.path()), ["repaired"], "{name}");
    assert_eq!(
        contents(Path::new(source.name())),
        before,
        "{name}: the source"
    );
    for (planned, file) in planned.iter().zip(&files) {
        assert_eq!(
            (&planned.name, planned.len_bytes),
            (&file.name, file.len_bytes)
        );
        let path = destination.join(&file.name);
        assert_eq!(
            std::fs::metadata(path).unwrap().len(),
            file.len_bytes,
            "{name}"
        );
    }
    // What an index that names nothing hides is no news either.
    said.extend(clean);
    let (result, problems) = Checkpoint::survey(&destination, &Limits::default()).unwrap();
    let found = look(&result, problems, rule.depth()).findings;
    for findings in [&seen, &found] {
        gone(&name, rule, &said, findings);
    }
    same_tensors(&name, &source, &result, &renames, dropped.len());
    Outcome::Repaired
}

fn look(checkpoint: &Checkpoint, problems: Vec<ContainerError>, depth: Depth) -> audit::Report<'_> {
    let subject = Subject::new(checkpoint, problems, Wanted::default());
    audit::audit(subject, &all_of(depth))
}

fn all_of(depth: Depth) -> Options {
    Options {
        depth,
        rules: all_rules().collect(),
    }
}

/// Nothing of the rule is left but notes that were there, and nothing else is an error that was none.
fn gone(name: &str, rule: &Rule, before: &[Finding], after: &[Finding]) {
    let key =
        |finding: &Finding| -> (&'static str, Place) { (finding.rule, finding.place.clone()) };
    let known: BTreeSet<_> = before.iter().map(key).collect();
    for finding in after {
        let is_old = known.contains(&key(finding));
        let is_left = finding.rule == rule.id && !(finding.severity == Severity::Note && is_old);
        let is_new = finding.severity == Severity::Error && !is_old;
        assert!(!is_left && !is_new, "{name}: {finding:?}");
    }
}

fn same_tensors(
    name: &str,
    source: &Checkpoint,
    result: &Checkpoint,
    renames: &BTreeMap<String, String>,
    n_dropped: usize,
) {
    for tensor in source.tensors() {
        let new = renames
            .get(tensor.name())
            .map_or(tensor.name(), String::as_str);
        let copy = result
            .tensor(new)
            .unwrap_or_else(|| panic!("{name}: {new} is lost"));
        assert_eq!(
            (copy.dtype(), copy.shape()),
            (tensor.dtype(), tensor.shape()),
            "{name}"
        );
        let bytes = |t: safequant::container::TensorRef<'_>| t.read_all(u64::MAX).unwrap();
        assert!(bytes(copy) == bytes(tensor), "{name}: {new}");
    }
    let count = |of: &Checkpoint| -> usize {
        of.shards()
            .iter()
            .map(|shard| shard.header.tensors.len())
            .sum()
    };
    assert_eq!(count(source) - n_dropped, count(result), "{name}");
}

fn options(destination: &Path) -> RepairOptions {
    RepairOptions {
        destination: destination.to_owned(),
        mode: Destination::New,
        weights: Weights::Link,
    }
}

/// Files of a directory, with their bytes and times.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let time = std::fs::metadata(&path).unwrap().mtime();
            files.insert(path, (bytes, time));
        }
    }
    files
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A checkpoint of two shards, whose index says something else than it should.
fn with_a_wrong_total() -> Draft {
    let all = fixture::all();
    let mut drafts = all.iter().map(Draft::of);
    let mut draft = drafts
        .find_map(|mut draft| draft.split().map(|()| draft))
        .unwrap();
    draft.edit(INDEX, |index| {
        index["metadata"]["total_size"] = json!(1);
        index["metadata"]["who"] = json!("somebody");
    });
    draft.lay_out();
    draft
}

fn repaired(draft: &Draft, rule: &str) -> (Checkpoint, Edits) {
    let (source, problems) = draft.open();
    let rule = audit::rule(rule).unwrap();
    let changes = audit::repair(&look(&source, problems, rule.depth()), &[rule]);
    assert!(changes.refused.is_empty(), "{:?}", changes.refused);
    (source, edits(changes))
}

#[test]
fn shards_that_stay_are_linked_and_the_index_keeps_what_else_it_says() {
    let draft = with_a_wrong_total();
    let (source, edits) = repaired(&draft, "IX005");
    let place = TempDir::new().unwrap();
    for (name, weights, how) in [
        ("l", Weights::Link, How::Linked),
        ("c", Weights::Copy, How::Copied),
    ] {
        let destination = place.path().join(name);
        let options = RepairOptions {
            weights,
            ..options(&destination)
        };
        let plan = repair::plan(&OsDisk, &source, &edits, &options).unwrap();
        let [document] = plan.documents.as_slice() else {
            panic!("{:?}", plan.documents);
        };
        assert!(document.new.contains("somebody"), "{}", document.new);
        let files = repair::run(&plan, &OsDisk).unwrap();
        for shard in source.shards() {
            let file = files.iter().find(|file| file.name == shard.name).unwrap();
            assert_eq!(file.how, how);
            let inode = |path: PathBuf| std::fs::symlink_metadata(path).unwrap().ino();
            let is_one = inode(destination.join(&shard.name))
                == inode(Path::new(source.name()).join(&shard.name));
            assert_eq!(
                is_one,
                how == How::Linked,
                "never a symlink, and a link only if asked for"
            );
        }
    }
}

#[test]
fn destinations_are_taken_only_if_they_are_free_or_given_up() {
    let draft = with_a_wrong_total();
    let (source, edits) = repaired(&draft, "IX005");
    let place = TempDir::new().unwrap();
    let destination = place.path().join("taken");
    std::fs::create_dir(&destination).unwrap();
    std::fs::write(destination.join("mine"), "mine").unwrap();
    let refused = repair::plan(&OsDisk, &source, &edits, &options(&destination));
    assert!(matches!(
        refused.err(),
        Some(Error::DestinationExists { .. })
    ));
    let inside = Path::new(source.name()).join("inside");
    let refused = repair::plan(&OsDisk, &source, &edits, &options(&inside));
    assert!(matches!(
        refused.err(),
        Some(Error::DestinationTouchesSource { .. })
    ));
    let replace = RepairOptions {
        mode: Destination::Replace,
        ..options(&destination)
    };
    let plan = repair::plan(&OsDisk, &source, &edits, &replace).unwrap();
    repair::run(&plan, &OsDisk).unwrap();
    assert!(!destination.join("mine").exists() && destination.join(INDEX).exists());
    assert_eq!(names(place.path()), ["taken"]);
}

#[test]
fn tensors_that_differ_are_not_chosen_among() {
    let mut draft = with_a_wrong_total();
    draft.documents.remove(INDEX);
    let file = draft.shards.keys().next_back().unwrap().clone();
    let (name, mut dense) = draft.shards.values().next().unwrap()[0].clone();
    dense.bytes.fill(1);
    draft
        .shards
        .get_mut(&file)
        .unwrap()
        .push((name.clone(), dense));
    let (source, problems) = draft.open();
    let rule = audit::rule("IX007").unwrap();
    let changes = audit::repair(&look(&source, problems, rule.depth()), &[rule]);
    let [refusal] = changes.refused.as_slice() else {
        panic!("{:?}", changes.refused);
    };
    assert!(refusal.text.contains(&name), "{}", refusal.text);
}

#[test]
fn an_index_of_another_save_is_written_from_the_files_that_are_there() {
    let mut draft = with_a_wrong_total();
    let old = draft.shards.keys().next().unwrap().clone();
    let shard = draft.shards.remove(&old).unwrap();
    let metadata = draft.metadata.remove(&old).unwrap();
    let new = "renamed.safetensors".to_owned();
    draft.shards.insert(new.clone(), shard);
    draft.metadata.insert(new.clone(), metadata);
    let (source, problems) = draft.open();
    let rules = [audit::rule("IX001").unwrap()];
    let report = look(&source, problems, Depth::Headers);
    let (all, problems) =
        Checkpoint::survey_files(Path::new(source.name()), &Limits::default()).unwrap();
    assert!(are_unlisted_needed(&report, &rules, &all));
    let wide = look(&all, problems, Depth::Headers);
    let changes = repair_unlisted(&wide, &rules, source.index().unwrap());
    assert!(changes.refused.is_empty(), "{:?}", changes.refused);
    let index = changes.index.unwrap();
    assert!(index.weight_map.values().any(|file| *file == new));
    assert_eq!(index.weight_map.len(), all.tensors().len());
    // What is in no file is lost, and nothing makes up for it.
    draft.shards.get_mut(&new).unwrap().pop();
    let is_rest = !draft.shards[&new].is_empty();
    let (all, problems) =
        Checkpoint::survey_files(Path::new(draft.open().0.name()), &Limits::default()).unwrap();
    let wide = look(&all, problems, Depth::Headers);
    let changes = repair_unlisted(&wide, &rules, source.index().unwrap());
    assert!(is_rest && changes.refused[0].text.contains("is missing"));
}

#[test]
fn a_broken_shard_is_refused_whatever_is_to_be_repaired() {
    let mut draft = with_a_wrong_total();
    let file = draft.shards.keys().next().unwrap().clone();
    let mut bytes = draft.bytes(&file);
    bytes.truncate(bytes.len() - 1);
    draft.raw.insert(file.clone(), bytes);
    let (source, problems) = draft.open();
    for id in repairable() {
        let (again, rule) = (problems_again(&draft), audit::rule(id).unwrap());
        let changes = audit::repair(&look(&source, again, rule.depth()), &[rule]);
        let first = changes.refused.first().unwrap();
        assert!(
            first.text.contains(&file) && first.text.contains("truncated"),
            "{}",
            first.text
        );
        assert!(changes.is_empty());
    }
    assert!(!problems.is_empty());
}

fn problems_again(draft: &Draft) -> Vec<ContainerError> {
    draft.open().1
}

#[test]
fn what_cannot_be_repaired_has_a_reason() {
    let others: Vec<_> = all_rules().filter(|rule| !is_repairable(rule)).collect();
    assert!(others.len() > 30);
    for rule in others {
        assert!(why_not(rule).len() > 20, "{}", rule.id);
    }
}
