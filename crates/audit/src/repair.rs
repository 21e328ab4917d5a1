//! What should change in a checkpoint so that findings go away, where its own tensors decide it.
//!
//! This says *what* changes, as plain data; it writes nothing. Weights are never among the changes: a repair edits documents, the
//! index, headers, and the names of scales. What the tensors cannot decide is refused, with the reason.

mod format;
mod ignore;
mod shards;

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Checkpoint, Index};
use serde_json::Value;

use crate::{Family, Finding, Report, Rule};

/// What should change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Repair {
    /// Changes of documents, in the order in which they are to be made.
    pub documents: Vec<DocumentEdit>,
    /// The index, if it changes.
    pub index: Option<IndexEdit>,
    /// The whole new `__metadata__` of shards, by file name.
    pub metadata: BTreeMap<String, Vec<(String, String)>>,
    /// New names of tensors, by the old ones.
    pub renames: BTreeMap<String, String>,
    /// Copies of tensors that another shard holds byte for byte: (shard, tensor).
    pub dropped: BTreeSet<(String, String)>,
    /// What is done for which rule, one line each.
    pub reasons: Vec<Reason>,
    /// What cannot be done, and why. If there is any, the rest should not be done either.
    pub refused: Vec<Reason>,
}

/// A change of a JSON document.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentEdit {
    /// The document's file name.
    pub document: String,
    /// Keys that lead to the member.
    pub path: Vec<String>,
    /// What becomes of the member.
    pub action: DocumentAction,
}

/// What becomes of a member of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum DocumentAction {
    /// It gets this value; a new one comes last.
    Set(Value),
    /// It is new, and comes first.
    SetFirst(Value),
    /// It goes.
    Remove,
}

/// What an index should say; its other members stay.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexEdit {
    /// Its file name.
    pub name: String,
    /// The shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
    /// `total_size`; `None` if it stays as it is.
    pub total_size: Option<u64>,
}

/// Why something is done, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The rule's id.
    pub rule: &'static str,
    /// One line, which names file, module or tensor.
    pub text: String,
}

impl Repair {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
            && self.index.is_none()
            && self.metadata.is_empty()
            && self.renames.is_empty()
            && self.dropped.is_empty()
    }
}

/// Repairs the findings of some rules.
type Mend = fn(&mut Work<'_>, &[&Finding]);

/// What can be repaired. Rules that change the same thing stand together.
static REPAIRS: &[(&[&str], Mend)] = &[
    (&["IX001", "IX002", "IX009"], shards::rebuild_index),
    (&["IX003", "IX007"], shards::drop_copies),
    (&["IX005"], shards::count_bytes),
    (&["QC010", "QC011", "QC012"], ignore::rewrite_lists),
    (&["QC040"], format::tie_flag),
    (&["QT040"], format::checkpoint_format),
    (&["SC002"], shards::rename_scales),
    (&["ST021", "ST022"], shards::state_format),
];

/// Ids of the rules whose findings can be repaired.
pub fn repairable() -> impl Iterator<Item = &'static str> {
    REPAIRS.iter().flat_map(|(ids, _)| ids.iter().copied())
}

/// Whether findings of this rule can be repaired.
pub fn is_repairable(rule: &Rule) -> bool {
    repairable().any(|id| id == rule.id)
}

/// Why the findings of a rule cannot be repaired.
pub fn why_not(rule: &Rule) -> &'static str {
    match rule.family() {
        Some(Family::Container) => "nothing in the files says what they were before",
        Some(Family::Index) => "files are missing or too many, and no tensor says which are right",
        Some(Family::Config) => "the tensors do not say what the document should",
        Some(Family::Tensors) => {
            "the tensors themselves are wrong, and a repair never changes weights"
        }
        Some(Family::Scales) => {
            "the stored numbers are what they are, and a repair never changes weights"
        }
        Some(Family::Parallel | Family::Runtime) => {
            "it is about where the checkpoint is wanted: convert it, or choose another runtime or degree"
        }
        Some(Family::Provenance) | None => "only whoever made the checkpoint knows",
    }
}

/// What is known while a repair is made.
struct Work<'a> {
    report: &'a Report<'a>,
    repair: Repair,
    /// What is done about the index.
    index: IndexWork,
}

/// What is done about the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum IndexWork {
    /// Nothing, unless tensors get other names.
    #[default]
    Keep,
    /// It gets the number of bytes that it lists.
    Count,
    /// It is written from the shards, under this name.
    Rebuild(String),
}

impl Work<'_> {
    fn reason(&mut self, rule: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.repair.reasons.push(Reason { rule, text });
    }

    fn refuse(&mut self, rule: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.repair.refused.push(Reason { rule, text });
    }

    fn edit(&mut self, document: &str, path: Vec<String>, action: DocumentAction) {
        self.repair.documents.push(DocumentEdit {
            document: document.to_owned(),
            path,
            action,
        });
    }
}

/// What should change so that the findings of these rules go away. Findings of rules that are not among them are left alone;
/// rules that cannot be repaired ([`is_repairable`]) are the caller's to refuse.
///
/// Where [`are_unlisted_needed`], [`repair_unlisted`] is meant.
pub fn repair(report: &Report<'_>, rules: &[&'static Rule]) -> Repair {
    let mut work = Work::new(report, rules);
    work.mend(rules);
    work.repair
}

/// Whether an index is to be written that lists tensors which are not where it says, but in files that it does not name: it is of
/// another save. `all`: the same directory with all its files ([`Checkpoint::survey_files`]).
pub fn are_unlisted_needed(report: &Report<'_>, rules: &[&'static Rule], all: &Checkpoint) -> bool {
    let is_chosen = |id: &str| rules.iter().any(|rule| rule.id == id);
    let named = report.subject.checkpoint;
    let Some(index) = named.index().filter(|_| is_chosen("IX001")) else {
        return false;
    };
    let mut lost = index
        .weight_map
        .iter()
        .filter(|(name, _)| named.tensor(name).is_none());
    lost.any(|(name, _)| all.tensor(name).is_some())
}

/// As [`repair`], of a checkpoint of all files that lie in a directory; `old` is the index that is replaced.
pub fn repair_unlisted(report: &Report<'_>, rules: &[&'static Rule], old: &Index) -> Repair {
    let mut work = Work::new(report, rules);
    shards::rebuild_from_all(&mut work, old);
    work.mend(rules);
    work.repair
}

impl<'a> Work<'a> {
    fn new(report: &'a Report<'a>, rules: &[&'static Rule]) -> Self {
        let mut work = Self {
            report,
            repair: Repair::default(),
            index: IndexWork::Keep,
        };
        shards::refuse_broken(&mut work, rules);
        work
    }

    fn mend(&mut self, rules: &[&'static Rule]) {
        if !self.repair.refused.is_empty() {
            return;
        }
        let is_chosen = |finding: &Finding, ids: &[&str]| {
            ids.contains(&finding.rule) && rules.iter().any(|rule| rule.id == finding.rule)
        };
        for (ids, mend) in REPAIRS {
            let all = self.report.findings.iter();
            let findings: Vec<&Finding> = all.filter(|finding| is_chosen(finding, ids)).collect();
            if !findings.is_empty() {
                mend(self, &findings);
            }
        }
        shards::write_index(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::all_rules;

    #[test]
    fn what_can_be_repaired_is_a_rule_once() {
        let known: BTreeSet<&str> = all_rules().map(|rule| rule.id).collect();
        let ids: Vec<&str> = repairable().collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len());
        assert!(unique.is_subset(&known), "{unique:?}");
        assert!(ids.len() > 10);
    }
}
