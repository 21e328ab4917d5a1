//! A named set of files: shards, index, and the documents beside them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::{Dtype, Error, Header, Limits, ReadAt, TensorInfo};

/// How a checkpoint was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// One `.safetensors` file.
    File,
    /// A directory in the Hugging Face layout, with or without an index.
    Directory,
    /// An index file, and with it the directory around it.
    Index,
}

/// One safetensors file of a checkpoint.
pub struct Shard {
    /// The file's name inside the checkpoint (a name, never a path).
    pub name: String,
    /// Its validated header.
    pub header: Header,
    /// Its bytes.
    pub source: Arc<dyn ReadAt>,
}

/// A file beside the weights that is neither a shard nor the index: configuration, tokenizer, license, README ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its name inside the checkpoint; sub-folders appear as `folder/name`.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// An opened checkpoint: headers validated, index and shards in agreement, nothing of the data read.
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens a file, a directory or an index file.
    ///
    /// # Errors
    /// A named condition; the message carries file and tensor.
    pub fn open(_path: &Path, _limits: &Limits) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Builds a checkpoint from sources that are already open: tests, fuzzing, and remote stores.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_sources(
        _name: &str,
        _shards: Vec<(String, Arc<dyn ReadAt>)>,
        _documents: BTreeMap<String, Vec<u8>>,
        _limits: &Limits,
    ) -> Result<Self, Error> {
        unimplemented!()
    }

    /// How the checkpoint was given.
    pub fn kind(&self) -> CheckpointKind {
        unimplemented!()
    }

    /// The path or name it was opened under, for messages.
    pub fn name(&self) -> &str {
        unimplemented!()
    }

    /// The limits it was opened with.
    pub fn limits(&self) -> &Limits {
        unimplemented!()
    }

    /// The shards, by file name.
    pub fn shards(&self) -> &[Shard] {
        unimplemented!()
    }

    /// Every tensor, by name (byte order).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorRef<'_>> {
        std::iter::empty()
    }

    /// The tensor of this name.
    pub fn tensor(&self, _name: &str) -> Option<TensorRef<'_>> {
        unimplemented!()
    }

    /// A document beside the weights (`config.json`, `quantize_config.json`, `hf_quant_config.json` ...), if it is there.
    /// Only `*.json` files within `Limits::max_document_bytes` are documents; the index is not one.
    pub fn document(&self, _name: &str) -> Option<&[u8]> {
        unimplemented!()
    }

    /// Every file beside the weights, by name, documents included; shards, index and our own manifest are not listed.
    pub fn sidecars(&self) -> &[Sidecar] {
        unimplemented!()
    }

    /// Opens a sidecar for reading, under the same path rules as a shard.
    ///
    /// # Errors
    /// If it is gone or no longer a regular file inside the directory.
    pub fn sidecar(&self, _name: &str) -> Result<Arc<dyn ReadAt>, Error> {
        unimplemented!()
    }

    /// Whether every shard is still the file that was opened (P8).
    ///
    /// # Errors
    /// Names the first file that changed, and how.
    pub fn verify_unchanged(&self) -> Result<(), Error> {
        unimplemented!()
    }
}

/// A tensor of a checkpoint together with the shard that holds it.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    /// The file.
    pub shard: &'a Shard,
    /// What its header says.
    pub info: &'a TensorInfo,
}

impl<'a> TensorRef<'a> {
    /// The tensor's name.
    pub fn name(self) -> &'a str {
        &self.info.name
    }

    /// Element type.
    pub fn dtype(self) -> Dtype {
        self.info.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(self) -> &'a [u64] {
        &self.info.shape
    }

    /// Fills `out` with the bytes from `offset` (relative to the tensor's first byte) on.
    ///
    /// # Errors
    /// An I/O error that names shard and tensor; a range outside the tensor is refused before anything is read.
    pub fn read_exact_at(self, _offset: u64, _out: &mut [u8]) -> Result<(), Error> {
        unimplemented!()
    }

    /// Reads a rectangle of a tensor seen as rows of `row_len_bytes`: rows `rows`, bytes `columns` of each, one after
    /// the other into `out`. Adjacent rows are fetched in one request where the rectangle spans them whole.
    ///
    /// # Errors
    /// As [`TensorRef::read_exact_at`].
    pub fn read_rectangle(
        self,
        _row_len_bytes: u64,
        _rows: Range<u64>,
        _columns: Range<u64>,
        _out: &mut [u8],
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// The whole tensor, if it has at most `max_len_bytes`.
    ///
    /// # Errors
    /// As [`TensorRef::read_exact_at`], or a limit error that names both lengths.
    pub fn read_all(self, _max_len_bytes: u64) -> Result<Vec<u8>, Error> {
        unimplemented!()
    }
}
