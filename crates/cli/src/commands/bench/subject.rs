//! What can be measured: the formats that the kernels list.

use std::ops::Range;

use safequant::kernels::samples::{BLOCKS, BlockWork, SAMPLES, Sample, Work};
use safequant::kernels::{BlockFormat, Stores};
use safequant::{Backend, Float};

/// What results are rounded to.
pub(super) const FLOAT: Float = Float::Bf16;

/// A format.
#[derive(Clone, Copy)]
pub(super) enum Subject {
    /// Stored rows and a grid of scales.
    Rows(&'static Sample),
    /// Blocks that hold everything.
    Blocks(BlockFormat),
}

impl Subject {
    /// Every one, in the order of the kernels' lists.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let rows = SAMPLES.iter().map(Self::Rows);
        rows.chain(BLOCKS.iter().copied().map(Self::Blocks))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rows(sample) => sample.name,
            Self::Blocks(format) => format.name(),
        }
    }

    /// A matrix of it.
    pub(super) fn matrix(self, n_rows: usize, n_columns: usize) -> Matrix {
        match self {
            Self::Rows(sample) => Matrix::Rows(Work::new(sample, n_rows, n_columns)),
            Self::Blocks(format) => Matrix::Blocks(BlockWork::new(format, n_rows, n_columns)),
        }
    }
}

/// A matrix of some format.
pub(super) enum Matrix {
    Rows(Work),
    Blocks(BlockWork),
}

impl Matrix {
    pub(super) fn stored(&self) -> &[u8] {
        match self {
            Self::Rows(work) => work.stored(),
            Self::Blocks(work) => work.stored(),
        }
    }

    /// Bytes that `n_rows` rows are stored in.
    pub(super) fn stored_len(&self, n_rows: usize) -> usize {
        match self {
            Self::Rows(work) => work.stored_len(n_rows),
            Self::Blocks(work) => work.stored_len(n_rows),
        }
    }

    /// Bytes that `n_rows` rows become.
    pub(super) fn out_len(&self, n_rows: usize) -> usize {
        match self {
            Self::Rows(work) => work.out_len(n_rows, FLOAT),
            Self::Blocks(work) => work.out_len(n_rows, FLOAT),
        }
    }

    pub(super) fn decode(
        &self,
        backend: &Backend,
        rows: Range<usize>,
        out: &mut [u8],
        stores: Stores,
    ) {
        match self {
            Self::Rows(work) => work.decode(backend, rows, (FLOAT, out), stores),
            Self::Blocks(work) => work.decode(backend, rows, (FLOAT, out), stores),
        }
    }
}
