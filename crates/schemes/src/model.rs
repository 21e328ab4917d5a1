//! The logical weights of a checkpoint: which modules are quantized and how, and which tensors are plain.

use safequant_container::Checkpoint;

use crate::{Error, QuantizedTensor};

/// A checkpoint as weights instead of tensors.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Quantized weights, by module name.
    pub quantized: Vec<QuantizedTensor>,
    /// Names of tensors that are no part of a quantized weight, by name: dense weights, norms, embeddings ...
    pub plain: Vec<String>,
    /// Tensors that belong to a convention but to no weight (see `Recognized::orphans`).
    pub orphans: Vec<String>,
    /// The conventions found, with what was seen.
    pub conventions: Vec<(&'static str, Vec<String>)>,
}

impl Model {
    /// Recognizes and binds everything in a checkpoint.
    ///
    /// # Errors
    /// The first module that does not bind, or a tensor that two conventions claim.
    pub fn bind(_checkpoint: &Checkpoint) -> Result<Self, Error> {
        unimplemented!()
    }
}
