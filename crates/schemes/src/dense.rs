//! A checkpoint seen as a dense one: every quantized weight under the name and shape of the dense tensor it stands for,
//! read by rows, nothing written. `dequantize` writes exactly what is read here.

use std::collections::HashMap;
use std::ops::Range;

use safequant_container::{Checkpoint, Dtype, TensorRef};
use safequant_kernels::{Backend, Float, Stores};

use crate::scheme::dtype_of;
use crate::storage::to_usize;
use crate::{Decoder, Error, Model, QuantizedTensor, RowsOut, Scratch};

/// The dtype of dequantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputDtype {
    /// The dtype and bits of the convention's own reference.
    Auto,
    /// Computed in F32, rounded once to nearest even.
    Float(Float),
}

impl OutputDtype {
    /// The dtype of one weight.
    pub const fn of(self, tensor: &QuantizedTensor) -> Float {
        match self {
            OutputDtype::Auto => tensor.reference_dtype,
            OutputDtype::Float(float) => float,
        }
    }
}

/// A checkpoint seen as a dense one.
pub struct DenseView<'a> {
    checkpoint: &'a Checkpoint,
    model: &'a Model,
    dtype: OutputDtype,
    backend: &'static Backend,
    /// By the names of the dense weights.
    weights: HashMap<&'a str, &'a QuantizedTensor>,
}

/// A tensor of the dense view. Nothing is read before [`DenseTensor::rows`].
pub struct DenseTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dtype: of weights that were quantized the one asked for, of others their own.
    pub dtype: Dtype,
    /// Its shape, `[.., out_features, in_features]` for weights.
    pub shape: &'a [u64],
    source: Source<'a>,
}

enum Source<'a> {
    Plain(TensorRef<'a>),
    Quantized(Box<Decoder<'a>>, Float),
}

impl<'a> DenseView<'a> {
    /// Opens a checkpoint as dense: weights that are quantized in `dtype`, everything else as it is.
    pub fn new(
        checkpoint: &'a Checkpoint,
        model: &'a Model,
        dtype: OutputDtype,
        backend: &'static Backend,
    ) -> Self {
        let weights = model.quantized.iter().chain(&model.effective);
        Self {
            checkpoint,
            model,
            dtype,
            backend,
            weights: weights
                .map(|tensor| (tensor.weight.as_str(), tensor))
                .collect(),
        }
    }

    /// The names of all tensors, by name.
    pub fn names(&self) -> Vec<&'a str> {
        let derived = &self.model.effective;
        let weights = self.model.quantized.iter().chain(derived);
        let weights = weights.map(|t| t.weight.as_str());
        let plain = self.model.plain.iter().map(String::as_str);
        let mut names: Vec<&str> = weights.chain(plain).collect();
        names.sort_unstable();
        names
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// A quantized weight whose parts do not fit each other; `None` where there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<Option<DenseTensor<'a>>, Error> {
        if let Some(&tensor) = self.weights.get(name) {
            let decoder = Decoder::new(tensor, self.checkpoint, self.backend)?;
            return Ok(Some(DenseTensor::of(decoder, self.dtype)));
        }
        if self
            .model
            .plain
            .binary_search_by(|p| p.as_str().cmp(name))
            .is_err()
        {
            return Ok(None);
        }
        Ok(self.checkpoint.tensor(name).map(DenseTensor::plain))
    }
}

/// Cap of a tile's output: with what is read for it, it fills a core's cache.
const TILE_BYTES: u64 = 512 << 10;
/// The same where stored rows are columns of the weight: what is read at once is as long as a tile has rows.
const TRANSPOSED_TILE_BYTES: u64 = 16 << 20;

impl<'a> DenseTensor<'a> {
    /// A stored tensor as it is.
    pub fn plain(tensor: TensorRef<'a>) -> Self {
        Self {
            name: tensor.name(),
            dtype: tensor.dtype(),
            shape: tensor.shape(),
            source: Source::Plain(tensor),
        }
    }

    /// A quantized weight as dense rows.
    pub fn of(decoder: Decoder<'a>, dtype: OutputDtype) -> Self {
        let tensor = decoder.tensor;
        let float = dtype.of(tensor);
        Self {
            name: &tensor.weight,
            dtype: dtype_of(float),
            shape: &tensor.shape,
            source: Source::Quantized(Box::new(decoder), float),
        }
    }
}

impl DenseTensor<'_> {
    /// Rows: products of all dimensions but the last one.
    pub fn n_rows(&self) -> u64 {
        let (_, rows) = self
            .shape
            .split_last()
            .map_or((&1, &[][..]), |(l, r)| (l, r));
        rows.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        let columns = self.shape.last().copied().unwrap_or(1);
        self.dtype.size_bytes(columns).unwrap_or(0)
    }

    /// Cuts rows into tiles, in order: as many rows as a core's cache holds while they are decoded, no stored word in two of
    /// them. How many threads there are does not come in.
    pub fn tiles(&self, rows: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let (unit, cap) = match &self.source {
            Source::Plain(_) => (1, TILE_BYTES),
            Source::Quantized(decoder, _) if decoder.tensor.is_transposed() => {
                (decoder.row_unit(), TRANSPOSED_TILE_BYTES)
            }
            Source::Quantized(decoder, _) => (decoder.row_unit(), TILE_BYTES),
        };
        let units = cap / self.row_bytes().max(1) / unit.max(1);
        let step = units.max(1).saturating_mul(unit.max(1));
        let mut at = rows.start;
        std::iter::from_fn(move || {
            let start = at;
            // Tiles end at multiples, wherever the range begins.
            at = (start / step + 1).saturating_mul(step).min(rows.end);
            (start < rows.end).then_some(start..at)
        })
    }

    /// Reads rows `rows`, row-major and little-endian, in the tensor's dtype.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    ///
    /// # Panics
    /// If `out` is not as long as the rows: the caller's bug.
    pub fn rows(&self, rows: Range<u64>, out: &mut [u8]) -> Result<(), Error> {
        let stores = Stores::for_len(out.len());
        self.rows_with(rows, (out, stores), &mut Scratch::default())
    }

    /// As [`DenseTensor::rows`], where `out` is a part of a whole: with the stores that suit that one, and memory that goes
    /// from part to part.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn rows_with(
        &self,
        rows: Range<u64>,
        (out, stores): (&mut [u8], Stores),
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        match &self.source {
            Source::Quantized(decoder, float) => {
                let out = RowsOut::Bytes(*float, out);
                decoder.rows_with(rows, (out, stores), scratch)
            }
            Source::Plain(tensor) => {
                let len = (rows.end - rows.start).saturating_mul(self.row_bytes());
                assert_eq!(
                    Ok(out.len()),
                    to_usize(self.name, "rows", len).map_err(|_| ()),
                    "the output is not as long as the rows"
                );
                Ok(tensor.read_exact_at(rows.start.saturating_mul(self.row_bytes()), out)?)
            }
        }
    }
}
