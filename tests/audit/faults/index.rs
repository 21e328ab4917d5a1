//! Faults for the rules of `crates/audit/src/rules/index`.

use serde_json::{Map, Value, json};

use super::{Fault, Planted, Random, weights};
use crate::audit::draft::{Beside, Draft, INDEX, SHARDS};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("IX001", "shard-is-gone", |draft, random| {
        sharded(draft)?;
        let file = shard(draft, random)?;
        draft.shards.remove(&file);
        Some(Planted(file))
    }),
    Fault::new(
        "IX001",
        "index-names-a-tensor-that-is-not",
        |draft, random| {
            sharded(draft)?;
            let file = shard(draft, random)?;
            edit_map(draft, |map| {
                map.insert("model.old.weight".to_owned(), file.into());
            });
            Some(Planted("model.old.weight".to_owned()))
        },
    ),
    Fault::new("IX001", "index-names-the-other-shard", |draft, random| {
        sharded(draft)?;
        let (name, file) = tensor(draft, random)?;
        let other = draft.shards.keys().find(|other| **other != file)?.clone();
        edit_map(draft, |map| drop(map.insert(name.clone(), other.into())));
        Some(Planted(name))
    }),
    Fault::new("IX002", "index-forgets-a-tensor", |draft, random| {
        sharded(draft)?;
        let (name, _) = tensor(draft, random)?;
        edit_map(draft, |map| drop(map.remove(&name)));
        let is_left = draft.names().len() > 1;
        is_left.then_some(Planted(name))
    }),
    Fault::new("IX003", "tensor-in-both-shards", |draft, random| {
        sharded(draft)?;
        copy_to_other(draft, random)
    }),
    Fault::new("IX004", "file-of-another-save", |draft, _| {
        sharded(draft)?;
        let stray = "consolidated.safetensors";
        let (header, data) = (b"{}", b"");
        draft.put(stray, header, data);
        draft.lay_out();
        Some(Planted(stray.to_owned()))
    }),
    Fault::new("IX005", "total-size-of-another-model", |draft, random| {
        sharded(draft)?;
        let size = *random.choose(&[1_u64, 708_000_000_000])?;
        draft.edit(INDEX, |index| index["metadata"]["total_size"] = size.into());
        Some(Planted(INDEX.to_owned()))
    }),
    Fault::new("IX006", "one-of-two-files", |draft, random| {
        without_index(draft)?;
        draft.lay_out();
        let file = shard(draft, random)?;
        draft.shards.remove(&file);
        Some(Planted(file))
    }),
    Fault::new("IX006", "names-of-another-split", |draft, _| {
        sharded(draft)?;
        let (old, new) = (SHARDS[1], "model-00002-of-00003.safetensors");
        let shard = draft.shards.remove(old)?;
        draft.shards.insert(new.to_owned(), shard);
        edit_map(draft, |map| {
            for file in map.values_mut().filter(|file| *file == old) {
                *file = new.into();
            }
        });
        Some(Planted("model-00001-of-00003.safetensors".to_owned()))
    }),
    Fault::new("IX007", "tensor-in-both-files", |draft, random| {
        without_index(draft)?;
        copy_to_other(draft, random)
    }),
    Fault::new("IX008", "two-unusual-indexes", |draft, _| {
        sharded(draft)?;
        let index = draft.documents.remove(INDEX)?;
        let beside = draft.lay_out();
        for name in ["a.safetensors.index.json", "b.safetensors.index.json"] {
            beside.insert(name.to_owned(), Beside::File(index.clone()));
        }
        Some(Planted("a.safetensors.index.json".to_owned()))
    }),
    Fault::new("IX009", "index-of-nothing", |draft, _| {
        sharded(draft)?;
        draft.edit(INDEX, |index| index["weight_map"] = json!({}));
        Some(Planted(INDEX.to_owned()))
    }),
    Fault::new("IX009", "index-without-a-map", |draft, _| {
        sharded(draft)?;
        draft.edit(INDEX, |index| {
            if let Some(index) = index.as_object_mut() {
                index.remove("weight_map");
            }
        });
        Some(Planted(INDEX.to_owned()))
    }),
    Fault::new("IX010", "companion-in-the-other-shard", |draft, random| {
        sharded(draft)?;
        let weights = weights(draft);
        let weight = random.choose(&weights)?;
        let names: Vec<&str> = weight.parts.iter().map(|part| part.name.as_str()).collect();
        let [name, _, ..] = names[..] else {
            return None;
        };
        let home = home(draft, name)?;
        let is_together = names
            .iter()
            .all(|n| self::home(draft, n) == Some(home.clone()));
        let other = draft.shards.keys().find(|other| **other != home)?.clone();
        draft.move_to(name, &other)?;
        is_together.then(|| Planted(weight.module.clone()))
    }),
];

/// Makes sure that there is an index.
fn sharded(draft: &mut Draft) -> Option<()> {
    let has_index = draft.documents.contains_key(INDEX);
    if has_index { Some(()) } else { draft.split() }
}

/// Two shards and no index.
fn without_index(draft: &mut Draft) -> Option<()> {
    draft.documents.remove(INDEX);
    if draft.shards.len() == 1 {
        draft.split()?;
    }
    draft.documents.remove(INDEX);
    Some(())
}

/// A random shard.
fn shard(draft: &Draft, random: &mut Random) -> Option<String> {
    let files: Vec<&String> = draft.shards.keys().collect();
    random.choose(&files).map(|file| (*file).clone())
}

/// A random tensor and its shard.
fn tensor(draft: &Draft, random: &mut Random) -> Option<(String, String)> {
    let name = random.choose(&draft.names())?.clone();
    let home = home(draft, &name)?;
    Some((name, home))
}

/// The shard of a tensor.
fn home(draft: &Draft, name: &str) -> Option<String> {
    let holds = |(file, shard): (&String, &crate::audit::draft::Shard)| {
        let has = shard.iter().any(|(n, _)| n == name);
        has.then(|| file.clone())
    };
    draft.shards.iter().find_map(holds)
}

fn edit_map(draft: &mut Draft, f: impl FnOnce(&mut Map<String, Value>)) {
    draft.edit(INDEX, |index| {
        if let Some(map) = index["weight_map"].as_object_mut() {
            f(map);
        }
    });
}

/// Stores a random tensor in another shard as well.
fn copy_to_other(draft: &mut Draft, random: &mut Random) -> Option<Planted> {
    let (name, file) = tensor(draft, random)?;
    let dense = draft.tensor(&name)?.clone();
    let mut others = draft.shards.iter_mut().filter(|(other, _)| **other != file);
    let (_, shard) = others.next()?;
    shard.push((name.clone(), dense));
    Some(Planted(name))
}
