//! A tile of rows on its way to codes.

use std::borrow::Cow;
use std::ops::Range;

use safequant_kernels::{
    Backend, Candidate, Codebook, Levels, Matrix, MatrixMut, Minifloat, NanRule, OverflowRule,
    Product, Sign,
};
use safequant_schemes::{Code, Granularity, Scheme, ZeroPoint};

use super::Searched;
use crate::feedback::round_columns;
use crate::grid::widen;
use crate::inputs::OutputLoss;
use crate::lattice;
use crate::nested::Nesting;
use crate::prepared::Prepared;
use crate::quantizers::round_to_nearest::{Stop, has_super_scale, known_extremes, stored_dtype};
use crate::refine::{Refinement, output_losses};
use crate::rules::Group;
use crate::search::{
    GroupFormat, RowFormat, RowScales, Sharing, SuperBlocks, ends_of, half_quadratic,
};
use crate::{Effort, Error, Output, Rows, Statistics, Target};

/// Rows that are worked on at once.
pub(super) const ROWS: u64 = 128;

pub(super) struct Tile<'a, 'o> {
    method: Searched,
    target: &'a Target,
    rows: &'a Rows<'a>,
    statistics: Option<&'a Statistics>,
    prepared: &'a Prepared,
    out: &'a mut Output<'o>,
    backend: &'static Backend,
    /// One for each value so far, one to a byte.
    pub(super) codes: Vec<u8>,
}

/// How a matrix is cut into groups.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// So many columns of each row for itself.
    Rows { group: usize },
    /// So many columns of so many rows.
    Blocks { rows: usize, group: usize },
    /// All of it.
    Matrix,
}

impl Cut {
    fn of(scheme: &Scheme, in_features: usize) -> Result<Self, Error> {
        let fits = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
        Ok(match scheme.granularity {
            Granularity::Tensor => Self::Matrix,
            Granularity::Channel => Self::Rows { group: in_features },
            Granularity::Group { size } => Self::Rows {
                group: fits(size).min(in_features),
            },
            Granularity::Flat { size } if in_features.is_multiple_of(fits(size)) => {
                Self::Rows { group: fits(size) }
            }
            Granularity::Block { rows, columns } => Self::Blocks {
                rows: fits(rows),
                group: fits(columns).min(in_features),
            },
            Granularity::Flat { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Strided { .. } => {
                return Err(Error::UnsupportedScheme {
                    reason: "a search needs groups that are columns of a row; rtn has no such need",
                });
            }
        })
    }
}

impl<'a, 'o> Tile<'a, 'o> {
    pub(super) fn new(
        (method, target): (Searched, &'a Target),
        rows: &'a Rows<'a>,
        statistics: Option<&'a Statistics>,
        out: &'a mut Output<'o>,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        let prepared = statistics.and_then(|s| s.prepared.as_deref());
        let prepared = prepared.ok_or_else(|| Error::Inputs {
            reason: "the matrix was not prepared".to_owned(),
        })?;
        if prepared.weights.len() != rows.in_features {
            return Err(Error::Inputs {
                reason: format!(
                    "they were prepared for {} input features, and the matrix has {}",
                    prepared.weights.len(),
                    rows.in_features
                ),
            });
        }
        out.tile.rows = rows.first_row..rows.first_row + widen(rows.n_rows());
        Ok(Self {
            method,
            target,
            rows,
            statistics,
            prepared,
            out,
            backend,
            codes: Vec::with_capacity(rows.values.len()),
        })
    }

    /// All rows, matrix by matrix.
    pub(super) fn quantize(&mut self, values: &[f32]) -> Result<(), Stop> {
        let n = self.rows.in_features;
        if n == 0 || values.is_empty() {
            return Ok(());
        }
        let cut = Cut::of(&self.target.scheme, n)?;
        let n_rows = values.len() / n;
        let mut start = 0;
        while start < n_rows {
            let first = self.rows.first_row + widen(start);
            let (matrix, within) = (
                first / self.rows.out_features,
                first % self.rows.out_features,
            );
            let left = usize::try_from(self.rows.out_features - within).unwrap_or(usize::MAX);
            let end = start.saturating_add(left).min(n_rows);
            self.matrix(matrix, cut, start..end, values)?;
            start = end;
        }
        Ok(())
    }

    /// Rows of one matrix.
    fn matrix(
        &mut self,
        matrix: u64,
        cut: Cut,
        rows: Range<usize>,
        values: &[f32],
    ) -> Result<(), Stop> {
        let at_once = match cut {
            Cut::Rows { .. } | Cut::Matrix => usize::try_from(ROWS).unwrap_or(1),
            Cut::Blocks { rows, .. } => usize::try_from(ROWS).unwrap_or(1).next_multiple_of(rows),
        };
        let format = self.format(matrix, cut, &rows)?;
        let nested = self.nested(&format, &rows, values)?;
        let shared = match cut {
            Cut::Matrix => Some(self.of_matrix(matrix, &format, &rows)?),
            Cut::Rows { .. } | Cut::Blocks { .. } => None,
        };
        for start in rows.clone().step_by(at_once) {
            let part = start..(start + at_once).min(rows.end);
            let n = self.rows.in_features;
            let cells = &*self.targets(&values[part.start * n..part.end * n]);
            let scales = match (&shared, cut) {
                (Some(shared), _) => vec![shared.clone(); part.len()],
                (None, Cut::Blocks { rows, .. }) => self.of_blocks(&format, &part, rows, cells)?,
                (None, Cut::Rows { .. } | Cut::Matrix) => {
                    let per_row = nested.len() / rows.len().max(1);
                    let nested =
                        &nested[(part.start - rows.start) * per_row..][..part.len() * per_row];
                    self.of_rows(&format, &part, (cells, nested))?
                }
            };
            self.part(&format, cut, cells, scales);
        }
        Ok(())
    }

    /// What the scale of each group of some rows of a matrix is scaled by, where scales are quantized themselves; else nothing.
    fn nested(
        &mut self,
        format: &Format,
        rows: &Range<usize>,
        values: &[f32],
    ) -> Result<Vec<f32>, Stop> {
        let scheme = &self.target.scheme;
        let (Some(nesting), Format::Groups(format)) = (Nesting::of(scheme), format) else {
            return Ok(Vec::new());
        };
        nesting.assert_whole_blocks(scheme.granularity, self.rows);
        let n = self.rows.in_features;
        let mut scales = Vec::new();
        for row in rows.clone() {
            let groups = values[row * n..(row + 1) * n].chunks(format.group());
            for (g, values) in groups.enumerate() {
                let scale = format.scale_of(ends_of(values), values.len() < format.group());
                scales.push(scale.map_err(|scale| self.refused(row, (g, scale)))?);
            }
        }
        for block in scales.chunks_mut(nesting.size) {
            let above = nesting.above(block);
            block.fill(above);
            self.out.tile.supers.push(above);
        }
        Ok(scales)
    }

    /// What rows are to become: themselves, or what makes up for the inputs of a model that is quantized up to here.
    fn targets<'v>(&self, cells: &'v [f32]) -> Cow<'v, [f32]> {
        let curvature = self.prepared.curvature.as_ref();
        let Some(correction) = curvature.and_then(|c| c.correction.as_ref()) else {
            return Cow::Borrowed(cells);
        };
        let n = self.rows.in_features;
        let mut targets = cells.to_vec();
        (self.backend.add_product)(Product {
            c: MatrixMut {
                values: &mut targets,
                shape: (cells.len() / n, n),
                row_stride: n,
            },
            a: Matrix::of_rows(cells, (cells.len() / n, n), n),
            b: Matrix::of_rows(correction, (n, n), n),
            sign: Sign::Plus,
            packed: &mut Vec::new(),
        });
        Cow::Owned(targets)
    }

    fn format(&mut self, matrix: u64, cut: Cut, rows: &Range<usize>) -> Result<Format, Stop> {
        let n = self.rows.in_features;
        if let Some(blocks) = SuperBlocks::new(&self.target.scheme, n)? {
            return Ok(Format::Super(Box::new(blocks)));
        }
        let mut above = 1.0;
        if has_super_scale(&self.target.scheme) {
            let known = known_extremes(self.statistics, matrix)?;
            let ends = (known.low, known.high);
            let found = GroupFormat::super_scale(self.target, self.rows.source, ends)?;
            above = found.map_err(|scale| self.overflow(rows.start, 0, scale, "F32"))?;
            self.out.tile.supers.push(above);
        }
        let grouping = match cut {
            Cut::Rows { group } => (group, Sharing::None),
            Cut::Blocks { group, .. } => (group, Sharing::Rows),
            Cut::Matrix => (n, Sharing::Rows),
        };
        let format = GroupFormat::new(self.target, self.rows.source, grouping, above)?;
        Ok(Format::Groups(Box::new(format)))
    }

    fn overflow(&self, row: usize, group: usize, scale: f32, dtype: &'static str) -> Stop {
        Stop::Refused(Error::ScaleOverflow {
            row: self.rows.first_row + widen(row),
            group: widen(group),
            scale,
            dtype,
        })
    }

    fn refused(&self, row: usize, (group, scale): (usize, f32)) -> Stop {
        self.overflow(row, group, scale, stored_dtype(self.target.scheme.scale))
    }

    /// The scale that all rows of a matrix share: the tool's own, as it follows from the extremes.
    fn of_matrix(
        &self,
        matrix: u64,
        format: &Format,
        rows: &Range<usize>,
    ) -> Result<RowScales, Stop> {
        let known: Group = known_extremes(self.statistics, matrix)?;
        let Format::Groups(format) = format else {
            return Ok(RowScales::default());
        };
        let found = format.first_of((known.low, known.high), false, None);
        let (stored, effective) = found.map_err(|scale| self.refused(rows.start, (0, scale)))?;
        Ok(RowScales {
            effective: vec![effective],
            stored: vec![stored],
            ..RowScales::default()
        })
    }

    fn of_rows(
        &self,
        format: &Format,
        part: &Range<usize>,
        (cells, nested): (&[f32], &[f32]),
    ) -> Result<Vec<RowScales>, Stop> {
        let effort = self.prepared.settings.effort;
        let weights = &self.prepared.weights;
        let rows = cells.chunks_exact(self.rows.in_features).enumerate();
        let per_row = nested.len() / part.len().max(1);
        rows.map(|(i, values)| {
            let mut row = RowScales {
                nested: nested[i * per_row..(i + 1) * per_row].to_vec(),
                ..RowScales::default()
            };
            let done =
                if let (Searched::HalfQuadratic, Format::Groups(format)) = (self.method, format) {
                    half_quadratic(format, values, self.backend, &mut row)
                } else {
                    let format = format.as_row_format();
                    format.choose(values, weights, effort, self.backend, &mut row)
                };
            done.map_err(|group| self.refused(part.start + i, group))?;
            Ok(row)
        })
        .collect()
    }

    /// Scales of blocks of rows.
    fn of_blocks(
        &self,
        format: &Format,
        part: &Range<usize>,
        block_rows: usize,
        cells: &[f32],
    ) -> Result<Vec<RowScales>, Stop> {
        let Format::Groups(format) = format else {
            return Ok(Vec::new());
        };
        let (n, size) = (self.rows.in_features, format.group());
        let effort = self.prepared.settings.effort;
        let mut found = Vec::with_capacity(part.len());
        for (b, band) in cells.chunks(block_rows * n).enumerate() {
            let mut row = RowScales::default();
            for (g, weights) in self.prepared.weights.chunks(size).enumerate() {
                let columns = g * size..g * size + weights.len();
                let lines = band.chunks_exact(n).map(|line| &line[columns.clone()]);
                let block: Vec<f32> = lines.flatten().copied().collect();
                let weights = weights.repeat(band.len() / n);
                let first = format.first_of(ends_of(&block), false, None);
                let first =
                    first.map_err(|scale| self.refused(part.start + b * block_rows, (g, scale)))?;
                let of = (block.as_slice(), weights.as_slice());
                let (stored, effective) = format.search(of, first, None, effort, self.backend);
                row.stored.push(stored);
                row.effective.push(effective);
            }
            found.extend(std::iter::repeat_n(row, band.len() / n));
        }
        Ok(found)
    }

    /// Codes of some rows whose scales are chosen, and everything that is stored of them.
    fn part(&mut self, format: &Format, cut: Cut, cells: &[f32], mut scales: Vec<RowScales>) {
        let chosen = self.levels(format.as_row_format(), cells, &mut scales);
        let levels = format.as_row_format().levels();
        append_codes(
            &self.target.scheme,
            levels,
            &chosen,
            self.backend,
            &mut self.codes,
        );
        let tile = &mut *self.out.tile;
        let stored_rows = match cut {
            Cut::Rows { .. } => 1,
            Cut::Blocks { rows, .. } => rows,
            Cut::Matrix if tile.scales.is_empty() => scales.len(),
            // The one scale of the matrix is there already.
            Cut::Matrix => return,
        };
        for row in scales.iter().step_by(stored_rows) {
            for stored in &row.stored {
                tile.scales.push(stored.scale);
                match self.target.scheme.zero_point {
                    ZeroPoint::Stored(_) => tile.zeros.push(stored.zero),
                    ZeroPoint::Offset { .. } => tile.offsets.push(stored.offset),
                    ZeroPoint::Fixed(_) => {}
                }
            }
            tile.supers.extend(&row.supers);
            tile.offset_supers.extend(&row.offset_supers);
        }
    }

    fn levels(
        &mut self,
        format: &dyn RowFormat,
        cells: &[f32],
        scales: &mut [RowScales],
    ) -> Vec<f32> {
        let (Searched::Feedback | Searched::Refine, Some(curvature)) =
            (self.method, &self.prepared.curvature)
        else {
            let weights = &self.prepared.weights;
            return match format.lattice() {
                Some(lattice) => {
                    let of_groups = (&*scales, format.group());
                    lattice::nearest(lattice, (cells, weights), of_groups, self.backend)
                }
                None => nearest(format, cells, scales, self.backend),
            };
        };
        let effort = self.prepared.settings.effort;
        let of_groups = (&*scales, format.group());
        let factor = &curvature.factor;
        let (mut chosen, losses) = if let Some(lattice) = format.lattice() {
            lattice::feed_back((lattice, effort), cells, of_groups, factor, self.backend)
        } else {
            let levels = format.levels();
            round_columns(effort, levels, cells, of_groups, factor, self.backend)
        };
        // What the outputs are, to compare losses with, costs as much again as error feedback.
        let least = match self.method {
            Searched::Refine => Effort::Default,
            Searched::MeanSquares | Searched::HalfQuadratic | Searched::Feedback => Effort::High,
        };
        let is_told = effort >= least;
        let noise = if self.method == Searched::Refine {
            let rows = (chosen.as_mut_slice(), scales);
            let mut refinement = Refinement::new(format, curvature, cells, rows, self.backend);
            refinement.run(rounds(effort));
            is_told.then(|| refinement.noise())
        } else {
            let added = f64::from(curvature.factor.added);
            is_told.then(|| undamped(format, (cells, &chosen), (scales, &losses), added))
        };
        if let Some(noise) = noise {
            let losses: Vec<OutputLoss> = output_losses(curvature, cells, &noise, self.backend);
            self.out.output_losses.extend(losses);
        }
        chosen
    }
}

/// Rounds of sweeps.
const fn rounds(effort: Effort) -> usize {
    match effort {
        Effort::Fast => 1,
        Effort::Default => 2,
        Effort::High | Effort::Max => 6,
    }
}

/// The format of the rows of a matrix.
enum Format {
    Groups(Box<GroupFormat>),
    Super(Box<SuperBlocks>),
}

impl Format {
    fn as_row_format(&self) -> &dyn RowFormat {
        match self {
            Format::Groups(format) => &**format,
            Format::Super(format) => &**format,
        }
    }
}

/// Each value to the nearest level.
fn nearest(
    format: &dyn RowFormat,
    cells: &[f32],
    scales: &[RowScales],
    backend: &'static Backend,
) -> Vec<f32> {
    let n = cells.len() / scales.len().max(1);
    let mut chosen = vec![0.0; cells.len()];
    let rows = chosen.chunks_exact_mut(n).zip(cells.chunks_exact(n));
    for ((chosen, values), row) in rows.zip(scales) {
        let groups = chosen
            .chunks_mut(format.group())
            .zip(values.chunks(format.group()));
        for ((chosen, values), candidate) in groups.zip(&row.effective) {
            (backend.nearest)(format.levels(), values, *candidate, chosen);
        }
    }
    chosen
}

/// What rows lose by `H` alone, of what they lose by `H` with so much added to its diagonal.
fn undamped(
    format: &dyn RowFormat,
    (cells, chosen): (&[f32], &[f32]),
    (scales, losses): (&[RowScales], &[f64]),
    added: f64,
) -> Vec<f64> {
    let n = cells.len() / scales.len().max(1);
    let square = |cells: &[f32], chosen: &[f32], candidate: &Candidate| -> f64 {
        let pairs = cells.iter().zip(chosen);
        let errors =
            pairs.map(|(cell, level)| f64::from(candidate.value(*level)) - f64::from(*cell));
        errors.map(|error| error * error).sum()
    };
    let rows = cells.chunks_exact(n).zip(chosen.chunks_exact(n));
    let rows = rows.zip(scales.iter().zip(losses));
    rows.map(|((cells, chosen), (row, loss))| {
        let groups = cells
            .chunks(format.group())
            .zip(chosen.chunks(format.group()));
        let squares = groups.zip(&row.effective);
        let sum: f64 = squares
            .map(|((cells, chosen), of)| square(cells, chosen, of))
            .sum();
        (loss - added * sum).max(0.0)
    })
    .collect()
}

/// The codes of levels.
pub(crate) fn append_codes(
    scheme: &Scheme,
    levels: Levels,
    chosen: &[f32],
    backend: &'static Backend,
    out: &mut Vec<u8>,
) {
    let (low, _) = levels.ends();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "levels less the least of them are whole numbers below 256"
    )]
    let integer = |level: &f32| (level - low) as u8;
    match scheme.code {
        Code::Minifloat(format) => {
            let start = out.len();
            out.resize(start + chosen.len(), 0);
            encode_minifloat(format, chosen, backend, &mut out[start..]);
        }
        Code::Codebook(book) => out.extend(chosen.iter().map(|level| index_of(book, *level))),
        Code::Integer { .. } | Code::StoredCodebook | Code::Dense(_) => {
            out.extend(chosen.iter().map(integer));
        }
    }
}

fn encode_minifloat(format: Minifloat, chosen: &[f32], backend: &'static Backend, out: &mut [u8]) {
    // Levels are values of the format: no rule for others is asked.
    (backend.encode_minifloat)(format, OverflowRule::Saturate, NanRule::Torch, chosen, out);
}

/// The first code with this value.
#[expect(clippy::float_cmp, reason = "levels are values of the book")]
fn index_of(book: Codebook, level: f32) -> u8 {
    let found = book.values().iter().position(|value| *value == level);
    found.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
}
