//! Rows of one weight, from the checkpoint to the caller's memory.

use std::ops::Range;

use safequant_kernels::rows::{CodeLayout, StoredCodes};
use safequant_kernels::{Packing, Stores};

use super::{Decoder, Way};
use crate::storage::{Scratch, Stored, segments, to_u64};
use crate::{Error, RowsOut};

impl Decoder<'_> {
    /// Decodes rows `rows` of the stack into `out`, `[rows, in_features]`, row-major.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts.
    ///
    /// # Panics
    /// If `out` has not exactly the length of the rows.
    pub fn rows(&self, rows: Range<u64>, out: RowsOut<'_>) -> Result<(), Error> {
        let stores = Stores::for_len(out.len_bytes());
        self.rows_with(rows, (out, stores), &mut Scratch::default())
    }

    /// As [`Decoder::rows`], where `out` is a part of a whole: with the stores that suit that one, and memory that goes from
    /// part to part.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn rows_with(
        &self,
        rows: Range<u64>,
        (mut out, stores): (RowsOut<'_>, Stores),
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        if let Way::Tile = self.way {
            let tile = self.codes(rows)?;
            return self.dequantizer.tile(&tile, out);
        }
        let mut at = 0;
        for (matrix, local) in segments(&self.tensor.module, &rows, self.tensor.out_features())? {
            let cut = at * self.in_features..(at + local.len()) * self.in_features;
            at += local.len();
            self.segment(matrix, &local, (out.cut(cut), stores), scratch)?;
        }
        out.expect_len(at * self.in_features);
        Ok(())
    }

    /// Rows of one matrix in one go.
    fn segment(
        &self,
        matrix: u64,
        local: &Range<usize>,
        (out, stores): (RowsOut<'_>, Stores),
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let first = matrix * self.tensor.out_features();
        let rows = first + to_u64(local.start)..first + to_u64(local.end);
        let codes = &self.codes;
        let raw = match (self.way, &codes.stored) {
            (Way::Blocks(format), Stored::Blocks(blocks)) => {
                let bytes = blocks.bytes(codes.bytes, matrix, local, scratch)?;
                (self.backend.decode_blocks)(format, bytes, out.into_floats(), stores);
                return Ok(());
            }
            (Way::Rows { flip: Some(flip) }, stored) => {
                let raw = stored.raw(codes.bytes, matrix, local, scratch)?;
                raw.map(|raw| (raw, flip))
            }
            (Way::Rows { flip: None } | Way::Blocks(_) | Way::Tile, _) => None,
        };
        let Some((raw, flip)) = raw else {
            // Codes that were read one by one are rows of bytes.
            let tile = self.codes(rows)?;
            let codes = StoredCodes {
                bytes: &tile.codes,
                stride: self.in_features,
                layout: CodeLayout::Rows(Packing::Bytes),
            };
            return self
                .dequantizer
                .decode(&tile, (codes, 0), local, (out, stores));
        };
        let tile = self.scales(rows)?;
        let codes = StoredCodes {
            bytes: raw.bytes,
            stride: raw.stride,
            layout: raw.layout,
        };
        self.dequantizer
            .decode(&tile, (codes, flip), local, (out, stores))
    }
}
