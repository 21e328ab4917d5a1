//! Digests of what was written: one BLAKE3 per tensor, independent of how shards are split.

use crate::{Dtype, Error};

/// The digest of one tensor's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The tensor.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// BLAKE3 of the tensor's bytes, in hexadecimal.
    pub blake3: String,
}

/// The manifest beside the shards, `safequant-manifest.json` (specs/container/manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// By tensor name.
    pub tensors: Vec<ManifestEntry>,
}

impl Manifest {
    /// The file's name.
    pub const FILE_NAME: &'static str = "safequant-manifest.json";

    /// The file's bytes: sorted by name, so that equal content gives equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// A named condition for anything that [`Manifest::to_json`] would not write.
    pub fn from_json(_bytes: &[u8]) -> Result<Self, Error> {
        unimplemented!()
    }
}
