//! Round-to-nearest: the scale from the extremes of a group, each weight to the nearest code.
//!
//! What "nearest" means down to the last bit is the business of a [`crate::ScaleRule`]: each repeats one reference tool.
//! Spec: `specs/quantizers/round_to_nearest.md`.

use std::borrow::Cow;

use safequant_kernels::{Backend, Float};
use safequant_schemes::{CodeTile, ScaleCoding, ZeroPoint};

use crate::grid::{Cell, Grid, widen};
use crate::quantizer::NonFinite;
use crate::rule::{Choice, Rule};
use crate::{Error, Quantizer, Rows, Statistics, Target};

/// The quantizer `rtn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundToNearest;

impl Quantizer for RoundToNearest {
    fn id(&self) -> &'static str {
        "rtn"
    }

    fn summary(&self) -> &'static str {
        "round to nearest, scales from the extremes as the convention's own tool chooses them"
    }

    fn observe(
        &self,
        target: &Target,
        rows: Rows<'_>,
        backend: &'static Backend,
    ) -> Result<Statistics, Error> {
        let values = finite(target.nonfinite, &rows, backend)?;
        let mut statistics = Statistics::default();
        for cell in Grid::new(safequant_schemes::Granularity::Tensor, &rows)?.cells() {
            let index = usize::try_from(cell.matrix).unwrap_or(usize::MAX);
            let extremes = extremes(&values, rows.in_features, &cell, backend);
            statistics.extremes.resize(index + 1, (0.0, 0.0));
            statistics.extremes[index] = extremes;
        }
        Ok(statistics)
    }

    fn quantize(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        backend: &'static Backend,
    ) -> Result<CodeTile, Error> {
        let rule = Rule::new(target, rows.source)?;
        let grid = Grid::new(target.scheme.granularity, &rows)?;
        let values = finite(target.nonfinite, &rows, backend)?;
        let mut tile = CodeTile {
            rows: rows.first_row..rows.first_row + widen(rows.n_rows()),
            codes: vec![0; values.len()],
            ..CodeTile::default()
        };
        for cell in grid.cells() {
            let extremes = if self.needs_statistics(target) {
                known_extremes(statistics, cell.matrix)?
            } else {
                extremes(&values, rows.in_features, &cell, backend)
            };
            let choice = rule
                .choose(extremes)
                .map_err(|scale| Error::ScaleOverflow {
                    row: rows.first_row + widen(cell.rows.start),
                    group: widen(cell.group),
                    scale,
                    dtype: stored_dtype(target),
                })?;
            record(&mut tile, target, choice);
            for row in cell.rows.clone() {
                let run = run(rows.in_features, row, &cell);
                choice.encode(&values[run.clone()], &mut tile.codes[run], backend);
            }
        }
        Ok(tile)
    }
}

/// Where the values of one row of a cell lie in the tile.
fn run(in_features: usize, row: usize, cell: &Cell) -> std::ops::Range<usize> {
    let start = row * in_features;
    start + cell.columns.start..start + cell.columns.end
}

fn record(tile: &mut CodeTile, target: &Target, choice: Choice) {
    tile.scales.push(choice.scale);
    match target.scheme.zero_point {
        ZeroPoint::Stored(_) => tile.zeros.push(choice.zero),
        ZeroPoint::Fixed(_) | ZeroPoint::Offset { .. } => {}
    }
}

fn stored_dtype(target: &Target) -> Float {
    match target.scheme.scale {
        ScaleCoding::Float(dtype) => dtype,
        // `Rule::new` has refused it.
        ScaleCoding::E8M0(_)
        | ScaleCoding::Minifloat(_)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => Float::F32,
    }
}

/// Smallest and largest value of a cell, both including 0.
fn extremes(
    values: &[f32],
    in_features: usize,
    cell: &Cell,
    backend: &'static Backend,
) -> (f32, f32) {
    let mut all = (0.0_f32, 0.0_f32);
    for row in cell.rows.clone() {
        let (low, high) = (backend.min_max)(&values[run(in_features, row, cell)]);
        all = (all.0.min(low), all.1.max(high));
    }
    all
}

fn known_extremes(statistics: Option<&Statistics>, matrix: u64) -> Result<(f32, f32), Error> {
    let index = usize::try_from(matrix).unwrap_or(usize::MAX);
    let known = statistics.and_then(|s| s.extremes.get(index)).copied();
    known.ok_or(Error::MissingStatistics { matrix })
}

/// The values, with what is not finite refused or clamped; they are copied only where one is clamped.
fn finite<'a>(
    rule: NonFinite,
    rows: &Rows<'a>,
    backend: &'static Backend,
) -> Result<Cow<'a, [f32]>, Error> {
    let Some(first) = (backend.first_non_finite)(rows.values) else {
        return Ok(Cow::Borrowed(rows.values));
    };
    match rule {
        NonFinite::Refuse => {
            let columns = rows.in_features.max(1);
            Err(Error::NonFinite {
                row: rows.first_row + widen(first / columns),
                column: widen(first % columns),
            })
        }
        NonFinite::Clamp => {
            let largest = largest_finite(rows.source);
            let clamp = |&v: &f32| {
                if v.is_nan() {
                    0.0
                } else {
                    v.clamp(-largest, largest)
                }
            };
            Ok(Cow::Owned(rows.values.iter().map(clamp).collect()))
        }
    }
}

fn largest_finite(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => f32::MAX,
        Float::F16 => half::f16::MAX.to_f32(),
        Float::Bf16 => half::bf16::MAX.to_f32(),
    }
}

#[cfg(test)]
mod tests;
