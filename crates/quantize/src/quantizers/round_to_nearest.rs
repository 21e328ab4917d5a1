//! Round-to-nearest: the scale from the extremes of a group, each weight to the nearest code.
//!
//! What "nearest" means down to the last bit is the business of a [`crate::ScaleRule`]: each repeats one reference tool.
//! Spec: `specs/quantizers/round_to_nearest.md`.

use std::borrow::Cow;

use safequant_kernels::portable::rotate::is_group;
use safequant_kernels::{Backend, Float};
use safequant_schemes::{
    CodeTile, Granularity, Rotation, ScaleCoding, Scheme, SuperScale, ZeroPoint,
};

use crate::grid::{Cell, Grid, widen};
use crate::quantizer::NonFinite;
use crate::rules::{Blocks, Choice, Group, reference};
use crate::{Error, Quantizer, Rows, ScaleRule, Statistics, Target};

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
        let values = prepared(target, &rows, backend)?;
        let mut statistics = Statistics::default();
        for cell in Grid::new(Granularity::Tensor, &rows)?.cells() {
            let index = usize::try_from(cell.matrix).unwrap_or(usize::MAX);
            let Group { low, high, .. } = group(&values, rows.in_features, &cell, backend);
            statistics.extremes.resize(index + 1, (0.0, 0.0));
            statistics.extremes[index] = (low.min(0.0), high.max(0.0));
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
        if target.rule == ScaleRule::Ggml {
            let blocks = Blocks::of(&target.scheme)?;
            return blocks.quantize(&rows, &prepared(target, &rows, backend)?);
        }
        let reference = reference(target, rows.source)?;
        let grid = Grid::new(target.scheme.granularity, &rows)?;
        let values = prepared(target, &rows, backend)?;
        let mut tile = CodeTile {
            rows: rows.first_row..rows.first_row + widen(rows.n_rows()),
            codes: vec![0; values.len()],
            ..CodeTile::default()
        };
        let has_super = has_super_scale(&target.scheme);
        let mut above = (None, 1.0);
        for cell in grid.cells() {
            let overflow = |scale, dtype| Error::ScaleOverflow {
                row: rows.first_row + widen(cell.rows.start),
                group: widen(cell.group),
                scale,
                dtype,
            };
            if has_super && above.0 != Some(cell.matrix) {
                let known = known_extremes(statistics, cell.matrix)?;
                let scale = reference
                    .super_scale(known)
                    .map_err(|s| overflow(s, "F32"))?;
                tile.supers.push(scale);
                above = (Some(cell.matrix), scale);
            }
            let group = if target.scheme.granularity == Granularity::Tensor {
                known_extremes(statistics, cell.matrix)?
            } else {
                group(&values, rows.in_features, &cell, backend)
            };
            let choice = reference
                .choose(group, above.1)
                .map_err(|scale| overflow(scale, stored_dtype(target.scheme.scale)))?;
            record(&mut tile, target, choice);
            for row in cell.rows.clone() {
                let run = run(rows.in_features, row, &cell);
                choice.encode(&values[run.clone()], &mut tile.codes[run], backend);
            }
        }
        Ok(tile)
    }
}

fn has_super_scale(scheme: &Scheme) -> bool {
    matches!(
        scheme.super_scale,
        SuperScale::Multiply | SuperScale::Divide
    )
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
        ZeroPoint::Offset { .. } => tile.offsets.push(choice.offset),
        ZeroPoint::Fixed(_) => {}
    }
}

/// The dtype of a scale, for messages.
fn stored_dtype(scale: ScaleCoding) -> &'static str {
    match scale {
        ScaleCoding::Float(Float::F16) => "F16",
        ScaleCoding::Float(Float::Bf16) => "BF16",
        ScaleCoding::E8M0(_) => "F8_E8M0",
        ScaleCoding::Minifloat(_) => "F8_E4M3",
        ScaleCoding::Float(Float::F32)
        | ScaleCoding::StoredTable
        | ScaleCoding::Integer
        | ScaleCoding::One => "F32",
    }
}

/// Smallest and largest value of a cell.
fn group(values: &[f32], in_features: usize, cell: &Cell, backend: &'static Backend) -> Group {
    let runs = cell.rows.clone().map(|row| run(in_features, row, cell));
    let (low, high) = runs
        .filter(|run| !run.is_empty())
        .map(|run| (backend.min_max)(&values[run]))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        .unwrap_or_default();
    Group {
        low,
        high,
        is_short: cell.is_short,
    }
}

fn known_extremes(statistics: Option<&Statistics>, matrix: u64) -> Result<Group, Error> {
    let index = usize::try_from(matrix).unwrap_or(usize::MAX);
    let known = statistics.and_then(|s| s.extremes.get(index)).copied();
    let (low, high) = known.ok_or(Error::MissingStatistics { matrix })?;
    Ok(Group {
        low,
        high,
        is_short: false,
    })
}

/// The values that are quantized: finite, and in the scheme's basis.
fn prepared<'a>(
    target: &Target,
    rows: &Rows<'a>,
    backend: &'static Backend,
) -> Result<Cow<'a, [f32]>, Error> {
    let values = finite(target.nonfinite, rows, backend)?;
    let Rotation::ConvRot { size } = target.scheme.basis.rotation else {
        return Ok(values);
    };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !is_group(size) || !rows.in_features.is_multiple_of(size) {
        return Err(Error::UnsupportedScheme {
            reason: "a rotation needs groups of a power of 4 that divide a row",
        });
    }
    let mut rotated = vec![0.0; values.len()];
    (backend.rotate_rounded)(rows.source, &values, size, &mut rotated);
    Ok(Cow::Owned(rotated))
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
