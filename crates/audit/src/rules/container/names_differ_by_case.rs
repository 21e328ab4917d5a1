//! ST024: two names differ only by upper and lower case.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST024",
    name: "names-differ-by-case",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "two names differ only by upper and lower case",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No two tensors, and no two shards, have names that are equal once upper and lower case are not told apart. For shards it is a warning.

## Why it matters
Names of tensors are told apart by every reader, so that one of the two is most likely left over from a renaming, and is read by nobody:
`Some weights of the model checkpoint were not used when initializing`. Of two such files one overwrites the other on the file systems of
Windows and macOS, and git says `warning: the following paths have collided`.

## What to do
Remove the tensor that the model's code does not name; rename the shard.

## References
- specs/container/checkpoint.md, P1
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let mut files = HashMap::new();
    for shard in subject.checkpoint.shards() {
        if let Some(other) = files.insert(shard.name.to_lowercase(), &*shard.name) {
            findings
                .add(Place::file(&*shard.name), message(other))
                .help("rename one of the two files, in the index as well")
                .severity = Severity::Warning;
        }
    }
    check_tensors(subject, findings);
}

fn check_tensors(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    // Of two names that differ by case alone, one at least is not in lower case. Most checkpoints have none of those.
    let names = subject
        .stored
        .iter()
        .map(|tensor| tensor.info.name.as_str());
    let lowered: HashSet<String> = names
        .filter_map(|name| match lower(name) {
            Cow::Owned(lower) => Some(lower),
            Cow::Borrowed(_) => None,
        })
        .collect();
    if lowered.is_empty() {
        return;
    }
    let mut first = HashMap::new();
    for shard in subject.checkpoint.shards() {
        for tensor in &shard.header.tensors {
            let name = tensor.name.as_str();
            let Some(lower) = lowered.get(&*lower(name)) else {
                continue;
            };
            let other = first.insert(lower, name);
            if let Some(other) = other.filter(|other| *other != name) {
                findings
                    .add(Place::file(&*shard.name).tensor(name), message(other))
                    .help("remove the one that the model's code does not name");
            }
        }
    }
}

/// The name in lower case; borrowed where it is so already.
fn lower(name: &str) -> Cow<'_, str> {
    let may_change = |byte: u8| byte.is_ascii_uppercase() || !byte.is_ascii();
    if !name.bytes().any(may_change) {
        return Cow::Borrowed(name);
    }
    match name.to_lowercase() {
        lower if lower == name => Cow::Borrowed(name),
        lower => Cow::Owned(lower),
    }
}

fn message(other: &str) -> String {
    format!("{other:?} differs from it only by upper and lower case")
}
