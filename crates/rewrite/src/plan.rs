//! What a job is going to do, before it does anything: exact bytes, peak memory, per-module action.

use std::path::{Path, PathBuf};

use safequant_container::Checkpoint;

use crate::{DequantizeRecipe, Error, QuantizeRecipe};

/// A writing verb with its recipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Dense (or quantized) in, quantized out.
    Quantize(QuantizeRecipe),
    /// Any convention in, dense out.
    Dequantize(DequantizeRecipe),
}

/// What to do when the destination exists or an earlier job was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// It must not exist, or be an empty directory.
    New,
    /// What is there is replaced, at the end and atomically.
    Replace,
    /// Continue an interrupted job; source, recipe and engine version must be those of its journal.
    Resume,
}

/// Options that do not change the output's content.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOptions {
    /// Hard budget for buffers, in bytes.
    pub memory_bytes: u64,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Largest payload of a shard.
    pub max_shard_bytes: u64,
    /// See [`Destination`].
    pub destination: Destination,
}

/// A job, planned: everything that the run then does.
pub struct Plan<'a> {
    /// What is read.
    pub checkpoint: &'a Checkpoint,
    /// Where the result appears.
    pub destination: PathBuf,
    /// Output files: name and exact length in bytes, shards and documents.
    pub files: Vec<(String, u64)>,
    /// What becomes of each module or plain tensor.
    pub modules: Vec<PlannedModule>,
    /// Bytes of buffers at the peak.
    pub peak_memory_bytes: u64,
    /// Bytes the file system must have free.
    pub scratch_bytes: u64,
    /// Things the user should know, one line each.
    pub notes: Vec<String>,
}

/// What becomes of one module or plain tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedModule {
    /// Module or tensor name.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// Logical shape.
    pub shape: Vec<u64>,
    /// Bytes read.
    pub source_bytes: u64,
    /// Bytes written.
    pub output_bytes: u64,
}

/// What is done with a module.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Copied byte for byte.
    Copy,
    /// Quantized to this scheme (as users name it).
    Quantize(&'static str),
    /// Dequantized from this convention.
    Dequantize(&'static str),
    /// Left out: belongs to the old convention only.
    Drop,
}

/// Plans a job; reads headers and documents, no weights.
///
/// # Errors
/// Everything that can be known before the first byte: unsupported combinations, destination taken, disk too small,
/// memory budget too small (names the module that needs more, and how much).
pub fn plan<'a>(
    _checkpoint: &'a Checkpoint,
    _verb: &Verb,
    _destination: &Path,
    _options: &JobOptions,
) -> Result<Plan<'a>, Error> {
    unimplemented!()
}
