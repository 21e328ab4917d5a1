//! The bytes of a slice: read where they lie together, else gathered through codes.

use std::ops::Range;

use safequant_container::{AlignedBuffer, Checkpoint};
use safequant_kernels::Backend;

use super::{Slice, SliceBytes, refused};
use crate::encode::{self, encode};
use crate::storage::{grid_of, to_u64, to_usize};
use crate::{Axis, CodeTile, Decoder, EncodedRegion, Error, Part, QuantizedTensor, Role};

impl Slice {
    /// Bytes of a part of the slice.
    ///
    /// # Panics
    /// If there are not so many parts.
    pub fn part_bytes(&self, part: usize) -> u64 {
        let part = &self.tensor.parts[part];
        // A product that does not fit is longer than any memory.
        let n = part.shape.iter().fold(1, |n: u64, &d| n.saturating_mul(d));
        part.dtype.size_bytes(n).unwrap_or(u64::MAX)
    }

    /// The bytes of all parts in fresh buffers, in the order of `tensor.parts`. `source` is the tensor that was sliced.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts; no memory.
    pub fn read(
        &self,
        source: &QuantizedTensor,
        checkpoint: &Checkpoint,
        backend: &'static Backend,
    ) -> Result<Vec<AlignedBuffer>, Error> {
        let parts = self.tensor.parts.iter().enumerate();
        let fresh = |(i, part): (usize, &Part)| {
            AlignedBuffer::zeroed(self.part_bytes(i), &part.name).map_err(Error::from)
        };
        let mut buffers = parts.map(fresh).collect::<Result<Vec<_>, Error>>()?;
        let mut out: Vec<&mut [u8]> = buffers.iter_mut().map(AsMut::as_mut).collect();
        self.read_into_zeros(source, checkpoint, backend, &mut out)?;
        Ok(buffers)
    }

    /// As [`Slice::read`], into memory of the caller: a slice of [`Slice::part_bytes`] for each part.
    ///
    /// # Errors
    /// I/O, or stored values that no reader accepts. What `out` holds then is not specified.
    ///
    /// # Panics
    /// If `out` has another number of slices, or one of another length: the caller's bug.
    pub fn read_into(
        &self,
        source: &QuantizedTensor,
        checkpoint: &Checkpoint,
        backend: &'static Backend,
        out: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        assert_eq!(out.len(), self.parts.len(), "a slice for each part");
        for (i, (place, out)) in self.parts.iter().zip(&mut *out).enumerate() {
            let (found, needed) = (to_u64(out.len()), self.part_bytes(i));
            assert_eq!(found, needed, "{}", self.tensor.parts[i].name);
            if *place == SliceBytes::Gathered {
                out.fill(0);
            }
        }
        self.read_into_zeros(source, checkpoint, backend, out)
    }

    /// As [`Slice::read_into`], where what is gathered finds zeros: padding is not written.
    fn read_into_zeros(
        &self,
        source: &QuantizedTensor,
        checkpoint: &Checkpoint,
        backend: &'static Backend,
        out: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        for (i, (place, out)) in self.parts.iter().zip(&mut *out).enumerate() {
            if let SliceBytes::Stored(range) = place {
                stored_bytes(source, i, range, checkpoint, out)?;
            }
        }
        if self.parts.contains(&SliceBytes::Gathered) {
            self.gather(source, checkpoint, backend, out)?;
        }
        Ok(())
    }

    fn gather(
        &self,
        source: &QuantizedTensor,
        checkpoint: &Checkpoint,
        backend: &'static Backend,
        out: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        let decoder = Decoder::new(source, checkpoint, backend)?;
        let mut put = |region: &EncodedRegion| {
            if self.parts[region.part] == SliceBytes::Gathered {
                put(region, &mut *out[region.part]);
            }
        };
        for region in encode::constant_regions(&self.tensor) {
            put(&region);
        }
        let index = match (decoder.group_index(), self.selection.axis) {
            (Some(index), Axis::Out) => encode::group_index_region(&self.tensor, index),
            (Some(_), Axis::In) | (None, _) => encode::trivial_index_region(&self.tensor),
        };
        index.iter().for_each(&mut put);
        for region in self.factors(&decoder)? {
            put(&region);
        }
        let pieces = match self.selection.axis {
            Axis::Out => self.row_pieces(source, encode::row_unit(&self.tensor)),
            Axis::In => self.row_pieces(
                source,
                encode::row_unit(&self.tensor).max(encode::row_unit(source)),
            ),
        };
        for (rows, to) in pieces {
            let tile = decoder.codes(rows)?;
            let tile = match self.selection.axis {
                Axis::Out => CodeTile { rows: to, ..tile },
                Axis::In => self.cut_columns(source, tile)?,
            };
            for region in encode(&self.tensor, &tile, backend)? {
                put(&region);
            }
        }
        Ok(())
    }

    /// Rows of the source that are read at once, and the rows of the slice that they become.
    fn row_pieces(&self, source: &QuantizedTensor, unit: u64) -> Vec<(Range<u64>, Range<u64>)> {
        const PIECE_ELEMENTS: u64 = 1 << 22;
        let per_row = source.in_features().max(1);
        let step = (PIECE_ELEMENTS / per_row).max(1).div_ceil(unit) * unit;
        let whole = std::iter::once(0..source.out_features());
        let wanted: Vec<Range<u64>> = match self.selection.axis {
            Axis::Out => self.selection.ranges.clone(),
            Axis::In => whole.collect(),
        };
        let (mut pieces, mut to) = (Vec::new(), 0);
        for matrix in 0..source.n_matrices() {
            let base = matrix * source.out_features();
            for range in &wanted {
                let mut at = range.start;
                while at < range.end {
                    let end = at.saturating_add(step).min(range.end);
                    pieces.push((base + at..base + end, to..to + (end - at)));
                    to += end - at;
                    at = end;
                }
            }
        }
        pieces
    }

    /// The selected input features of a tile.
    fn cut_columns(&self, source: &QuantizedTensor, tile: CodeTile) -> Result<CodeTile, Error> {
        let columns = to_usize(&source.module, "a row", source.in_features())?;
        let width = to_usize(&source.module, "a code", encode::code_bytes(source))?;
        let groups = grid_of(source, Role::Scale)?.columns;
        let supers = grid_of(source, Role::SuperScale)?.columns;
        let cut = |n: usize| -> Result<Vec<Range<usize>>, Error> {
            let whole = to_u64(columns);
            let at = |feature: u64| {
                let exact = u128::from(feature) * u128::try_from(n).unwrap_or(0);
                let entry = exact.div_ceil(u128::from(whole.max(1)));
                usize::try_from(entry).map_err(|_| refused(source, "it is too large"))
            };
            if n <= 1 {
                return Ok(std::iter::once(0..n).collect());
            }
            let ranges = self.selection.ranges.iter();
            ranges.map(|r| Ok(at(r.start)?..at(r.end)?)).collect()
        };
        let (of_codes, of_scales, of_supers) = (cut(columns * width)?, cut(groups)?, cut(supers)?);
        Ok(CodeTile {
            rows: tile.rows,
            codes: select(&tile.codes, columns * width, &of_codes),
            // A sparse weight is only given as a whole.
            marks: tile.marks,
            starts: tile.starts,
            scales: select(&tile.scales, groups, &of_scales),
            zeros: select(&tile.zeros, groups, &of_scales),
            offsets: select(&tile.offsets, groups, &of_scales),
            supers: select(&tile.supers, supers, &of_supers),
            offset_supers: select(&tile.offset_supers, supers, &of_supers),
        })
    }

    /// Factors per input feature and low-rank factors, cut.
    fn factors(&self, decoder: &Decoder<'_>) -> Result<Vec<EncodedRegion>, Error> {
        let mut regions = Vec::new();
        for (i, part) in self.tensor.parts.iter().enumerate() {
            let (is_cut, on_rows) = match (part.role, self.selection.axis) {
                (Role::ColumnFactor | Role::LowRankDown, Axis::In) => {
                    (true, part.role == Role::LowRankDown)
                }
                (Role::LowRankUp, Axis::Out) => (true, true),
                _ => (false, false),
            };
            if !is_cut || self.parts[i] != SliceBytes::Gathered {
                continue;
            }
            let values = decoder.small_floats(part.role)?;
            let grid = grid_of(decoder.tensor, part.role)?;
            let ranges: Vec<Range<usize>> = self
                .selection
                .ranges
                .iter()
                .map(|r| {
                    let module = &decoder.tensor.module;
                    Ok(to_usize(module, "a cut", r.start)?..to_usize(module, "a cut", r.end)?)
                })
                .collect::<Result<_, Error>>()?;
            let cut = if on_rows {
                let rows = ranges
                    .iter()
                    .map(|r| r.start * grid.columns..r.end * grid.columns);
                rows.flat_map(|r| values[r].to_vec()).collect()
            } else {
                select(&values, grid.columns, &ranges)
            };
            regions.extend(encode::floats_region(&self.tensor, i, &cut)?);
        }
        Ok(regions)
    }
}

/// The selected columns of each row.
fn select<T: Copy>(values: &[T], columns: usize, ranges: &[Range<usize>]) -> Vec<T> {
    let rows = values.chunks(columns.max(1));
    rows.flat_map(|row| ranges.iter().flat_map(|r| row[r.clone()].iter().copied()))
        .collect()
}

fn put(region: &EncodedRegion, bytes: &mut [u8]) {
    let width = region.columns.end - region.columns.start;
    let (Ok(width), Ok(row_len)) = (usize::try_from(width), usize::try_from(region.row_len)) else {
        return;
    };
    let first = usize::try_from(region.columns.start).unwrap_or(usize::MAX);
    for (row, line) in region.rows.clone().zip(region.bytes.chunks(width.max(1))) {
        let at = usize::try_from(row)
            .unwrap_or(usize::MAX)
            .saturating_mul(row_len)
            + first;
        bytes[at..at + line.len()].copy_from_slice(line);
    }
}

fn stored_bytes(
    source: &QuantizedTensor,
    i: usize,
    range: &Range<u64>,
    checkpoint: &Checkpoint,
    out: &mut [u8],
) -> Result<(), Error> {
    let part = &source.parts[i];
    let stored = checkpoint
        .tensor(&part.name)
        .ok_or_else(|| Error::MissingPart {
            module: source.module.clone(),
            part: part.name.clone(),
        })?;
    Ok(stored.read_exact_at(range.start, out)?)
}
