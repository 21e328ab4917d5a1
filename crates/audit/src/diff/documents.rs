//! JSON documents and the metadata of files, as trees: how they are formatted is no difference.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Checkpoint, CheckpointKind, GgufMetadata, GgufValue};
use safequant_schemes::{Headers, config};
use serde_json::{Map, Value};

/// Changes of one document that are kept; the others are only counted.
const MAX_CHANGES: usize = 10_000;

/// The documents that a checkpoint has even where it is given as a single file.
const OF_A_FILE: [&str; 4] = [
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
];

/// The name that stands for what the headers of the files hold.
const METADATA: &str = "metadata of the files";

/// A document that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentDiff {
    /// Its name, or `metadata of the files`.
    pub name: String,
    /// Whether A and B have it.
    pub found: [bool; 2],
    /// How many values differ; 0 where only one has it.
    pub n_changes: u64,
    /// These values, at most 10,000, in the order of the document.
    pub changes: Vec<DocumentChange>,
}

/// A value that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentChange {
    /// Keys and indices on the way to it: `quantization_config.ignore[0]`; empty for the document itself.
    pub path: String,
    /// A's, if it has one.
    pub a: Option<Value>,
    /// B's, if it has one.
    pub b: Option<Value>,
}

/// All documents, by name.
pub(super) fn compare(
    a: &Checkpoint,
    b: &Checkpoint,
    notes: &mut Vec<String>,
) -> Vec<DocumentDiff> {
    let [of_a, of_b] = [a, b].map(names);
    let mut all: Vec<&str> = of_a.union(&of_b).copied().collect();
    // A file that is given alone says nothing about what lies beside others.
    if is_alone(a) != is_alone(b) {
        let before = all.len();
        all.retain(|name| of_a.contains(name) && of_b.contains(name));
        if all.len() < before {
            let which = if is_alone(a) { "A" } else { "B" };
            notes.push(format!(
                "{} documents of the other checkpoint are not compared: {which} is a single file",
                before - all.len()
            ));
        }
    }
    let documents = all
        .into_iter()
        .filter_map(|name| document(name, a.document(name), b.document(name)));
    documents.chain(metadata(a, b)).collect()
}

fn names(checkpoint: &Checkpoint) -> BTreeSet<&str> {
    let listed = checkpoint.sidecars().iter().map(|s| s.name.as_str());
    let names = listed.chain(OF_A_FILE);
    names
        .filter(|name| checkpoint.document(name).is_some())
        .collect()
}

fn is_alone(checkpoint: &Checkpoint) -> bool {
    checkpoint.kind() == CheckpointKind::File && checkpoint.sidecars().is_empty()
}

/// One document; `None` where both say the same.
fn document(name: &str, a: Option<&[u8]>, b: Option<&[u8]>) -> Option<DocumentDiff> {
    let mut found = DocumentDiff {
        name: name.to_owned(),
        found: [a.is_some(), b.is_some()],
        n_changes: 0,
        changes: Vec::new(),
    };
    let (Some(a), Some(b)) = (a, b) else {
        return Some(found);
    };
    if a == b {
        return None;
    }
    match (config::parse(name, a), config::parse(name, b)) {
        (Ok(a), Ok(b)) => found.values("", Some(&a), Some(&b)),
        // What is no JSON has no paths.
        (a, b) => found.note("", a.ok().as_ref(), b.ok().as_ref()),
    }
    (found.n_changes > 0).then_some(found)
}

/// What stands in the headers.
fn metadata(a: &Checkpoint, b: &Checkpoint) -> Option<DocumentDiff> {
    let [a, b] = [a, b].map(|checkpoint| Value::Object(entries(checkpoint)));
    let mut found = DocumentDiff {
        name: METADATA.to_owned(),
        found: [true, true],
        n_changes: 0,
        changes: Vec::new(),
    };
    found.values("", Some(&a), Some(&b));
    (found.n_changes > 0).then_some(found)
}

fn entries(checkpoint: &Checkpoint) -> Map<String, Value> {
    let mut entries = BTreeMap::new();
    for (key, value) in Headers::new(checkpoint).all_metadata() {
        let value = || Value::String(value.to_owned());
        entries.entry(key.to_owned()).or_insert_with(value);
    }
    for (key, value) in checkpoint.gguf().into_iter().flat_map(GgufMetadata::iter) {
        entries.insert(key.to_owned(), of_gguf(value));
    }
    entries.into_iter().collect()
}

fn of_gguf(value: GgufValue<'_>) -> Value {
    match value {
        GgufValue::U8(value) => value.into(),
        GgufValue::I8(value) => value.into(),
        GgufValue::U16(value) => value.into(),
        GgufValue::I16(value) => value.into(),
        GgufValue::U32(value) => value.into(),
        GgufValue::I32(value) => value.into(),
        GgufValue::U64(value) => value.into(),
        GgufValue::I64(value) => value.into(),
        GgufValue::F32(value) => value.into(),
        GgufValue::F64(value) => value.into(),
        GgufValue::Bool(value) => value.into(),
        GgufValue::String(text) => String::from_utf8_lossy(text).into(),
        GgufValue::Array(array) => array.iter().map(of_gguf).collect(),
    }
}

impl DocumentDiff {
    fn note(&mut self, path: &str, a: Option<&Value>, b: Option<&Value>) {
        self.n_changes += 1;
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(DocumentChange {
                path: path.to_owned(),
                a: a.cloned(),
                b: b.cloned(),
            });
        }
    }

    /// Goes down as long as both have the same kind. How deep JSON may be nested is the parser's limit.
    fn values(&mut self, path: &str, a: Option<&Value>, b: Option<&Value>) {
        match (a, b) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => self.objects(path, a, b),
            (Some(Value::Array(a)), Some(Value::Array(b))) => self.lists(path, a, b),
            (Some(a), Some(b)) if is_same(a, b) => {}
            (None, None) => {}
            _ => self.note(path, a, b),
        }
    }

    fn objects(&mut self, path: &str, a: &Map<String, Value>, b: &Map<String, Value>) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let dot = if path.is_empty() { "" } else { "." };
            self.values(&format!("{path}{dot}{key}"), a.get(key), b.get(key));
        }
    }

    /// What both begin and end with is left out, so that an entry that was put in is one difference.
    fn lists(&mut self, path: &str, a: &[Value], b: &[Value]) {
        let pairs = || a.iter().zip(b);
        let head = pairs().take_while(|(a, b)| a == b).count();
        let short = a.len().min(b.len()) - head;
        let ends = a.iter().rev().zip(b.iter().rev()).take(short);
        let tail = if a.len() == b.len() {
            0
        } else {
            ends.take_while(|(a, b)| a == b).count()
        };
        let middle = |list: &[Value]| head..list.len() - tail;
        let (of_a, of_b) = (middle(a), middle(b));
        for at in head..of_a.end.max(of_b.end) {
            let entry = |list: &'_ [Value], range: &std::ops::Range<usize>| {
                list.get(at).filter(|_| range.contains(&at)).cloned()
            };
            let (a, b) = (entry(a, &of_a), entry(b, &of_b));
            self.values(&format!("{path}[{at}]"), a.as_ref(), b.as_ref());
        }
    }
}

/// Whether two values are the same; `1` and `1.0` are.
fn is_same(a: &Value, b: &Value) -> bool {
    let is_float = |value: &Value| value.is_f64();
    a == b
        || (is_float(a) != is_float(b)
            && a.as_f64().is_some_and(|a| {
                b.as_f64()
                    .is_some_and(|b| a.total_cmp(&b).is_eq() && a.abs() < 9e15)
            }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(a: &Value, b: &Value) -> Vec<String> {
        let text = |value: &Value| value.to_string().into_bytes();
        let found = document("config.json", Some(&text(a)), Some(&text(b)));
        let changes = found.map(|found| found.changes).unwrap_or_default();
        changes.into_iter().map(|change| change.path).collect()
    }

    #[test]
    fn paths_lead_to_what_differs() {
        let a = json!({"x": 1, "q": {"bits": 4, "list": [{"a": 1}, {"a": 2}]}, "gone": null});
        let b = json!({"x": 1.0, "q": {"bits": 8, "list": [{"a": 1}, {"a": 3}]}, "new": "n"});
        assert_eq!(paths(&a, &b), ["gone", "new", "q.bits", "q.list[1].a"]);
        assert!(paths(&a, &a).is_empty());
    }

    #[test]
    fn an_entry_put_into_a_list_is_one_difference() {
        let a = json!({"ignore": ["a", "b", "c"]});
        let b = json!({"ignore": ["a", "x", "b", "c"]});
        assert_eq!(paths(&a, &b), ["ignore[1]"]);
        assert_eq!(paths(&b, &a), ["ignore[1]"]);
        let all = json!({"ignore": []});
        assert_eq!(paths(&a, &all), ["ignore[0]", "ignore[1]", "ignore[2]"]);
        let repeated = json!({"ignore": ["a", "b", "c", "a", "b", "c"]});
        assert_eq!(paths(&a, &repeated).len(), 3);
    }

    #[test]
    fn formatting_is_no_difference() {
        let (a, b) = (
            &b"{\"a\": 1e-05, \"b\": [1]}"[..],
            &b"{\n \"b\":[1],\"a\":0.00001}"[..],
        );
        assert_eq!(document("config.json", Some(a), Some(b)), None);
        let only = document("config.json", Some(a), None).unwrap();
        assert_eq!((only.found, only.n_changes), ([true, false], 0));
    }

    #[test]
    fn what_is_no_json_differs_as_a_whole() {
        let found = document("config.json", Some(b"{"), Some(b"{}")).unwrap();
        assert_eq!(found.n_changes, 1);
        assert_eq!(found.changes[0].path, "");
        assert_eq!(found.changes[0].a, None);
    }
}
