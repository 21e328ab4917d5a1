//! Parse and validate a safetensors header, once.

use crate::{Error, Limits, ReadAt, TensorInfo};

/// A validated header: every range lies inside the file, and the ranges tile the data section exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `N`, the length of the JSON including its padding.
    pub json_len_bytes: u64,
    /// The tensors, by ascending offset (specs/container/safetensors.md, clause R6).
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`, in the order of the file; `None` if absent or null.
    pub metadata: Option<Vec<(String, String)>>,
}

impl Header {
    /// Reads and validates the header of `source`; `file` is the name that errors carry.
    ///
    /// # Errors
    /// A named condition for every rule of specs/container/safetensors.md.
    pub fn read(_source: &dyn ReadAt, _file: &str, _limits: &Limits) -> Result<Self, Error> {
        unimplemented!()
    }
}
