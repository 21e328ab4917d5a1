//! One tensor of a file: what the header says of it, and the same with its bytes.

use std::ops::Range;

use crate::{BlockType, Dtype, Error, Name, Shape, Shard};

/// A tensor as its header describes it, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, as unescaped from JSON: hostile input, escape it before it reaches a screen.
    pub name: Name,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar. Counts elements, for sub-byte dtypes too.
    pub shape: Shape,
    /// Where the bytes lie, relative to the start of the *file*.
    pub range: Range<u64>,
    /// The block type of a GGUF file, whose blocks lie along the last dimension: `dtype` is U8 and that dimension counts
    /// bytes then.
    pub block: Option<&'static BlockType>,
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

    /// Dimensions in elements: the shape, but for block types, where the last dimension counts bytes in the shape.
    pub fn logical_shape(&self) -> Vec<u64> {
        let mut shape = self.shape.to_vec();
        if let (Some(block), Some(last)) = (self.block, shape.last_mut()) {
            *last = *last / block.bytes * block.elements;
        }
        shape
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

/// A tensor of a checkpoint together with the shard that holds it.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    /// The file.
    pub shard: &'a Shard,
    /// What its header says.
    pub info: &'a TensorInfo,
}

impl<'a> TensorRef<'a> {
    /// The tensor's name.
    pub fn name(self) -> &'a str {
        &self.info.name
    }

    /// Element type.
    pub fn dtype(self) -> Dtype {
        self.info.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(self) -> &'a [u64] {
        &self.info.shape
    }

    /// Fills `out` with the bytes from `offset` (relative to the tensor's first byte) on.
    ///
    /// # Errors
    /// An I/O error that names shard and tensor; a range outside the tensor is refused before anything is read.
    pub fn read_exact_at(self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.check_range(offset, out.len() as u64)?;
        self.read_checked(offset, out)
    }

    /// Says that bytes from `offset` on will be read soon; what lies outside the tensor is left out.
    pub fn will_need(self, offset: u64, len_bytes: u64) {
        let all = self.info.len_bytes();
        let (start, end) = (offset.min(all), offset.saturating_add(len_bytes).min(all));
        let source = &self.shard.source;
        source.will_need(self.info.range.start + start, end - start);
    }

    fn check_range(self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let end = offset.checked_add(len_bytes);
        if end.is_some_and(|end| end <= self.info.len_bytes()) {
            return Ok(());
        }
        Err(Error::OutsideTensor {
            file: self.shard.name.clone(),
            tensor: self.info.name.to_string(),
            offset,
            len_bytes,
            tensor_len_bytes: self.info.len_bytes(),
        })
    }

    fn read_checked(self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let read = self
            .shard
            .source
            .read_exact_at(self.info.range.start + offset, out);
        read.map_err(|source| Error::TensorIo {
            file: self.shard.name.clone(),
            tensor: self.info.name.to_string(),
            source,
        })
    }

    /// Reads a rectangle of a tensor seen as rows of `row_len_bytes`: rows `rows`, bytes `columns` of each, one after
    /// the other into `out`. Adjacent rows are fetched in one request where the rectangle spans them whole.
    ///
    /// # Errors
    /// As [`TensorRef::read_exact_at`].
    ///
    /// # Panics
    /// If `out.len()` is not the rectangle's size, or if `columns` do not lie within a row: the caller's bug.
    pub fn read_rectangle(
        self,
        row_len_bytes: u64,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        assert!(
            columns.end <= row_len_bytes,
            "columns {columns:?} of rows of {row_len_bytes}"
        );
        let width = columns.end.saturating_sub(columns.start);
        let n_rows = rows.end.saturating_sub(rows.start);
        let size = n_rows.checked_mul(width);
        assert_eq!(
            size,
            Some(out.len() as u64),
            "length of rows {rows:?}, columns {columns:?}"
        );
        if out.is_empty() {
            return Ok(());
        }
        // The end of the last row bounds all other offsets.
        self.check_range((rows.end - 1).saturating_mul(row_len_bytes), columns.end)?;
        let mut offset = rows.start * row_len_bytes + columns.start;
        if width == row_len_bytes {
            return self.read_checked(offset, out);
        }
        let width = usize::try_from(width).expect("not more than the output's length");
        for row in out.chunks_exact_mut(width) {
            self.read_checked(offset, row)?;
            offset += row_len_bytes;
        }
        Ok(())
    }

    /// The whole tensor, if it has at most `max_len_bytes`.
    ///
    /// # Errors
    /// As [`TensorRef::read_exact_at`], or a limit error that names both lengths.
    pub fn read_all(self, max_len_bytes: u64) -> Result<Vec<u8>, Error> {
        let found = self.info.len_bytes();
        if found > max_len_bytes {
            return Err(Error::TensorTooLarge {
                file: self.shard.name.clone(),
                tensor: self.info.name.to_string(),
                found,
                limit: max_len_bytes,
            });
        }
        let len = usize::try_from(found).ok();
        // Zeros of the system's, where there are many: they are all overwritten.
        let zeroed = len.and_then(|len| bytemuck::allocation::try_zeroed_vec(len).ok());
        let mut bytes = zeroed.ok_or_else(|| Error::OutOfMemory {
            file: self.shard.name.clone(),
            len_bytes: found,
        })?;
        self.read_checked(0, &mut bytes)?;
        Ok(bytes)
    }
}
