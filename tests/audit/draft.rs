//! A checkpoint taken apart to be spoilt: shards with their tensors, documents, and files as plain bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use safequant::audit::{self, Finding, Options, Subject, Wanted};
use safequant::container::{BytesSource, Checkpoint, Limits, ReadAt};
use serde_json::{Map, Value};
use tempfile::TempDir;

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
    /// Files of its directory that are neither shards nor documents ([`Draft::lay_out`]).
    pub(super) beside: BTreeMap<String, Beside>,
    /// Where it is laid out, if it is opened from a disk.
    folder: Option<Arc<TempDir>>,
}

/// Something in the directory of a checkpoint.
#[derive(Clone)]
pub(super) enum Beside {
    /// A file; its name may lead into folders.
    File(Vec<u8>),
    /// A symlink to this path.
    Link(&'static str),
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
            let entries = entries.map(|(key, value)| (key.clone(), value.as_str().into()));
            metadata.insert(shard.name.clone(), entries.collect());
            shards.insert(shard.name.clone(), tensors.collect());
        }
        Self {
            shards,
            metadata,
            documents: fixture.files().1,
            raw: BTreeMap::new(),
            beside: BTreeMap::new(),
            folder: None,
        }
    }

    /// From now on it is opened as a directory on a disk, with what lies beside the weights.
    pub(super) fn lay_out(&mut self) -> &mut BTreeMap<String, Beside> {
        let new = || Arc::new(TempDir::new().unwrap());
        self.folder.get_or_insert_with(new);
        &mut self.beside
    }

    /// Moves a tensor to the end of another shard; an index learns of it.
    pub(super) fn move_to(&mut self, name: &str, file: &str) -> Option<()> {
        let dense = self.remove(name)?;
        self.edit_index(|map| drop(map.insert(name.to_owned(), file.into())));
        let shard = self.shards.get_mut(file)?;
        shard.push((name.to_owned(), dense));
        Some(())
    }

    /// A shard's header, to be spoilt, and its data.
    pub(super) fn parts(&self, file: &str) -> (Map<String, Value>, Vec<u8>) {
        let bytes = self.bytes(file);
        let (len, rest) = bytes.split_first_chunk().unwrap();
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap();
        let (header, data) = rest.split_at(len);
        (serde_json::from_slice(header).unwrap(), data.to_vec())
    }

    /// Replaces a shard's bytes by this header and data.
    pub(super) fn put(&mut self, file: &str, header: &[u8], data: &[u8]) {
        let mut bytes = header.to_vec();
        let mut len = bytes.len().next_multiple_of(8);
        // A length that begins like a pickle (80 02 to 80 05) is taken for one where the header is wrong.
        if (0x280..=0x580).contains(&len) && len % 0x100 == 0x80 {
            len += 8;
        }
        bytes.resize(len, b' ');
        let mut all = (len as u64).to_le_bytes().to_vec();
        all.append(&mut bytes);
        all.extend_from_slice(data);
        self.raw.insert(file.to_owned(), all);
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

    /// All files as they would lie on a disk. What cannot be surveyed at all is a checkpoint of nothing, and one error.
    pub(super) fn open(&self) -> (Checkpoint, Vec<safequant::container::Error>) {
        let limits = Limits::default();
        let opened = match &self.folder {
            Some(folder) => Checkpoint::survey(&self.write(folder), &limits),
            None => {
                Checkpoint::survey_sources("draft", self.sources(), self.documents.clone(), &limits)
            }
        };
        opened.unwrap_or_else(|error| {
            let nothing = Checkpoint::survey_sources("draft", Vec::new(), BTreeMap::new(), &limits);
            (nothing.unwrap().0, vec![error])
        })
    }

    /// Names of the shards, those that are bytes only included.
    fn files(&self) -> BTreeSet<&String> {
        self.shards.keys().chain(self.raw.keys()).collect()
    }

    fn sources(&self) -> Vec<(String, Arc<dyn ReadAt>)> {
        let files = self.files().into_iter();
        files
            .map(|file| {
                let source: Arc<dyn ReadAt> = Arc::new(BytesSource(self.bytes(file).into()));
                (file.clone(), source)
            })
            .collect()
    }

    /// Writes all of it to a folder of its own, beside a file `outside.safetensors` that links may lead to.
    fn write(&self, folder: &TempDir) -> PathBuf {
        let root = folder.path().join("model");
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        std::fs::create_dir(&root).unwrap();
        std::fs::write(folder.path().join("outside.safetensors"), "outside").unwrap();
        for file in self.files() {
            std::fs::write(root.join(file), self.bytes(file)).unwrap();
        }
        for (name, bytes) in &self.documents {
            std::fs::write(root.join(name), bytes).unwrap();
        }
        for (name, beside) in &self.beside {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match beside {
                Beside::File(bytes) => std::fs::write(path, bytes).unwrap(),
                Beside::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            }
        }
        root
    }

    /// Its audit: the findings, and the errors that no rule claims.
    pub(super) fn audit(&self, wanted: &Wanted, options: &Options) -> (Vec<Finding>, Vec<String>) {
        let (checkpoint, problems) = self.open();
        let report = audit::audit(Subject::new(&checkpoint, problems, wanted.clone()), options);
        let unclaimed = report.unclaimed().map(ToString::to_string).collect();
        (report.findings, unclaimed)
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
