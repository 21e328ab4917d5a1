//! QC012: an entry of an ignore list names no module.

use std::collections::BTreeSet;

use crate::ignore::{Entry, IgnoreList, MAX_TRIES, Semantics, is_component_run, lists, spellings};
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QC012",
    name: "ignore-entry-matches-nothing",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "an entry of an ignore list names no module of the checkpoint",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every entry of a list of modules that are left dense names a module, or something around one, under some spelling (with and without
`model.` and `language_model.`) and to some reader. Names of classes are left alone, and so is `lm_head`, which models with tied
embeddings do not store.

## Why it matters
The entry was meant for something: a renamed module (`.conv.` that became `.short_conv.`), or a glob where names are compared as they
are. What it was meant for is then built quantized: `size_n = 8608 is not divisible by tile_n_size = 64` is a vision tower that should
have been skipped.

## What to do
Write the name as the checkpoint has it, or remove the entry.

## References
- sgl-project/sglang#35792, vllm-project/vllm#48508, intel/auto-round#1486, vllm-project/compressed-tensors#866
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let lists = lists(subject);
    if lists.is_empty() {
        return;
    }
    let names = names(subject);
    for list in lists {
        if list.entries.len().saturating_mul(names.len()) > MAX_TRIES {
            continue;
        }
        for entry in &list.entries {
            if !is_exempt(entry) && !matches_any(&list, entry, &names) {
                findings
                    .add(
                        Place::file(list.file()),
                        format!("{}: `{}` names no module", list.path(), entry.text),
                    )
                    .instead("a module of the checkpoint", entry.text.as_str())
                    .help("write the name as the checkpoint has it, or remove the entry");
            }
        }
    }
}

/// All modules, and all that is around them.
fn names<'a>(subject: &'a Subject<'_>) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for tensor in &subject.stored {
        // Tensors of experts without modules of their own are named too.
        let mut name = tensor.info.name.as_str();
        names.insert(tensor.module.module);
        while names.insert(name) {
            let Some((around, _)) = name.rsplit_once('.') else {
                break;
            };
            name = around;
        }
    }
    names
}

/// Classes, and the head that may be tied.
fn is_exempt(entry: &Entry) -> bool {
    let text = &entry.text;
    let is_class =
        !entry.is_pattern() && !text.contains('.') && text.starts_with(char::is_uppercase);
    text.is_empty() || is_class || text.contains("lm_head")
}

fn matches_any(list: &IgnoreList, entry: &Entry, names: &BTreeSet<&str>) -> bool {
    let spelled = spellings(&entry.text);
    if spelled.iter().any(|name| names.contains(name.as_str())) {
        return true;
    }
    let mut readers = list.readers.iter().map(|reader| reader.semantics);
    readers.any(|semantics| names.iter().any(|name| is_match(entry, semantics, name)))
}

/// Patterns are tried on other spellings too.
fn is_match(entry: &Entry, semantics: Semantics, name: &str) -> bool {
    if entry.matches(semantics, name) {
        return true;
    }
    match semantics {
        Semantics::ExactOrRegex | Semantics::Glob | Semantics::GlobOrSubstring => {
            entry.is_pattern() && spellings(name).iter().any(|n| entry.matches(semantics, n))
        }
        Semantics::Exact
        | Semantics::StartOrEnd
        | Semantics::Components
        | Semantics::Substring
        | Semantics::Regex => is_component_run(name, &entry.text),
    }
}
