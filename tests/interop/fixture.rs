//! The fixtures under `fixtures/<producer>/<name>`: a checkpoint by a real tool, and what its reference reads from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, Dtype, Limits, ReadAt};
use safequant::schemes::{Error, Model, QuantizedTensor, convention};
use serde_json::Value;

/// Producers whose checkpoints a convention of ours must claim.
pub(crate) const PRODUCERS: &[&str] = &[
    "autoawq",
    "bitsandbytes",
    "comfyui",
    "composed",
    "gptqmodel",
    "hqq",
    "llm-compressor",
    "mlx",
    "modelopt",
    "optimum-quanto",
    "torchao",
    "transformers",
];

/// One fixture.
pub(crate) struct Fixture {
    /// `producer/name`.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// `fixture.json`.
    pub(crate) about: Value,
}

/// A dense tensor: dtype, shape, bytes.
#[derive(Clone)]
pub(crate) struct Dense {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// The folder with all fixtures.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// Every fixture of these producers, by name.
pub(crate) fn all() -> Vec<Fixture> {
    let mut found = Vec::new();
    for producer in PRODUCERS {
        for entry in std::fs::read_dir(root().join(producer)).unwrap() {
            let folder = entry.unwrap().path();
            let Ok(text) = std::fs::read(folder.join("fixture.json")) else {
                continue;
            };
            let about: Value = serde_json::from_slice(&text).unwrap();
            let name = format!("{producer}/{}", folder.file_name().unwrap().display());
            found.push(Fixture {
                name,
                folder,
                about,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The checkpoint's own files: all but what lies beside it for the tests.
fn own_files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| {
            n != "fixture.json"
                && !["expected", "source", "extra"]
                    .iter()
                    .any(|p| n.starts_with(p))
        })
        .collect();
    names.sort();
    names
}

impl Fixture {
    /// What the reference decodes, by dense tensor; empty where the fixture is about quantizing.
    pub(crate) fn expected(&self) -> Vec<(&String, &Value)> {
        self.about["expected"]
            .as_object()
            .map(|e| e.iter().collect())
            .unwrap_or_default()
    }

    /// Files by name: shards and documents.
    pub(crate) fn files(&self) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
        let (mut shards, mut documents) = (BTreeMap::new(), BTreeMap::new());
        for name in own_files(&self.folder) {
            let bytes = std::fs::read(self.folder.join(&name)).unwrap();
            if name.ends_with(".safetensors") {
                shards.insert(name, bytes);
            } else if Path::new(&name).extension().is_some_and(|e| e == "json") {
                documents.insert(name, bytes);
            }
        }
        (shards, documents)
    }

    /// The checkpoint.
    pub(crate) fn open(&self) -> Checkpoint {
        let (shards, documents) = self.files();
        open(&self.name, shards, documents)
    }

    /// Tensors of `<stem>.safetensors` beside the checkpoint; none if there is no such file.
    pub(crate) fn beside(&self, stem: &str) -> BTreeMap<String, Dense> {
        let file = format!("{stem}.safetensors");
        let Ok(bytes) = std::fs::read(self.folder.join(&file)) else {
            return BTreeMap::new();
        };
        let checkpoint = open(
            &file,
            BTreeMap::from([(file.clone(), bytes)]),
            BTreeMap::new(),
        );
        let dense = |t: safequant::container::TensorRef<'_>| Dense {
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            bytes: t.read_all(u64::MAX).unwrap(),
        };
        checkpoint
            .tensors()
            .map(|t| (t.name().to_owned(), dense(t)))
            .collect()
    }
}

/// A checkpoint in memory.
pub(crate) fn open(
    name: &str,
    shards: BTreeMap<String, Vec<u8>>,
    mut documents: BTreeMap<String, Vec<u8>>,
) -> Checkpoint {
    // The shards alone say where a tensor lies.
    documents.remove("model.safetensors.index.json");
    let shards = shards
        .into_iter()
        .map(|(name, bytes)| (name, Arc::new(BytesSource(bytes.into())) as Arc<dyn ReadAt>))
        .collect();
    Checkpoint::from_sources(name, shards, documents, &Limits::default()).unwrap()
}

/// A safetensors file in memory, tensors in the order given.
pub(crate) fn safetensors(tensors: &[(String, Dense)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
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
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    file
}

/// A fixture taken apart, to be changed and put together again.
pub(crate) struct Draft {
    pub(crate) tensors: Vec<(String, Dense)>,
    pub(crate) documents: BTreeMap<String, Vec<u8>>,
}

impl Draft {
    /// The parts of the fixture of this name.
    pub(crate) fn of(name: &str) -> Self {
        let fixture = all().into_iter().find(|f| f.name == name);
        let fixture = fixture.unwrap_or_else(|| panic!("no fixture {name}"));
        let checkpoint = fixture.open();
        let dense = |t: safequant::container::TensorRef<'_>| Dense {
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            bytes: t.read_all(u64::MAX).unwrap(),
        };
        let tensors = checkpoint
            .tensors()
            .map(|t| (t.name().to_owned(), dense(t)))
            .collect();
        Self {
            tensors,
            documents: fixture.files().1,
        }
    }

    /// Leaves tensors out.
    pub(crate) fn without(mut self, ending: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|(n, _)| !n.ends_with(ending));
        assert!(self.tensors.len() < before, "no tensor ends with {ending}");
        self
    }

    /// Changes the tensor of this name.
    pub(crate) fn change(mut self, name: &str, f: impl FnOnce(&mut Dense)) -> Self {
        let (_, dense) = self.tensors.iter_mut().find(|(n, _)| n == name).unwrap();
        f(dense);
        self
    }

    /// Changes `config.json`; documents that would contradict it are left out.
    pub(crate) fn configure(mut self, f: impl FnOnce(&mut Value)) -> Self {
        let mut config: Value = serde_json::from_slice(&self.documents["config.json"]).unwrap();
        f(&mut config);
        self.documents =
            BTreeMap::from([("config.json".into(), serde_json::to_vec(&config).unwrap())]);
        self
    }

    /// Puts it together.
    pub(crate) fn open(self) -> Checkpoint {
        let shard = safetensors(&self.tensors);
        open(
            "draft",
            BTreeMap::from([("model.safetensors".into(), shard)]),
            self.documents,
        )
    }
}

/// Lays out, in its own convention, what a tensor says in terms of its scheme alone.
pub(crate) fn laid_out(tensor: &QuantizedTensor) -> QuantizedTensor {
    let writer = convention(tensor.convention)
        .and_then(safequant::schemes::Convention::writer)
        .unwrap();
    let anonymous = QuantizedTensor {
        convention: "another",
        ..tensor.clone()
    };
    writer.lay_out_like(&anonymous).unwrap()
}

/// Why a draft is refused.
pub(crate) fn refused(draft: Draft) -> Error {
    let checkpoint = draft.open();
    match Model::bind(&checkpoint) {
        Err(e) => e,
        Ok(_) => panic!("accepted"),
    }
}
