//! Codes of sparse tensors: the mask, where rows begin, and what is kept.

use std::ops::Range;

use safequant_container::Checkpoint;
use safequant_kernels::Backend;

use super::{Located, locate};
use crate::storage::{Sparse, WordShift};
use crate::{Error, QuantizedTensor, Role};

/// Where the parts of a sparse tensor lie that say which entries are stored.
pub(super) struct SparseParts<'a> {
    tensor: &'a QuantizedTensor,
    sparse: Sparse,
    mask: Located<'a>,
    starts: Option<Located<'a>>,
}

/// Codes of some rows of one matrix, and which of them are stored.
#[derive(Default)]
pub(super) struct SparseRows {
    /// As [`crate::CodeTile::codes`], before the encoding of integers is undone.
    pub(super) codes: Vec<u8>,
    /// As [`crate::CodeTile::marks`].
    pub(super) marks: Vec<u8>,
    /// As [`crate::CodeTile::starts`].
    pub(super) starts: Vec<u64>,
}

impl<'a> SparseParts<'a> {
    /// `None` for a tensor all of whose entries are stored.
    pub(super) fn new(
        tensor: &'a QuantizedTensor,
        checkpoint: &'a Checkpoint,
    ) -> Result<Option<Self>, Error> {
        let Some(sparse) = Sparse::new(tensor)? else {
            return Ok(None);
        };
        let starts = if sparse.has_starts() {
            Some(locate(tensor, Role::RowStart, checkpoint)?)
        } else {
            None
        };
        Ok(Some(Self {
            tensor,
            mask: locate(tensor, Role::Mask, checkpoint)?,
            starts,
            sparse,
        }))
    }

    pub(super) fn row_unit(&self) -> usize {
        self.mask.stored.row_unit()
    }

    pub(super) fn scratch_bytes(&self, n_rows: u64) -> u64 {
        self.sparse
            .scratch_bytes(n_rows)
            .saturating_add(self.mask.stored.scratch_bytes(n_rows))
    }

    /// Reads rows of one matrix.
    pub(super) fn read(
        &self,
        codes: &Located<'_>,
        rows: &Range<usize>,
        backend: &'static Backend,
    ) -> Result<SparseRows, Error> {
        let raw = |part: &Located<'_>, rows: &Range<usize>| {
            part.stored
                .read(part.bytes, 0, rows, backend, WordShift::None)
        };
        let marks = self
            .sparse
            .marks(self.tensor, rows, raw(&self.mask, rows)?)?;
        let mut starts = match &self.starts {
            Some(part) => starts_of(&raw(part, &self.sparse.start_rows(rows))?),
            None => Vec::new(),
        };
        let kept = self.sparse.kept_rows(self.tensor, rows, &marks, &starts)?;
        starts.truncate(rows.len());
        Ok(SparseRows {
            codes: self.sparse.spread(&raw(codes, &kept)?, &marks),
            marks,
            starts,
        })
    }
}

/// I64 numbers; a negative one is beyond every tensor.
fn starts_of(bytes: &[u8]) -> Vec<u64> {
    let numbers = bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b));
    numbers
        .map(|n| u64::try_from(n).unwrap_or(u64::MAX))
        .collect()
}
