//! Round-to-nearest: the scale from the extremes of a group, each weight to the nearest code.
//!
//! What "nearest" means down to the last bit is the business of a [`crate::ScaleRule`]: each repeats one reference tool.
//! Spec: `specs/quantizers/round_to_nearest.md`.

use std::borrow::Cow;

use safequant_kernels::portable::rotate::is_group;
use safequant_kernels::{Backend, CodeRule, Float, Floats};
use safequant_schemes::{
    CodeTile, Granularity, Rotation, ScaleCoding, Scheme, SuperScale, ZeroPoint,
};

use crate::grid::{Grid, Line, widen};
use crate::quantizer::NonFinite;
use crate::rules::{Blocks, Choice, Group, Reference, reference};
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
        let grid = Grid::new(Granularity::Tensor, &rows)?;
        with_finite(target, &rows, backend, |values| {
            let mut statistics = Statistics::default();
            for line in grid.lines() {
                let index = usize::try_from(line.matrix).unwrap_or(usize::MAX);
                let all = line.rows.start * rows.in_features..line.rows.end * rows.in_features;
                let mut extremes = [(0.0, 0.0)];
                (backend.extremes)(values.cut(all.clone()), all.len(), &mut extremes);
                let (low, high) = finite(extremes[0])?;
                statistics.extremes.resize(index + 1, (0.0, 0.0));
                statistics.extremes[index] = (low.min(0.0), high.max(0.0));
            }
            Ok(statistics)
        })
    }

    fn quantize(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        backend: &'static Backend,
    ) -> Result<CodeTile, Error> {
        let reference = if target.rule == ScaleRule::Ggml {
            let blocks = Blocks::of(&target.scheme)?;
            match blocks.reference(rows.in_features)? {
                Some(reference) => reference,
                None => return quantize_blocks(blocks, target, &rows, backend),
            }
        } else {
            reference(target, rows.source)?
        };
        let grid = Grid::new(target.scheme.granularity, &rows)?;
        with_finite(target, &rows, backend, |values| {
            let mut tile = Tile {
                target,
                rows: &rows,
                statistics,
                backend,
                reference: &*reference,
                out: CodeTile {
                    rows: rows.first_row..rows.first_row + widen(rows.n_rows()),
                    codes: vec![0; values.len()],
                    ..CodeTile::default()
                },
                above: None,
                extremes: Vec::new(),
                rules: Vec::new(),
            };
            for line in grid.lines() {
                tile.line(&line, values)?;
            }
            Ok(tile.out)
        })
    }
}

/// Block types whose groups are chosen together.
fn quantize_blocks(
    blocks: Blocks,
    target: &Target,
    rows: &Rows<'_>,
    backend: &'static Backend,
) -> Result<CodeTile, Error> {
    with_finite(target, rows, backend, |values| {
        let values = values.widened(backend);
        match (backend.first_non_finite)(&values) {
            Some(_) => Err(Stop::NonFinite),
            None => Ok(blocks.quantize(rows, &values)?),
        }
    })
}

/// A tile on the way to its codes.
struct Tile<'a> {
    target: &'a Target,
    rows: &'a Rows<'a>,
    statistics: Option<&'a Statistics>,
    backend: &'static Backend,
    reference: &'a dyn Reference,
    out: CodeTile,
    /// Scale of the scales of the matrix at hand.
    above: Option<(u64, f32)>,
    /// Of the groups of a line.
    extremes: Vec<(f32, f32)>,
    rules: Vec<CodeRule>,
}

impl Tile<'_> {
    /// Chooses for the groups of a line, and encodes its rows while they are in the cache.
    fn line(&mut self, line: &Line, values: Floats<'_>) -> Result<(), Stop> {
        let above = self.above(line)?;
        self.find_extremes(line, values)?;
        let known = match self.target.scheme.granularity {
            Granularity::Tensor => Some(known_extremes(self.statistics, line.matrix)?),
            Granularity::Channel
            | Granularity::Group { .. }
            | Granularity::IndexedGroup { .. }
            | Granularity::Block { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. } => None,
        };
        self.rules.clear();
        for i in 0..line.n_groups() {
            let mut group = known.unwrap_or_else(|| Group::new(self.extremes[i], line.is_short(i)));
            if self.reference.needs_first_extreme() && group.has_two_extremes() {
                group.extreme = self.first_extreme(line, i, values);
            }
            let choice = self.reference.choose(group, above);
            let choice = choice.map_err(|scale| {
                self.overflow(line, i, scale, stored_dtype(self.target.scheme.scale))
            })?;
            record(&mut self.out, self.target, choice);
            self.rules.push(choice.coder);
        }
        for run in line.runs(self.rows.in_features) {
            let codes = &mut self.out.codes[run.clone()];
            (self.backend.encode)(values.cut(run), line.group, &self.rules, codes);
        }
        Ok(())
    }

    /// The first value of largest magnitude in a group of a line that is one run.
    fn first_extreme(&self, line: &Line, i: usize, values: Floats<'_>) -> f32 {
        let start = line.rows.start * self.rows.in_features + i * line.group;
        let end = (start + line.group).min(line.rows.end * self.rows.in_features);
        let largest = self.extremes[i].1;
        let values = values.cut(start..end).widened(self.backend);
        let found = values.iter().find(|value| value.abs() >= largest);
        found.copied().unwrap_or(largest)
    }

    /// The scale of the scales of the matrix, 1 where there is none.
    fn above(&mut self, line: &Line) -> Result<f32, Stop> {
        if !has_super_scale(&self.target.scheme) {
            return Ok(1.0);
        }
        if let Some((_, scale)) = self.above.filter(|(matrix, _)| *matrix == line.matrix) {
            return Ok(scale);
        }
        let known = known_extremes(self.statistics, line.matrix)?;
        let scale = self.reference.super_scale(known);
        let scale = scale.map_err(|scale| self.overflow(line, 0, scale, "F32"))?;
        self.out.supers.push(scale);
        self.above = Some((line.matrix, scale));
        Ok(scale)
    }

    fn find_extremes(&mut self, line: &Line, values: Floats<'_>) -> Result<(), Stop> {
        let n = line.n_groups();
        self.extremes.clear();
        self.extremes.resize(2 * n, (0.0, 0.0));
        let (all, of_run) = self.extremes.split_at_mut(n);
        for (i, run) in line.runs(self.rows.in_features).enumerate() {
            if i == 0 {
                (self.backend.extremes)(values.cut(run), line.group, all);
                continue;
            }
            (self.backend.extremes)(values.cut(run), line.group, of_run);
            for (all, run) in all.iter_mut().zip(&*of_run) {
                // A NaN must stay one: `min` would drop it.
                let (low, high) = finite(*run)?;
                *all = (all.0.min(low), all.1.max(high));
            }
        }
        all.iter().try_for_each(|&pair| finite(pair).map(|_| ()))
    }

    fn overflow(&self, line: &Line, group: usize, scale: f32, dtype: &'static str) -> Stop {
        let row = line.row_of(group, self.rows.in_features);
        Stop::Refused(Error::ScaleOverflow {
            row: self.rows.first_row + widen(row),
            group: widen(group),
            scale,
            dtype,
        })
    }
}

/// Why a tile was given up.
enum Stop {
    /// A value is not finite.
    NonFinite,
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Refused(error)
    }
}

/// The extremes of finite values; others show in them.
fn finite(extremes: (f32, f32)) -> Result<(f32, f32), Stop> {
    if extremes.0.is_finite() && extremes.1.is_finite() {
        Ok(extremes)
    } else {
        Err(Stop::NonFinite)
    }
}

fn has_super_scale(scheme: &Scheme) -> bool {
    matches!(
        scheme.super_scale,
        SuperScale::Multiply | SuperScale::Divide
    )
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

fn known_extremes(statistics: Option<&Statistics>, matrix: u64) -> Result<Group, Error> {
    let index = usize::try_from(matrix).unwrap_or(usize::MAX);
    let known = statistics.and_then(|s| s.extremes.get(index)).copied();
    let extremes = known.ok_or(Error::MissingStatistics { matrix })?;
    Ok(Group::new(extremes, false))
}

/// Calls `work` with the values that are quantized: finite, and in the scheme's basis. Values are looked at one by one only
/// where `work` has met one that is not finite, or a basis has to be changed.
fn with_finite<T>(
    target: &Target,
    rows: &Rows<'_>,
    backend: &'static Backend,
    work: impl Fn(Floats<'_>) -> Result<T, Stop>,
) -> Result<T, Error> {
    let refused = match target.scheme.basis.rotation {
        Rotation::None => match work(rows.values) {
            Ok(done) => return Ok(done),
            Err(Stop::NonFinite) => None,
            Err(Stop::Refused(error)) => Some(error),
        },
        Rotation::ConvRot { .. } => None,
    };
    let wide = rows.values.widened(backend);
    let first = (backend.first_non_finite)(&wide);
    let values = match (first, refused) {
        (None, Some(error)) => return Err(error),
        (None, None) => wide,
        (Some(first), _) => clamped(target.nonfinite, rows, &wide, first)?.into(),
    };
    let values = rotated(target, rows, values, backend)?;
    work(Floats::F32(&values)).map_err(|stop| match stop {
        Stop::Refused(error) => error,
        // A rotation of large values may overflow.
        Stop::NonFinite => not_finite(rows, (backend.first_non_finite)(&values).unwrap_or(0)),
    })
}

/// The refusal of a value.
fn not_finite(rows: &Rows<'_>, at: usize) -> Error {
    let columns = rows.in_features.max(1);
    Error::NonFinite {
        row: rows.first_row + widen(at / columns),
        column: widen(at % columns),
    }
}

/// The values in the scheme's basis.
fn rotated<'v>(
    target: &Target,
    rows: &Rows<'_>,
    values: Cow<'v, [f32]>,
    backend: &'static Backend,
) -> Result<Cow<'v, [f32]>, Error> {
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

/// The values without what is not finite, the first of which is given, or a refusal.
fn clamped(
    rule: NonFinite,
    rows: &Rows<'_>,
    values: &[f32],
    first: usize,
) -> Result<Vec<f32>, Error> {
    match rule {
        NonFinite::Refuse => Err(not_finite(rows, first)),
        NonFinite::Clamp => {
            let largest = largest_finite(rows.source);
            let clamp = |&v: &f32| {
                if v.is_nan() {
                    0.0
                } else {
                    v.clamp(-largest, largest)
                }
            };
            Ok(values.iter().map(clamp).collect())
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
