//! A tile some rows at a time, for who looks at the values once and then drops them: they stay in the cache.

use std::ops::Range;

use safequant_kernels::rows::{
    CodeLayout, CodeMeaning, CodedRows, FloatsMut, Formula, ScaleGrid, StoredCodes, Stores, Zeros,
};
use safequant_kernels::{CodeForm, Float};

use super::{Dequantizer, RowsOut};
use crate::storage::{scale_rows, segments, to_usize};
use crate::{CodeTile, Error};

/// Values that are decoded at once.
const PART: usize = 32 << 10;

impl Dequantizer {
    /// As [`Dequantizer::tile`], in the dtype `float`, but some rows at a time: calls `see` with rows of the tile and their
    /// bytes, in order.
    ///
    /// # Errors
    /// As [`Dequantizer::tile`].
    ///
    /// # Panics
    /// If the tile is not one of this tensor.
    pub fn parts(
        &self,
        tile: &CodeTile,
        float: Float,
        see: impl FnMut(Range<usize>, &[u8]),
    ) -> Result<(), Error> {
        if self.has_parts() {
            self.fused_parts(tile, (&tile.codes, CodeForm::BYTES), float, see)
        } else {
            self.whole(tile, float, see)
        }
    }

    /// As [`Dequantizer::parts`], of a tile whose codes stand beside it as one packed run: rows are whole units of the packing.
    ///
    /// # Errors
    /// As [`Dequantizer::tile`].
    ///
    /// # Panics
    /// If the tile is not one of this tensor, or has not these codes.
    pub fn stored_parts(
        &self,
        tile: &CodeTile,
        (stored, form): (&[u8], CodeForm),
        float: Float,
        see: impl FnMut(Range<usize>, &[u8]),
    ) -> Result<(), Error> {
        if self.has_parts() {
            return self.fused_parts(tile, (stored, form), float, see);
        }
        let mut codes = vec![0; self.n_rows(tile)? * self.in_features];
        (self.backend.unpack)(form.packing, stored, &mut codes);
        for code in &mut codes {
            *code ^= form.flip;
        }
        let whole = CodeTile {
            codes,
            ..tile.clone()
        };
        self.whole(&whole, float, see)
    }

    fn has_parts(&self) -> bool {
        self.is_fused() && self.index.is_none() && self.in_features > 0
    }

    fn n_rows(&self, tile: &CodeTile) -> Result<usize, Error> {
        let n_rows = tile.rows.end.saturating_sub(tile.rows.start);
        to_usize(&self.module, "a tile", n_rows)
    }

    /// All rows at once.
    fn whole(
        &self,
        tile: &CodeTile,
        float: Float,
        mut see: impl FnMut(Range<usize>, &[u8]),
    ) -> Result<(), Error> {
        let n_rows = self.n_rows(tile)?;
        let mut buffer = vec![0; n_rows * self.in_features * float.size_bytes()];
        self.tile(tile, RowsOut::Bytes(float, &mut buffer))?;
        see(0..n_rows, &buffer);
        Ok(())
    }

    fn fused_parts(
        &self,
        tile: &CodeTile,
        (stored, form): (&[u8], CodeForm),
        float: Float,
        mut see: impl FnMut(Range<usize>, &[u8]),
    ) -> Result<(), Error> {
        let columns = self.in_features;
        let row_bytes = columns * float.size_bytes();
        let prepared = self.prepare(tile, self.step(float))?;
        let offsets = self.offsets(&prepared);
        let stride = form.packing.packed_len_bytes(columns, 1);
        let at_once = (PART / columns).max(1);
        let mut buffer = vec![0; at_once * row_bytes];
        let (mut first, mut scale) = (0, 0);
        for (_, local) in segments(&self.module, &tile.rows, self.out_features)? {
            let codes = StoredCodes {
                bytes: &stored[first * stride..(first + local.len()) * stride],
                stride,
                layout: CodeLayout::Rows(form.packing),
            };
            let codes = (codes, form.flip);
            let all = self.coded((&prepared, &offsets), codes, &local, Some(float));
            for start in (0..local.len()).step_by(at_once) {
                let rows = start..(start + at_once).min(local.len());
                let bytes = &mut buffer[..rows.len() * row_bytes];
                let out = FloatsMut::Bytes(float, bytes);
                (self.backend.decode_rows)(&cut(&all, &rows, scale), out, Stores::Ordinary);
                see(first + rows.start..first + rows.end, bytes);
            }
            first += local.len();
            scale += scale_rows(self.scheme.granularity, &local, columns).len() * self.n_groups;
        }
        Ok(())
    }
}

/// Some of the rows; `scale` entries of the grid belong to other matrices before them.
fn cut<'t>(all: &CodedRows<'t>, rows: &Range<usize>, scale: usize) -> CodedRows<'t> {
    let grid = all.grid;
    let skip = scale + grid.line(rows.start) * grid.width(all.n_columns);
    let of_offsets = |offsets: &'t [f32]| &offsets[skip..];
    CodedRows {
        n_rows: rows.len(),
        codes: StoredCodes {
            bytes: &all.codes.bytes[rows.start * all.codes.stride..rows.end * all.codes.stride],
            ..all.codes
        },
        value: match all.value {
            CodeMeaning::Integer {
                flip,
                zero: Zeros::Each(zeros),
            } => CodeMeaning::Integer {
                flip,
                zero: Zeros::Each(&zeros[skip..]),
            },
            value @ (CodeMeaning::Integer {
                zero: Zeros::Fixed(_),
                flip: _,
            }
            | CodeMeaning::Minifloat(_)
            | CodeMeaning::Table16(_)) => value,
        },
        grid: ScaleGrid {
            // No scales are scales of 1.
            scales: grid.scales.get(skip..).unwrap_or_default(),
            rows_before: grid.rows_before.saturating_add(rows.start) % grid.rows,
            ..grid
        },
        formula: match all.formula {
            Formula::PlusOffset { offsets, step } => Formula::PlusOffset {
                offsets: of_offsets(offsets),
                step,
            },
            Formula::MinusOffset { offsets, step } => Formula::MinusOffset {
                offsets: of_offsets(offsets),
                step,
            },
            Formula::OffsetFirst { offsets, step } => Formula::OffsetFirst {
                offsets: of_offsets(offsets),
                step,
            },
            formula @ (Formula::Product | Formula::Quotient | Formula::ProductTimes(_)) => formula,
        },
        ..*all
    }
}
