//! One tensor of a file: what the header says of it, and the same with its bytes.

use std::ops::Range;

use crate::Dtype;

/// A tensor as its header describes it, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, as unescaped from JSON: hostile input, escape it before it reaches a screen.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar. Counts elements, for sub-byte dtypes too.
    pub shape: Vec<u64>,
    /// Where the bytes lie, relative to the start of the *file*.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Bytes the tensor occupies.
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Elements the tensor holds (1 for a scalar). The header's validation guarantees that it fits 64 bits.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A tensor together with its bytes (row-major, little-endian, unaligned in general).
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [u64],
    /// Exactly the tensor's bytes.
    pub bytes: &'a [u8],
}
