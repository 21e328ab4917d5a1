//! Plan headers and offsets before the first byte; write rows of tensors in any order.

use crate::{DiskFile, Dtype, Error};

/// A tensor that a file is going to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
}

/// Tensors that must share a shard: the parts of one module, or one plain tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorGroup {
    /// The tensors, in any order.
    pub tensors: Vec<PlannedTensor>,
}

/// One output file, byte for byte but for the data: header and offsets are fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The file's name (`model-00001-of-00002.safetensors`).
    pub name: String,
    /// The first bytes of the file: length word and padded JSON.
    pub prefix: Vec<u8>,
    /// The tensors in file order with their byte ranges relative to the start of the file.
    pub tensors: Vec<crate::TensorInfo>,
    /// Length of the whole file.
    pub len_bytes: u64,
}

impl FilePlan {
    /// Lays out one file: descending dtype rank, then name; `__metadata__` first, keys sorted; padded to 8 bytes.
    ///
    /// # Errors
    /// Duplicate names, the name `__metadata__`, a size that does not fit, a header over the official cap.
    pub fn new(
        _name: &str,
        _tensors: Vec<PlannedTensor>,
        _metadata: &[(String, String)],
    ) -> Result<Self, Error> {
        unimplemented!()
    }
}

/// All output files of a checkpoint, and its index if there is more than one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPlan {
    /// The files in order.
    pub files: Vec<FilePlan>,
    /// The bytes of `model.safetensors.index.json`; `None` for a single file.
    pub index: Option<Vec<u8>>,
}

impl CheckpointPlan {
    /// Splits groups, in the order given, into shards of at most `max_shard_bytes` of payload: a new shard begins when
    /// the next group does not fit; a group larger than the cap gets a shard of its own (the hub splitter's rule).
    ///
    /// # Errors
    /// As [`FilePlan::new`]; a name that occurs in two groups.
    pub fn new(
        _groups: Vec<TensorGroup>,
        _max_shard_bytes: u64,
        _metadata: &[(String, String)],
    ) -> Result<Self, Error> {
        unimplemented!()
    }
}

/// Writes one planned file: prefix and length first, then rows of tensors in any order, from any thread.
pub struct FileWriter {}

impl FileWriter {
    /// Starts the file: sets its final length and writes the prefix.
    ///
    /// # Errors
    /// I/O, with the file's name.
    pub fn create(_plan: FilePlan, _file: Box<dyn DiskFile>) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Takes up a file that an earlier run started: checks length and prefix, writes nothing.
    ///
    /// # Errors
    /// If the file is not the one the plan describes.
    pub fn resume(_plan: FilePlan, _file: Box<dyn DiskFile>) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The plan this file follows.
    pub fn plan(&self) -> &FilePlan {
        unimplemented!()
    }

    /// Writes `bytes` at `offset` within tensor number `tensor` (index into `plan().tensors`).
    ///
    /// # Errors
    /// I/O with file and tensor.
    ///
    /// # Panics
    /// If the bytes do not lie within the tensor: the caller's bug.
    pub fn write_at(&self, _tensor: usize, _offset: u64, _bytes: &[u8]) -> Result<(), Error> {
        unimplemented!()
    }

    /// Reads back bytes of a tensor, to digest or verify what the file holds.
    ///
    /// # Errors
    /// I/O with file and tensor.
    pub fn read_at(&self, _tensor: usize, _offset: u64, _out: &mut [u8]) -> Result<(), Error> {
        unimplemented!()
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// I/O with the file's name: final.
    pub fn seal(self) -> Result<(), Error> {
        unimplemented!()
    }
}
