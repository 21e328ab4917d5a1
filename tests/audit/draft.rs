//! A checkpoint taken apart to be spoilt: shards with their tensors, documents, and files as plain bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use safequant::audit::{self, Options, Report, Subject, Wanted};
use safequant::container::{BytesSource, Checkpoint, Limits, ReadAt};
use serde_json::{Map, Value};

use crate::interop::fixture::{Dense, Fixture};

/// Tensors of a shard, in the order of the file.
pub(super) type Shard = Vec<(String, Dense)>;

/// A checkpoint that can be changed in any way.
#[derive(Clone)]
pub(super) struct Draft {
    /// Shards by file name.
    pub(super) shards: BTreeMap<String, Shard>,
    /// `__metadata__` by file name.
    pub(super) metadata: BTreeMap<String, Map<String, Value>>,
    /// Documents by file name; the index is one of them.
    pub(super) documents: BTreeMap<String, Vec<u8>>,
    /// Changes to a shard's bytes, after all others: truncation and the like.
    pub(super) raw: BTreeMap<String, Vec<u8>>,
}

/// The index's name.
pub(super) const INDEX: &str = "model.safetensors.index.json";

impl Draft {
    /// A fixture's parts.
    pub(super) fn of(fixture: &Fixture) -> Self {
        let checkpoint = fixture.open();
        let (mut shards, mut metadata) = (BTreeMap::new(), BTreeMap::new());
        for shard in checkpoint.shards() {
            let of_shard = checkpoint.tensors().filter(|t| t.shard.name == shard.name);
            let mut tensors: Vec<_> = of_shard.collect();
            tensors.sort_by_key(|tensor| tensor.info.range.start);
            let dense = |t: &safequant::container::TensorRef<'_>| Dense {
                dtype: t.dtype(),
                shape: t.shape().to_vec(),
                bytes: t.read_all(u64::MAX).unwrap(),
            };
            let tensors = tensors.iter().map(|t| (t.name().to_owned(), dense(t)));
            let entries = shard.header.metadata.iter().flatten();
            let entries = entries.map(|(key, value)| (key.to_string(), value.as_str().into()));
            metadata.insert(shard.name.clone(), entries.collect());
            shards.insert(shard.name.clone(), tensors.collect());
        }
        Self {
            shards,
            metadata,
            documents: fixture.files().1,
            raw: BTreeMap::new(),
        }
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> Vec<String> {
        let all = self.shards.values().flatten();
        all.map(|(name, _)| name.clone()).collect()
    }

    /// The tensor of this name.
    pub(super) fn tensor(&mut self, name: &str) -> Option<&mut Dense> {
        let mut all = self.shards.values_mut().flatten();
        all.find(|(n, _)| n == name).map(|(_, dense)| dense)
    }

    /// Takes a tensor out; an index forgets it too.
    pub(super) fn remove(&mut self, name: &str) -> Option<Dense> {
        self.edit_index(|map| drop(map.remove(name)));
        self.shards.values_mut().find_map(|shard| {
            let at = shard.iter().position(|(n, _)| n == name)?;
            Some(shard.remove(at).1)
        })
    }

    /// Adds a tensor to the first shard; an index learns of it.
    pub(super) fn add(&mut self, name: &str, dense: Dense) {
        let file = self.shards.keys().next().unwrap().clone();
        self.edit_index(|map| drop(map.insert(name.to_owned(), file.clone().into())));
        self.shards
            .get_mut(&file)
            .unwrap()
            .push((name.to_owned(), dense));
    }

    fn edit_index(&mut self, f: impl FnOnce(&mut Map<String, Value>)) {
        if self.documents.contains_key(INDEX) {
            self.edit(INDEX, |index| {
                if let Some(map) = index["weight_map"].as_object_mut() {
                    f(map);
                }
            });
        }
    }

    /// Changes a JSON document that is there.
    pub(super) fn edit(&mut self, document: &str, f: impl FnOnce(&mut Value)) {
        let bytes = self.documents.get_mut(document).unwrap();
        let mut value = serde_json::from_slice(bytes).unwrap();
        f(&mut value);
        *bytes = serde_json::to_vec(&value).unwrap();
    }

    /// `config.json`, null if there is none.
    pub(super) fn config(&self) -> Value {
        let config = self.documents.get("config.json");
        config.map_or(Value::Null, |bytes| serde_json::from_slice(bytes).unwrap())
    }

    /// Cuts the checkpoint in two shards with an index, if it is one shard of at least two tensors. Companions stay together
    /// as far as they follow each other.
    pub(super) fn split(&mut self) -> Option<()> {
        if self.shards.len() != 1 || self.documents.contains_key(INDEX) {
            return None;
        }
        if self.shards.values().any(|shard| shard.len() < 2) {
            return None;
        }
        let (_, mut first) = self.shards.pop_first()?;
        let metadata = self.metadata.pop_first().map(|(_, entries)| entries);
        let second = first.split_off(first.len() / 2);
        let total: usize = first
            .iter()
            .chain(&second)
            .map(|(_, d)| d.bytes.len())
            .sum();
        let mut map = Map::new();
        for (file, shard) in [(SHARDS[0], first), (SHARDS[1], second)] {
            for (name, _) in &shard {
                map.insert(name.clone(), file.into());
            }
            self.shards.insert(file.to_owned(), shard);
            self.metadata
                .insert(file.to_owned(), metadata.clone().unwrap_or_default());
        }
        let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
        self.documents
            .insert(INDEX.to_owned(), serde_json::to_vec(&index).unwrap());
        Some(())
    }

    /// The bytes of a shard as they are now, to be spoilt in `raw`.
    pub(super) fn bytes(&self, file: &str) -> Vec<u8> {
        match self.raw.get(file) {
            Some(bytes) => bytes.clone(),
            None => safetensors(&self.shards[file], self.metadata.get(file)),
        }
    }

    /// All files as they would lie on a disk.
    pub(super) fn open(&self) -> (Checkpoint, Vec<safequant::container::Error>) {
        let files: std::collections::BTreeSet<&String> =
            self.shards.keys().chain(self.raw.keys()).collect();
        let shards = files.into_iter().map(|file| {
            let source: Arc<dyn ReadAt> = Arc::new(BytesSource(self.bytes(file).into()));
            (file.clone(), source)
        });
        let limits = Limits::default();
        let documents = self.documents.clone();
        Checkpoint::survey_sources("draft", shards.collect(), documents, &limits).unwrap()
    }

    /// Its audit.
    pub(super) fn audit(&self, wanted: &Wanted, options: &Options) -> Report {
        let (checkpoint, problems) = self.open();
        audit::audit(Subject::new(&checkpoint, problems, wanted.clone()), options)
    }
}

/// The names of the shards that [`Draft::split`] makes.
pub(super) const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// A safetensors file, tensors in the order given.
fn safetensors(tensors: &Shard, metadata: Option<&Map<String, Value>>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    if let Some(metadata) = metadata.filter(|metadata| !metadata.is_empty()) {
        header.insert("__metadata__".to_owned(), metadata.clone().into());
    }
    for (name, dense) in tensors {
        let start = data.len();
        data.extend_from_slice(&dense.bytes);
        let entry = serde_json::json!({
            "dtype": dense.dtype.name(),
            "shape": dense.shape,
            "data_offsets": [start, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.append(&mut header);
    file.append(&mut data);
    file
}
