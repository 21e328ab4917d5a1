//! Safetensors and GGUF files and checkpoints as validated, typed byte ranges.
//!
//! This crate answers one question: *where are the bytes*. It never interprets a value and knows nothing of
//! quantization. Whatever it hands out has been validated against the real size of the file.
#![deny(unsafe_code)]

mod buffer;
mod checkpoint;
mod disk;
mod dtype;
mod error;
mod error_group;
mod file_format;
mod gguf;
mod header;
mod index;
mod json;
mod limits;
mod logical;
mod lookup;
mod manifest;
#[cfg(feature = "mmap")]
mod mmap;
mod name;
mod order;
mod paths;
mod quick;
mod shape;
mod shown;
mod source;
mod tensor;
mod writer;

pub use buffer::AlignedBuffer;
pub use checkpoint::{Checkpoint, CheckpointKind, Members, Shard, Sidecar};
pub use disk::{Disk, DiskFile, Entry, OsDisk};
pub use dtype::Dtype;
pub use error::Error;
pub use error_group::ErrorGroup;
pub use file_format::FileFormat;
pub use gguf::{
    BlockType, GgmlType, GgufArray, GgufMetadata, GgufTensor, GgufType, GgufValue,
    write_gguf_header,
};
pub use header::Header;
pub use index::Index;
pub use limits::Limits;
pub use logical::{Carrier, LogicalDtype};
pub use manifest::{Manifest, ManifestEntry, ManifestLosses, ManifestModule};
#[cfg(feature = "mmap")]
pub use mmap::{MappedCheckpoint, MmapSource};
pub use name::Name;
pub use shape::Shape;
pub use source::{BytesSource, FileSource, ReadAt};
pub use tensor::{TensorInfo, TensorRef, TensorView};
pub use writer::{CheckpointPlan, FilePlan, FileWriter, PlannedTensor, TensorGroup};
