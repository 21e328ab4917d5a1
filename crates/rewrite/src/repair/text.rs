//! Documents before and after.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::Checkpoint;
use serde_json::{Map, Value, json};

use super::{ChangedDocument, Edit, EditAction, Edits, NewIndex, beside};
use crate::{Error, splice};

/// All documents that change.
pub(super) fn documents(
    checkpoint: &Checkpoint,
    edits: &Edits,
) -> Result<Vec<ChangedDocument>, Error> {
    let names: BTreeSet<&str> = edits
        .documents
        .iter()
        .map(|edit| edit.document.as_str())
        .collect();
    let mut documents = Vec::new();
    for name in names {
        let bytes = checkpoint.document(name).unwrap_or_default();
        let old = std::str::from_utf8(bytes).map_err(|_| Error::DocumentEncoding {
            file: name.to_owned(),
        })?;
        let own = edits.documents.iter().filter(|edit| edit.document == name);
        let mut new = old.to_owned();
        for edit in own {
            new = edited(&new, edit)?;
        }
        documents.push(ChangedDocument {
            name: name.to_owned(),
            old: Some(old.to_owned()),
            new,
        });
    }
    if let Some(index) = &edits.index {
        let old = beside(checkpoint, &index.name, checkpoint.limits().max_index_bytes);
        let old = old.and_then(|bytes| String::from_utf8(bytes).ok());
        let new = old.as_deref().and_then(|old| with_index(old, index).ok());
        documents.push(ChangedDocument {
            name: index.name.clone(),
            new: new.unwrap_or_else(|| fresh_index(index)),
            old,
        });
    }
    documents.retain(|document| document.old.as_ref() != Some(&document.new));
    Ok(documents)
}

/// The text with one change; every other byte stays.
fn edited(text: &str, edit: &Edit) -> Result<String, Error> {
    let file = edit.document.as_str();
    let problem = |problem, offset| Error::Document {
        file: file.to_owned(),
        problem,
        offset,
    };
    let Some((key, parents)) = edit.path.split_last() else {
        return Err(problem("an edit without a key", 0));
    };
    let mut start = 0;
    for parent in parents {
        let (members, end) = splice::members(file, text, start)?;
        let found = members.into_iter().find(|member| member.key == *parent);
        start = found
            .ok_or_else(|| problem("a member is not there", end))?
            .value
            .start;
    }
    match &edit.action {
        EditAction::Remove => splice::remove(file, text, start, key),
        EditAction::Set(value) => splice::set(file, text, start, key, value),
        EditAction::SetFirst(value) => {
            let (members, _) = splice::members(file, text, start)?;
            let Some(first) = members.first() else {
                return splice::set(file, text, start, key, value);
            };
            let at = first.span.start;
            let before = text.get(start..at).unwrap_or_default();
            let space = before.split_once('{').map_or("", |(_, space)| space);
            let space = if space.is_empty() { " " } else { space };
            let mut new = text.to_owned();
            new.insert_str(
                at,
                &format!("{}: {value},{space}", Value::from(key.as_str())),
            );
            Ok(new)
        }
    }
}

/// An index with what it should say; entries that stay keep their order.
fn with_index(old: &str, index: &NewIndex) -> Result<String, Error> {
    let file = index.name.as_str();
    let (members, _) = splice::members(file, old, 0)?;
    let of = |key: &str| members.iter().find(|member| member.key == key);
    let is_object = |at: usize| old.as_bytes().get(at) == Some(&b'{');
    let mut order: Vec<String> = Vec::new();
    if let Some(map) = of("weight_map").filter(|map| is_object(map.value.start)) {
        let (entries, _) = splice::members(file, old, map.value.start)?;
        order = entries.into_iter().map(|entry| entry.key).collect();
    }
    let map = ordered(&index.weight_map, &order);
    let mut new = splice::set(file, old, 0, "weight_map", &Value::Object(map))?;
    let Some(total) = index.total_size else {
        return Ok(new);
    };
    let (members, _) = splice::members(file, &new, 0)?;
    let metadata = members.iter().find(|member| member.key == "metadata");
    let metadata = metadata.map(|member| member.value.start);
    let at = metadata.filter(|at| new.as_bytes().get(*at) == Some(&b'{'));
    new = match at {
        Some(at) => splice::set(file, &new, at, "total_size", &total.into())?,
        None => splice::set(file, &new, 0, "metadata", &json!({ "total_size": total }))?,
    };
    Ok(new)
}

/// Entries in the order of the old index, new ones last; sorted if the old ones were.
fn ordered(entries: &BTreeMap<String, String>, order: &[String]) -> Map<String, Value> {
    let value = |(tensor, shard): (&String, &String)| (tensor.clone(), shard.as_str().into());
    if order.is_sorted() {
        return entries.iter().map(value).collect();
    }
    let mut map: Map<String, Value> = order
        .iter()
        .filter_map(|tensor| entries.get_key_value(tensor).map(value))
        .collect();
    for entry in entries {
        let (tensor, shard) = value(entry);
        map.entry(tensor).or_insert(shard);
    }
    map
}

/// An index where there was none that could be read.
fn fresh_index(index: &NewIndex) -> String {
    let metadata = match index.total_size {
        Some(total) => json!({ "total_size": total }),
        None => json!({}),
    };
    let map = ordered(&index.weight_map, &[]);
    format!("{:#}", json!({ "metadata": metadata, "weight_map": map }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(path: &[&str], action: EditAction) -> Edit {
        Edit {
            document: "c".to_owned(),
            path: path.iter().map(|key| (*key).to_owned()).collect(),
            action,
        }
    }

    #[test]
    fn members_deep_inside_change_alone() {
        let text =
            "{\n  \"q\": {\n    \"ignore\": [\n      \"a\"\n    ],\n    \"eps\": 1e-05\n  }\n}\n";
        let set = edit(&["q", "ignore"], EditAction::Set(json!(["a", "b"])));
        assert_eq!(
            edited(text, &set).unwrap(),
            "{\n  \"q\": {\n    \"ignore\": [\n      \"a\",\n      \"b\"\n    ],\n    \"eps\": 1e-05\n  }\n}\n"
        );
        let first = edit(&["q", "new"], EditAction::SetFirst(json!({})));
        assert!(
            edited(text, &first)
                .unwrap()
                .starts_with("{\n  \"q\": {\n    \"new\": {},\n    \"ignore\"")
        );
        let gone = edit(&["x", "ignore"], EditAction::Remove);
        assert!(edited(text, &gone).is_err());
    }

    #[test]
    fn an_index_keeps_what_else_it_says() {
        let old = "{\"metadata\": {\"total_size\": 1, \"who\": \"me\"}, \"weight_map\": {\"b\": \"1\", \"a\": \"1\"}}";
        let index = NewIndex {
            name: "i".to_owned(),
            weight_map: [("a", "2"), ("b", "1"), ("c", "2")]
                .map(|(tensor, shard)| (tensor.to_owned(), shard.to_owned()))
                .into(),
            total_size: Some(7),
        };
        assert_eq!(
            with_index(old, &index).unwrap(),
            "{\"metadata\": {\"total_size\": 7, \"who\": \"me\"}, \"weight_map\": {\"b\":\"1\",\"a\":\"2\",\"c\":\"2\"}}"
        );
    }
}
