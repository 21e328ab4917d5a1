//! Lists of modules that are left dense, written from what is quantized.
//!
//! As little as possible changes: an entry goes if it names nothing, or a module that is quantized; what else it named and is dense
//! is then named by itself; and a dense module that no entry names gets one.

use std::collections::BTreeSet;

use safequant_schemes::Settings;
use serde_json::{Map, Value};

use super::format::located;
use super::{DocumentAction, Work};
use crate::ignore::{Entry, IgnoreList, lists, method_of};
use crate::inventory::broken_modules;
use crate::{Finding, Subject};

/// A list, and what becomes of it.
struct Rewritten<'a> {
    /// The object that holds it, and where that is.
    holder: &'a Map<String, Value>,
    document: String,
    path: Vec<String>,
    settings: &'a Settings,
    list: Option<IgnoreList>,
    key: &'static str,
    removed: BTreeSet<String>,
    added: BTreeSet<String>,
}

/// Repairs all lists.
pub(super) fn rewrite_lists(work: &mut Work<'_>, findings: &[&Finding]) {
    let subject = &work.report.subject;
    let mut all: Vec<Rewritten<'_>> = lists(subject)
        .into_iter()
        .filter_map(|list| Rewritten::of(subject, list))
        .collect();
    let quantized: BTreeSet<&str> = findings
        .iter()
        .filter(|finding| finding.rule == "QC010")
        .filter_map(|finding| finding.place.module.as_deref())
        .collect();
    let mut dense = dense_modules(subject);
    dense.retain(|module| !quantized.contains(module));
    let mut refused = Vec::new();
    for finding in findings {
        let module = finding.place.module.as_deref();
        let is_done = match (finding.rule, module) {
            ("QC010", Some(module)) => unlist(&mut all, module),
            ("QC011", Some(module)) => enlist(subject, &mut all, module),
            ("QC012", _) => remove(&mut all, finding),
            _ => false,
        };
        if !is_done {
            let what = module.unwrap_or(&finding.found);
            refused.push((finding.rule, format!("{what}: its list was not found")));
        }
    }
    for list in &mut all {
        list.keep_dense(&dense);
    }
    all.retain(|list| !list.removed.is_empty() || !list.added.is_empty());
    let edits: Vec<_> = all.iter().flat_map(Rewritten::edits).collect();
    let reasons: Vec<_> = all.iter().flat_map(Rewritten::reasons).collect();
    for (rule, why) in refused {
        work.refuse(rule, why);
    }
    // A change that no other rule asks for follows from what QC010 has found.
    let asks = |rule: &str, name: &str| {
        let mut own = findings.iter().filter(|finding| finding.rule == rule);
        own.any(|finding| finding.found == name || finding.place.module.as_deref() == Some(name))
    };
    for (name, text) in reasons {
        let mut rules = ["QC011", "QC012"].into_iter();
        let rule = rules.find(|rule| asks(rule, &name)).unwrap_or("QC010");
        work.reason(rule, text);
    }
    for (document, path, action) in edits {
        work.edit(&document, path, action);
    }
}

/// Modules with a plain weight of at least two dimensions, but for those whose other tensors say that it is quantized.
fn dense_modules<'a>(subject: &'a Subject<'_>) -> Vec<&'a str> {
    let plain = subject.model.plain.iter();
    let broken = broken_modules(subject);
    let matrices = plain.filter_map(|name| {
        let module = name.strip_suffix(".weight")?;
        let info = subject.headers.tensor(name)?;
        (info.shape.len() > 1 && !broken.contains(module)).then_some(module)
    });
    matrices.collect()
}

/// Takes every entry away by which some reader leaves the module dense.
fn unlist(all: &mut [Rewritten<'_>], module: &str) -> bool {
    let mut is_done = false;
    for rewritten in all {
        let Some(list) = &rewritten.list else {
            continue;
        };
        if list.entry_for_all(module).is_none() {
            continue;
        }
        let taken = list
            .entries
            .iter()
            .filter(|entry| is_taken(list, entry, module));
        rewritten
            .removed
            .extend(taken.map(|entry| entry.text.clone()));
        is_done = true;
    }
    is_done
}

/// Whether some reader takes the entry for the module.
fn is_taken(list: &IgnoreList, entry: &Entry, module: &str) -> bool {
    let mut readers = list.readers.iter();
    readers.any(|reader| entry.matches(reader.semantics, module))
}

/// Takes the entry away that a finding is about.
fn remove(all: &mut [Rewritten<'_>], finding: &Finding) -> bool {
    let mut is_done = false;
    for rewritten in all {
        let Some(list) = &rewritten.list else {
            continue;
        };
        let is_here = finding.place.file.as_deref() == Some(list.file())
            && list.entries.iter().any(|entry| entry.text == finding.found);
        if is_here {
            rewritten.removed.insert(finding.found.clone());
            is_done = true;
        }
    }
    is_done
}

/// Puts a module on a list of every document whose method has one.
fn enlist<'a>(subject: &'a Subject<'_>, all: &mut Vec<Rewritten<'a>>, module: &str) -> bool {
    let mut is_done = false;
    for settings in &subject.settings {
        let Some(usual) = usual_key(settings) else {
            continue;
        };
        let of_settings = |list: &Rewritten<'_>| std::ptr::eq(list.settings, settings);
        let usual_first = all
            .iter()
            .position(|list| of_settings(list) && list.key == usual);
        let at = usual_first.or_else(|| all.iter().position(of_settings));
        let at = at.unwrap_or_else(|| {
            all.push(Rewritten::new(settings, usual));
            all.len() - 1
        });
        if let Some(list) = all.get_mut(at) {
            list.added.insert(module.to_owned());
            is_done = true;
        }
    }
    is_done
}

/// The key under which a method's readers look for the list.
fn usual_key(settings: &Settings) -> Option<&'static str> {
    match method_of(settings).as_str() {
        "compressed-tensors" => Some("ignore"),
        "fp8" | "fbgemm_fp8" | "awq" => Some("modules_to_not_convert"),
        "gptq" => Some("dynamic"),
        name if name.starts_with("modelopt") => {
            let is_own = settings.place.starts_with("hf_quant_config");
            Some(if is_own { "exclude_modules" } else { "ignore" })
        }
        _ => None,
    }
}

impl<'a> Rewritten<'a> {
    /// A list that is there, with the object that holds it.
    fn of(subject: &'a Subject<'_>, list: IgnoreList) -> Option<Self> {
        let mut all = subject.settings.iter();
        let settings = all.find(|settings| settings.place == list.place)?;
        let (document, mut path) = located(&settings.place);
        let nested = settings.map.get("quantization").and_then(Value::as_object);
        let texts: Vec<&str> = list
            .entries
            .iter()
            .map(|entry| entry.text.as_str())
            .collect();
        let holds = |map: &Map<String, Value>| match list.key {
            "dynamic" | "false" => true,
            key => {
                let items = map.get(key).and_then(Value::as_array);
                items.is_some_and(|items| {
                    items
                        .iter()
                        .filter_map(Value::as_str)
                        .eq(texts.iter().copied())
                })
            }
        };
        let holder = match nested {
            _ if holds(&settings.map) => &settings.map,
            Some(nested) if holds(nested) => {
                path.push("quantization".to_owned());
                nested
            }
            Some(_) | None => return None,
        };
        Some(Self {
            holder,
            document,
            path,
            settings,
            key: list.key,
            list: Some(list),
            removed: BTreeSet::new(),
            added: BTreeSet::new(),
        })
    }

    /// A list that is not there yet.
    fn new(settings: &'a Settings, key: &'static str) -> Self {
        let (document, mut path) = located(&settings.place);
        let nested = settings.map.get("quantization").and_then(Value::as_object);
        if nested.is_some() {
            path.push("quantization".to_owned());
        }
        Self {
            holder: nested.unwrap_or(&settings.map),
            document,
            path,
            settings,
            list: None,
            key,
            removed: BTreeSet::new(),
            added: BTreeSet::new(),
        }
    }

    /// Names the dense modules that only entries named which go.
    fn keep_dense(&mut self, dense: &[&str]) {
        let Some(list) = self.list.as_ref().filter(|_| !self.removed.is_empty()) else {
            return;
        };
        let goes = |entry: &&Entry| self.removed.contains(&entry.text);
        let stays = |entry: &&Entry| !self.removed.contains(&entry.text);
        for module in dense {
            let is_named = |entry: &Entry| is_taken(list, entry, module);
            let was_named = list.entries.iter().filter(goes).any(is_named);
            if was_named && !list.entries.iter().filter(stays).any(is_named) {
                self.added.insert((*module).to_owned());
            }
        }
    }

    /// Names of the new entries that are not there already.
    fn new_entries(&self) -> impl Iterator<Item = &String> {
        let is_there = |name: &str| {
            let entries = self.list.iter().flat_map(|list| &list.entries);
            let mut texts = entries.map(|entry| entry.text.as_str());
            texts.any(|text| text == name) && !self.removed.contains(name)
        };
        self.added.iter().filter(move |name| !is_there(name))
    }

    fn edits(&self) -> Vec<(String, Vec<String>, DocumentAction)> {
        let at = |keys: &[&str], action| {
            let mut path = self.path.clone();
            path.extend(keys.iter().map(|key| (*key).to_owned()));
            (self.document.clone(), path, action)
        };
        match self.key {
            "dynamic" => {
                let removed = self.removed.iter();
                let removed = removed
                    .map(|text| at(&["dynamic", &format!("-:{text}")], DocumentAction::Remove));
                let empty = Value::Object(Map::new());
                let has_rules = self.holder.get("dynamic").is_some_and(Value::is_object);
                let holder =
                    (!has_rules).then(|| at(&["dynamic"], DocumentAction::Set(empty.clone())));
                // The first rule that matches wins.
                let added = self.new_entries().map(|name| {
                    let key = format!("-:{}$", escaped(name));
                    at(&["dynamic", &key], DocumentAction::SetFirst(empty.clone()))
                });
                removed.chain(holder).chain(added).collect()
            }
            "false" => {
                let removed = self
                    .removed
                    .iter()
                    .map(|text| at(&[text], DocumentAction::Remove));
                let added = self.new_entries();
                let added = added.map(|name| at(&[name], DocumentAction::Set(false.into())));
                removed.chain(added).collect()
            }
            key => vec![at(&[key], DocumentAction::Set(self.whole(key)))],
        }
    }

    /// The whole new list.
    fn whole(&self, key: &str) -> Value {
        let old = self.holder.get(key).and_then(Value::as_array);
        let stays = |item: &&Value| {
            item.as_str()
                .is_none_or(|text| !self.removed.contains(text))
        };
        let kept = old.into_iter().flatten().filter(stays).cloned();
        let added = self.new_entries().map(|name| name.as_str().into());
        Value::Array(kept.chain(added).collect())
    }

    /// What changes, and one line about it.
    fn reasons(&self) -> Vec<(String, String)> {
        let place = format!("{}.{}", self.settings.place, self.key);
        let removed = self.removed.iter();
        let removed = removed.map(|text| (text.clone(), format!("{place}: {text} goes")));
        let added = self.new_entries().map(|name| {
            let text = format!("{place}: {name} is dense, and listed now");
            (name.clone(), text)
        });
        removed.chain(added).collect()
    }
}

/// A name as a regular expression.
fn escaped(name: &str) -> String {
    let mut regex = String::new();
    for c in name.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}
