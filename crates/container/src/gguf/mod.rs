//! GGUF files, versions 2 and 3: header, typed metadata, tensors, split models (specs/container/gguf.md).
//!
//! A GGUF file yields the same [`crate::Header`] as a safetensors file. Shapes are turned into the order of everything else
//! here (outermost first, so `ne` reversed). A block type becomes U8 whose last dimension counts bytes, with
//! [`crate::TensorInfo::block`] telling the type.

mod metadata;
mod plan;
mod reader;
pub(crate) mod split;
mod types;
mod writer;

pub use metadata::{GgufArray, GgufMetadata, GgufType, GgufValue};
pub use types::{BlockType, GgmlType};
pub use writer::{GgufTensor, write_gguf_header};

pub(crate) use reader::{is_gguf, read};

/// How the name of a GGUF file ends.
pub(crate) const SUFFIX: &str = ".gguf";

/// The first bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";

/// Magic, version and two counts.
const FIXED_BYTES: usize = 24;

/// Where data begins and every tensor is padded to, if no key says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Longest name of a tensor in bytes (ggml's `GGML_MAX_NAME` less the NUL).
const MAX_NAME_BYTES: usize = 63;

/// Most dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
const MAX_DIMS: usize = 4;
