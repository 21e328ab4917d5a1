//! What a convention may look at: names, dtypes, shapes, documents, and small descriptor tensors. Never weights.

use safequant_container::{Checkpoint, TensorInfo};

use crate::Error;

/// The evidence a convention binds from.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> Headers<'a> {
    /// The evidence in a checkpoint.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// What the header says of a tensor.
    pub fn tensor(self, name: &str) -> Option<&'a TensorInfo> {
        self.checkpoint.tensor(name).map(|t| t.info)
    }

    /// Every tensor, by name.
    pub fn tensors(self) -> impl Iterator<Item = &'a TensorInfo> {
        self.checkpoint.tensors().map(|t| t.info)
    }

    /// A document beside the weights.
    pub fn document(self, name: &str) -> Option<&'a [u8]> {
        self.checkpoint.document(name)
    }

    /// The bytes of a descriptor tensor (a shape, a JSON text), at most `Limits::max_descriptor_bytes`.
    ///
    /// # Errors
    /// If there is no such tensor, it is too large, or it cannot be read.
    pub fn descriptor(self, _name: &str) -> Result<Vec<u8>, Error> {
        unimplemented!()
    }
}
