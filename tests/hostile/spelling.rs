//! Configurations and tokenizers that a GGUF model is made from, cut short and with changed bytes: metadata or an error, never
//! a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, FileFormat, Limits, ReadAt};
use safequant::schemes::{Headers, convention};

/// What is put in place of a byte: signs that JSON and protobuf take for others, and a flipped bit.
const CHANGES: &[fn(u8) -> u8] = &[
    |_| b'"',
    |_| b'9',
    |_| b'-',
    |_| 0,
    |_| 0xff,
    |byte| byte ^ 0x10,
];

/// Places in a document where bytes are changed, and lengths at which it is cut.
const PLACES: usize = 120;

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama.cpp");
    let entries = std::fs::read_dir(root).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = folders
        .filter(|folder| folder.join("expected.gguf").exists())
        .collect();
    found.sort();
    found
}

/// The documents of a model, and its weights.
fn read(folder: &Path) -> (BTreeMap<String, Vec<u8>>, Vec<u8>) {
    let mut documents = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_weights = FileFormat::of_name(&name).is_some();
        if !is_weights && name != "fixture.json" {
            documents.insert(name.clone(), std::fs::read(folder.join(&name)).unwrap());
        }
    }
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    (documents, weights)
}

/// Whether a model's names and metadata could be derived.
fn is_spelled(documents: BTreeMap<String, Vec<u8>>, weights: &[u8]) -> bool {
    let source: Arc<dyn ReadAt> = Arc::new(BytesSource(weights.into()));
    let shards = vec![("model.safetensors".to_owned(), source)];
    let opened = Checkpoint::from_sources("model", shards, documents, &Limits::default());
    let Ok(checkpoint) = opened else { return false };
    let writer = convention("gguf").and_then(safequant::schemes::Convention::writer);
    let Ok(Some(respelling)) = writer.unwrap().respelling(Headers::new(&checkpoint)) else {
        return false;
    };
    let names = checkpoint
        .tensors()
        .all(|t| respelling.tensor(t.name(), t.shape()).is_ok());
    let extra = respelling.extra().is_ok();
    let metadata = respelling.metadata(&[], &[]).is_ok();
    names && extra && metadata
}

#[test]
fn hostile_configurations_and_tokenizers_are_spelled_or_refused() {
    let (mut n_documents, mut n_spelled, mut n_refused) = (0, 0, 0);
    for folder in models() {
        let (documents, weights) = read(&folder);
        assert!(is_spelled(documents.clone(), &weights), "{folder:?}");
        for (name, bytes) in &documents {
            n_documents += 1;
            let step = (bytes.len() / PLACES).max(1);
            let mut try_with = |mutant: Vec<u8>| {
                let mut changed = documents.clone();
                changed.insert(name.clone(), mutant);
                if is_spelled(changed, &weights) {
                    n_spelled += 1;
                } else {
                    n_refused += 1;
                }
            };
            for at in (0..bytes.len()).step_by(step) {
                try_with(bytes[..at].to_vec());
                let mut mutant = bytes.clone();
                mutant[at] = CHANGES[(at / step) % CHANGES.len()](bytes[at]);
                try_with(mutant);
            }
        }
    }
    assert!(n_documents >= 20, "{n_documents} documents");
    assert!(n_spelled > 500, "{n_spelled} mutants spelled");
    assert!(n_refused > 1000, "{n_refused} mutants refused");
}
