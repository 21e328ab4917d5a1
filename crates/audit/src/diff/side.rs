//! One weight of one checkpoint, read as rows of its counterpart.

use std::ops::Range;

use safequant_container::{Checkpoint, Dtype, TensorRef};
use safequant_kernels::{Backend, Float};
use safequant_schemes::scheme::float_of;
use safequant_schemes::{
    Code, CodeTile, Decoder, DenseTensor, Error, OutputDtype, QuantizedTensor, RowOrder, Values,
};

use super::figures::Weight;

/// A weight, or another tensor.
pub(super) struct Side<'a> {
    /// Where it is stored.
    pub(super) checkpoint: &'a Checkpoint,
    /// The dense tensor's name.
    pub(super) name: &'a str,
    /// What it is.
    pub(super) kind: Kind<'a>,
    /// Its logical shape; of a stack's member that of the member.
    pub(super) shape: Vec<u64>,
    /// Which matrix of a stack it begins with.
    pub(super) first_matrix: u64,
    /// The order in which the counterpart has its rows.
    pub(super) order: RowOrder,
    /// What the counterpart's values are.
    pub(super) values: Values,
}

/// What a tensor is.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    /// A weight that a convention has bound.
    Quantized(&'a QuantizedTensor),
    /// Any other tensor of the model.
    Plain(TensorRef<'a>),
    /// What a convention keeps beside the weights: activation scales, markers.
    Companion(TensorRef<'a>),
}

impl<'a> Side<'a> {
    /// A tensor as it stands in its checkpoint.
    pub(super) fn new(checkpoint: &'a Checkpoint, name: &'a str, kind: Kind<'a>) -> Self {
        Self {
            checkpoint,
            name,
            kind,
            shape: match kind {
                Kind::Quantized(tensor) => tensor.shape.clone(),
                Kind::Plain(tensor) | Kind::Companion(tensor) => tensor.info.logical_shape(),
            },
            first_matrix: 0,
            order: RowOrder::Same,
            values: Values::Same,
        }
    }

    /// For the report.
    pub(super) fn weight(&self) -> Weight {
        let (convention, form) = match self.kind {
            Kind::Quantized(tensor) => (Some(tensor.convention), tensor.scheme.to_string()),
            Kind::Plain(tensor) | Kind::Companion(tensor) => {
                (None, tensor.dtype().name().to_owned())
            }
        };
        Weight {
            name: self.name.to_owned(),
            shape: self.shape.clone(),
            convention,
            form,
            has_codes: self.codes().is_some(),
            is_weight: !matches!(self.kind, Kind::Companion(_)),
        }
    }

    /// The bound weight.
    pub(super) fn quantized(&self) -> Option<&'a QuantizedTensor> {
        match self.kind {
            Kind::Quantized(tensor) => Some(tensor),
            Kind::Plain(_) | Kind::Companion(_) => None,
        }
    }

    /// The bound weight, if it holds codes: dense values may be bound as well (sparse, or in GGUF).
    pub(super) fn codes(&self) -> Option<&'a QuantizedTensor> {
        let tensor = self.quantized()?;
        (!matches!(tensor.scheme.code, Code::Dense(_))).then_some(tensor)
    }

    /// Whether the counterpart has rows and values in the same order, and no stack around them.
    pub(super) fn is_as_stored(&self) -> bool {
        let own = match self.kind {
            Kind::Quantized(tensor) => tensor.shape == self.shape,
            Kind::Plain(_) | Kind::Companion(_) => self.first_matrix == 0,
        };
        own && self.order == RowOrder::Same && self.values == Values::Same
    }

    /// Rows of one matrix: all dimensions but the last make up rows, those before them a stack.
    pub(super) fn rows_per_matrix(&self) -> u64 {
        let at = self.shape.len().checked_sub(2);
        at.and_then(|at| self.shape.get(at)).copied().unwrap_or(1)
    }

    /// Rows of all matrices.
    pub(super) fn n_rows(&self) -> u64 {
        let rows = self.shape.split_last().map_or(&[][..], |(_, rows)| rows);
        rows.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// Values of a row.
    pub(super) fn width(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows that are put in order among themselves.
    pub(super) fn order_unit(&self) -> u64 {
        match self.shape.len() {
            // The elements of a vector, which is one row.
            0 | 1 => 1,
            _ => self.order.unit(self.rows_per_matrix()).unwrap_or(1).max(1),
        }
    }

    /// Rows as they are counted in the checkpoint.
    fn stored(&self, rows: &Range<u64>) -> Range<u64> {
        let first = self.first_matrix.saturating_mul(self.rows_per_matrix());
        first.saturating_add(rows.start)..first.saturating_add(rows.end)
    }

    /// Codes and scales of rows of one matrix; whole units of the order.
    pub(super) fn tile(&self, decoder: &Decoder<'_>, rows: &Range<u64>) -> Result<CodeTile, Error> {
        let mut tile = decoder.codes(self.stored(rows))?;
        if CodeTile::has_rows_of_its_own(&decoder.tensor.scheme) {
            tile.reorder(decoder.tensor, self.order);
        }
        Ok(tile)
    }

    /// What its values are read with; `None` where it holds no dense floats.
    pub(super) fn reader(&self) -> Result<Option<Reader<'a>>, Error> {
        let backend = Backend::detect();
        Ok(match self.kind {
            Kind::Quantized(tensor) => {
                let decoder = Decoder::new(tensor, self.checkpoint, backend)?;
                let dtype = OutputDtype::Float(Float::F32);
                Some(Reader::Quantized(DenseTensor::of(decoder, dtype)))
            }
            Kind::Plain(tensor) | Kind::Companion(tensor) => {
                let is_dense = tensor.info.block.is_none();
                let float = float_of(tensor.dtype()).filter(|_| is_dense);
                float.map(|float| Reader::Plain(tensor, float))
            }
        })
    }
}

/// Reads values in F32.
pub(super) enum Reader<'a> {
    /// Of a bound weight.
    Quantized(DenseTensor<'a>),
    /// Of dense floats.
    Plain(TensorRef<'a>, Float),
}

/// What is read at once of dense floats.
const PLAIN_TILE_BYTES: u64 = 512 << 10;

impl Reader<'_> {
    /// Rows that it is best to read at once.
    pub(super) fn step(&self, side: &Side<'_>) -> u64 {
        match self {
            Reader::Quantized(dense) => dense.tiles(0..dense.n_rows()).next().map_or(1, |t| t.end),
            Reader::Plain(..) => PLAIN_TILE_BYTES / side.width().saturating_mul(4).max(1),
        }
    }

    /// Reads rows of the counterpart: of one matrix and whole units, where they have an order. `bytes` is memory that goes from
    /// tile to tile.
    pub(super) fn read(
        &self,
        side: &Side<'_>,
        rows: &Range<u64>,
        (bytes, out): (&mut Vec<u8>, &mut Vec<f32>),
    ) -> Result<(), Error> {
        let float = match self {
            Reader::Quantized(_) => Float::F32,
            Reader::Plain(_, float) => *float,
        };
        let stored = side.stored(rows);
        let n = rows.end.saturating_sub(rows.start);
        let n = n.saturating_mul(side.width());
        let n = resize(out, n, side.name)?;
        let len = n.saturating_mul(float.size_bytes());
        resize(bytes, u64::try_from(len).unwrap_or(u64::MAX), side.name)?;
        match self {
            Reader::Quantized(dense) => dense.rows(stored, bytes)?,
            Reader::Plain(tensor, float) => {
                let row_bytes = dtype_bytes(tensor.dtype(), *float).saturating_mul(side.width());
                tensor.read_exact_at(stored.start.saturating_mul(row_bytes), bytes)?;
            }
        }
        (Backend::detect().widen)(float, bytes, out);
        side.put_in_order(rows, out);
        Ok(())
    }
}

impl Side<'_> {
    fn put_in_order(&self, rows: &Range<u64>, out: &mut [f32]) {
        if self.shape.len() < 2 {
            let n = self.width();
            self.order.apply(out, &(0..n), n);
        } else {
            let per_matrix = self.rows_per_matrix();
            let first = rows.start.checked_rem(per_matrix).unwrap_or(0);
            let n = rows.end.saturating_sub(rows.start);
            self.order
                .apply(out, &(first..first.saturating_add(n)), per_matrix);
        }
        match self.values {
            Values::Same => {}
            Values::PlusOne => out.iter_mut().for_each(|value| *value += 1.0),
        }
    }
}

fn dtype_bytes(dtype: Dtype, float: Float) -> u64 {
    let own = u64::try_from(float.size_bytes()).unwrap_or(1);
    dtype.size_bytes(1).unwrap_or(own)
}

/// Makes a buffer exactly `n` long.
pub(super) fn resize<T: Copy + Default>(
    buffer: &mut Vec<T>,
    n: u64,
    module: &str,
) -> Result<usize, Error> {
    let too_large = || Error::TooLarge {
        module: module.to_owned(),
        what: "a tile of rows",
    };
    let n = usize::try_from(n).map_err(|_| too_large())?;
    let more = n.saturating_sub(buffer.len());
    buffer.try_reserve_exact(more).map_err(|_| too_large())?;
    buffer.resize(n, T::default());
    Ok(n)
}
