//! Where decoded rows go.

use std::ops::Range;

use safequant_kernels::{Float, FloatsMut};

/// Where decoded rows go.
pub enum RowsOut<'a> {
    /// F32 values: products before any rounding to a narrower type.
    F32(&'a mut [f32]),
    /// Little-endian bytes of a dense float type. In the tensor's `reference_dtype` they are the reference's bits; in
    /// another one the F32 values, rounded once.
    Bytes(Float, &'a mut [u8]),
}

impl<'a> RowsOut<'a> {
    /// The same for kernels.
    pub(crate) fn into_floats(self) -> FloatsMut<'a> {
        match self {
            RowsOut::F32(values) => FloatsMut::F32(values),
            RowsOut::Bytes(float, bytes) => FloatsMut::Bytes(float, bytes),
        }
    }
}

impl RowsOut<'_> {
    /// Bytes in all.
    pub(crate) fn len_bytes(&self) -> usize {
        match self {
            RowsOut::F32(values) => size_of_val(&**values),
            RowsOut::Bytes(_, bytes) => bytes.len(),
        }
    }

    /// The elements of a range.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn cut(&mut self, elements: Range<usize>) -> RowsOut<'_> {
        match self {
            RowsOut::F32(values) => RowsOut::F32(&mut values[elements]),
            RowsOut::Bytes(float, bytes) => {
                let size = float.size_bytes();
                let cut = elements.start * size..elements.end * size;
                RowsOut::Bytes(*float, &mut bytes[cut])
            }
        }
    }

    /// Panics unless there are exactly so many elements.
    pub(crate) fn expect_len(&self, n_elements: usize) {
        let found = match self {
            RowsOut::F32(values) => values.len(),
            RowsOut::Bytes(float, bytes) => bytes.len() / float.size_bytes(),
        };
        assert_eq!(found, n_elements, "the output is not as long as the rows");
    }
}
