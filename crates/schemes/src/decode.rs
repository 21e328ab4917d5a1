//! From stored parts to rows of dense floats: the only reader of weights.

use std::ops::Range;

use safequant_container::Checkpoint;
use safequant_kernels::{Backend, Float};

use crate::{Error, QuantizedTensor};

/// Decodes rows of one quantized tensor. Holds what every row needs (group index, per-tensor scales), never more.
pub struct Decoder<'a> {
    /// What is decoded.
    pub tensor: &'a QuantizedTensor,
    checkpoint: &'a Checkpoint,
    backend: &'static Backend,
}

/// Where decoded rows go.
pub enum RowsOut<'a> {
    /// F32 values: products before any rounding to a narrower type.
    F32(&'a mut [f32]),
    /// Little-endian bytes of a dense float type.
    Bytes(Float, &'a mut [u8]),
}

impl<'a> Decoder<'a> {
    /// Prepares to decode: checks the shapes of all parts against the scheme, reads and checks the group index.
    ///
    /// # Errors
    /// A part with a wrong dtype or shape, a group index out of range: names module, part, expected, found.
    pub fn new(
        tensor: &'a QuantizedTensor,
        checkpoint: &'a Checkpoint,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        Ok(Self { tensor, checkpoint, backend })
    }

    /// Rows between two places where decoding can start without reading a stored word twice: tiles should be multiples.
    pub fn row_unit(&self) -> u64 {
        1
    }

    /// Bytes of scratch that decoding `n_rows` at once allocates, output excluded: what a memory budget must count.
    pub fn scratch_bytes(&self, _n_rows: u64) -> u64 {
        0
    }

    /// Decodes rows `rows` of the stack into `out`, `[rows, in_features]`, row-major.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    ///
    /// # Panics
    /// If `out` has not exactly the length of the rows.
    pub fn rows(&self, _rows: Range<u64>, _out: RowsOut<'_>) -> Result<(), Error> {
        let _ = (self.checkpoint, self.backend);
        unimplemented!()
    }
}
