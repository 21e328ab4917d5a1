//! How a convention that spells whole models in its own way takes over the tensors of another one: their names, the order of
//! their rows, stacks, and the metadata that stands in the file itself. Only GGUF does that; all others keep names.

use safequant_container::GgufMetadata;
use safequant_kernels::Float;

use crate::{Error, QuantizedTensor};

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Respelled {
    /// It is written, as this.
    As(Spelling),
    /// It is not written, for this reason: a runtime derives it, or it repeats another one.
    LeftOut(&'static str),
}

/// How a tensor is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Spelling {
    /// Its name.
    pub name: String,
    /// The order of its rows.
    pub rows: RowOrder,
    /// Its place in a stack of equal tensors that are written as one.
    pub stack: Option<StackPlace>,
    /// What is done to its values, if they are dense.
    pub values: Values,
    /// The dtype that dense values are given; `None`: as they are.
    pub float: Option<Float>,
}

/// A place in a stack: `[count, ..]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackPlace {
    /// Which one it is, from 0.
    pub index: u64,
    /// How many there are.
    pub count: u64,
}

/// The order of the rows of a matrix (of the elements of a vector).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are.
    Same,
    /// Per head, the first half of the rows and the second half alternate: row `2 * i + p` of a head is row `p * size / 2 + i`,
    /// where `size` is the number of rows of a head, and `p` is 0 or 1 (formats: gguf §6).
    AlternatingHalves {
        /// Heads: equal runs of rows.
        heads: u64,
    },
    /// The inverse of [`RowOrder::AlternatingHalves`].
    GatheredHalves {
        /// Heads: equal runs of rows.
        heads: u64,
    },
}

impl RowOrder {
    /// The row that stands at `row` afterwards, of `n_rows` in all.
    pub fn source(self, row: u64, n_rows: u64) -> u64 {
        let (RowOrder::AlternatingHalves { heads } | RowOrder::GatheredHalves { heads }) = self
        else {
            return row;
        };
        let size = (n_rows / heads.max(1)).max(1);
        let half = (size / 2).max(1);
        let (head, at) = (row / size, row % size);
        let source = match self {
            RowOrder::Same => at,
            RowOrder::AlternatingHalves { .. } => (at % 2) * half + at / 2,
            RowOrder::GatheredHalves { .. } => (at % half) * 2 + at / half,
        };
        head * size + source
    }

    /// The order that undoes this one.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self {
            RowOrder::Same => RowOrder::Same,
            RowOrder::AlternatingHalves { heads } => RowOrder::GatheredHalves { heads },
            RowOrder::GatheredHalves { heads } => RowOrder::AlternatingHalves { heads },
        }
    }
}

/// What is done to dense values, in F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Nothing.
    Same,
    /// One is added: the norms of some families.
    PlusOne,
}

/// The spelling of one checkpoint's tensors in another convention.
pub trait Respelling {
    /// What becomes of the tensor with this name and logical shape (`[.., out_features, in_features]`).
    ///
    /// # Errors
    /// If the convention has no name for it, or its shape does not fit the configuration.
    fn tensor(&self, name: &str, shape: &[u64]) -> Result<Respelled, Error>;

    /// Tensors that are written beside those of the source.
    ///
    /// # Errors
    /// If the documents do not say what they hold.
    fn extra(&self) -> Result<Vec<ExtraTensor>, Error>;

    /// The metadata of the file.
    ///
    /// `quantized`: the tensors as laid out, under their old names, experts of a stack one by one; `dense`: all others that
    /// are written, [`Respelling::extra`] not among them.
    ///
    /// # Errors
    /// If a field cannot be derived from the documents beside the weights: names the field and the document.
    fn metadata(
        &self,
        quantized: &[QuantizedTensor],
        dense: &[WrittenDense<'_>],
    ) -> Result<GgufMetadata, Error>;
}

/// A tensor that the source does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtraTensor {
    /// Its name.
    pub name: String,
    /// Its values: a vector, in F32.
    pub values: Vec<f32>,
}

/// A dense tensor that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenDense<'a> {
    /// Its old name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [u64],
    /// Its dtype, as written.
    pub float: Float,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_alternate_as_in_the_converter_and_come_back() {
        let order = RowOrder::AlternatingHalves { heads: 2 };
        let rows: Vec<u64> = (0..12).map(|row| order.source(row, 12)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        for row in 0..12 {
            assert_eq!(order.inverse().source(order.source(row, 12), 12), row);
            assert_eq!(order.source(order.inverse().source(row, 12), 12), row);
        }
    }
}
