//! Faults for the rules of `crates/audit/src/rules/provenance`.

use safequant::container::{Manifest, ManifestEntry};
use serde_json::{Map, Value};

use super::{Fault, Planted};
use crate::audit::draft::{Beside, Draft, INDEX};

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("PV001", "manifest-of-another-shape", |draft, random| {
        let mut manifest = manifest(draft);
        let at = random.below(manifest.tensors.len());
        let entry = &mut manifest.tensors[at];
        entry.shape.push(7);
        let name = entry.name.clone();
        put(draft, &manifest);
        Some(Planted(name))
    }),
    Fault::new("PV001", "manifest-forgets-a-tensor", |draft, random| {
        let mut manifest = manifest(draft);
        let at = random.below(manifest.tensors.len());
        let name = manifest.tensors.remove(at).name;
        put(draft, &manifest);
        Some(Planted(name))
    }),
    Fault::new(
        "PV001",
        "tensor-of-the-manifest-is-gone",
        |draft, random| {
            let manifest = manifest(draft);
            let name = random.choose(&manifest.tensors)?.name.clone();
            draft.remove(&name)?;
            put(draft, &manifest);
            Some(Planted(name))
        },
    ),
    Fault::new("PV001", "manifest-is-cut-short", |draft, _| {
        let manifest = manifest(draft);
        put(draft, &manifest);
        draft.documents.get_mut(Manifest::FILE_NAME)?.truncate(40);
        Some(Planted(Manifest::FILE_NAME.to_owned()))
    }),
    Fault::new("PV002", "torch-archive-beside", |draft, _| {
        let name = "pytorch_model.bin".to_owned();
        let archive = Beside::File(b"PK\x03\x04\0\0\x08\x08\0\0archive/data.pkl".to_vec());
        draft.lay_out().insert(name.clone(), archive);
        Some(Planted(name))
    }),
    Fault::new("PV002", "pickle-in-a-folder", |draft, _| {
        let name = "checkpoint/optimizer.pt".to_owned();
        let pickle = Beside::File(b"\x80\x02}q\0.".to_vec());
        draft.lay_out().insert(name.clone(), pickle);
        Some(Planted(name))
    }),
    Fault::new("PV003", "license-left-behind", |draft, _| {
        let is_directory_already = draft.documents.contains_key(INDEX) || draft.shards.len() > 1;
        if is_directory_already || draft.documents.is_empty() {
            return None;
        }
        draft.lay_out();
        Some(Planted(String::new()))
    }),
    Fault::new("PV004", "quantizer-forgotten", |draft, _| {
        let mut n_forgotten = 0;
        for name in [
            "config.json",
            "quantize_config.json",
            "hf_quant_config.json",
        ] {
            let Some(bytes) = draft.documents.get_mut(name) else {
                continue;
            };
            let Ok(Value::Object(mut map)) = serde_json::from_slice(bytes) else {
                continue;
            };
            forget(&mut map, &mut n_forgotten);
            *bytes = serde_json::to_vec(&map).unwrap();
        }
        (n_forgotten > 0).then(|| Planted(String::new()))
    }),
];

/// A manifest as we would have written it, but for the digests.
fn manifest(draft: &Draft) -> Manifest {
    let all = draft.shards.values().flatten();
    let entry = |(name, dense): &(String, crate::interop::fixture::Dense)| ManifestEntry {
        name: name.clone(),
        dtype: dense.dtype,
        shape: dense.shape.clone(),
        blake3: "0".repeat(64),
    };
    Manifest {
        tensors: all.map(entry).collect(),
        modules: Vec::new(),
    }
}

fn put(draft: &mut Draft, manifest: &Manifest) {
    let name = Manifest::FILE_NAME.to_owned();
    draft.documents.insert(name, manifest.to_json());
}

/// Takes out what names a tool.
fn forget(map: &mut Map<String, Value>, n_forgotten: &mut usize) {
    let before = map.len();
    map.retain(|key, value| {
        let is_number = value.as_str().is_some_and(|v| v.contains('.'));
        !(["producer", "quantizer"].contains(&key.as_str()) || key == "version" && is_number)
    });
    *n_forgotten += before - map.len();
    for value in map.values_mut() {
        if let Value::Object(inner) = value {
            forget(inner, n_forgotten);
        }
    }
}
