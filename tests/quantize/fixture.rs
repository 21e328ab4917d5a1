//! The `fixtures/*/rtn-*` folders: a dense source beside what a tool made of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safequant::container::{Checkpoint, Dtype, Limits};
use safequant::kernels::{Backend, Float};
use serde_json::Value;

/// A tensor read whole.
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Fixture {
    pub(super) name: String,
    /// `quantization_config` of its `config.json`; null where the convention needs none.
    pub(super) config: Value,
    pub(super) source: BTreeMap<String, Tensor>,
    pub(super) model: BTreeMap<String, Tensor>,
}

/// A dense weight, widened.
pub(super) struct Weight {
    pub(super) module: String,
    pub(super) values: Vec<f32>,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    pub(super) source: Float,
}

pub(super) fn folders(producer: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(producer);
    let entries = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_rtn = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("rtn-")
    };
    let mut found: Vec<PathBuf> = entries.filter(is_rtn).collect();
    found.sort();
    found
}

/// Whether block scales are small floats or powers of two: those are compared in `codes` alone.
pub(super) fn has_small_scales(folder: &Path) -> bool {
    let name = folder.file_name().unwrap().to_string_lossy();
    name.starts_with("rtn-nvfp4") || name.starts_with("rtn-mxfp")
}

impl Fixture {
    pub(super) fn open(folder: &Path) -> Self {
        let config = match std::fs::read(folder.join("config.json")) {
            Ok(text) => serde_json::from_slice(&text).unwrap(),
            Err(_) => Value::Null,
        };
        Fixture {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            config: config["quantization_config"].clone(),
            source: read(&folder.join("source.safetensors")),
            model: read(&folder.join("model.safetensors")),
        }
    }

    /// The dense matrices; the fixtures' other tensors are vectors.
    pub(super) fn weights(&self) -> Vec<Weight> {
        let matrices = self
            .source
            .iter()
            .filter(|(_, tensor)| tensor.shape.len() == 2);
        matrices
            .map(|(name, tensor)| Weight::new(name, tensor))
            .collect()
    }

    pub(super) fn part(&self, module: &str, suffix: &str) -> &Tensor {
        let name = format!("{module}.{suffix}");
        self.model
            .get(&name)
            .unwrap_or_else(|| panic!("{}: no {name}", self.name))
    }
}

impl Weight {
    fn new(name: &str, tensor: &Tensor) -> Self {
        let source = float(tensor.dtype);
        let mut values = vec![0.0; tensor.shape.iter().product()];
        (Backend::detect().widen)(source, &tensor.bytes, &mut values);
        Weight {
            module: name.strip_suffix(".weight").unwrap().to_owned(),
            values,
            out_features: tensor.shape[0],
            in_features: tensor.shape[1],
            source,
        }
    }
}

pub(super) fn float(dtype: Dtype) -> Float {
    let floats = [
        (Dtype::F32, Float::F32),
        (Dtype::F16, Float::F16),
        (Dtype::BF16, Float::Bf16),
    ];
    let found = floats.iter().find(|(known, _)| *known == dtype);
    found
        .unwrap_or_else(|| panic!("{dtype:?} is no dense float of these fixtures"))
        .1
}

pub(super) fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(path, &Limits::default()).unwrap();
    let tensors = checkpoint.tensors().map(|tensor| {
        let shape = tensor
            .shape()
            .iter()
            .map(|&n| usize::try_from(n).unwrap())
            .collect();
        let bytes = tensor.read_all(1 << 24).unwrap();
        (
            tensor.name().to_owned(),
            Tensor {
                dtype: tensor.dtype(),
                shape,
                bytes,
            },
        )
    });
    tensors.collect()
}
