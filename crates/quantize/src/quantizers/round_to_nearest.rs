//! Round-to-nearest: the scale from the extremes of a group, each weight to the nearest code.
//!
//! What "nearest" means down to the last bit is the business of a [`crate::ScaleRule`]: each repeats one reference tool.
//! Spec: `specs/quantizers/round_to_nearest.md`.

use std::borrow::Cow;
use std::ops::Range;

use safequant_kernels::portable::rotate::is_group;
use safequant_kernels::{Backend, Float, Floats, Stores};
use safequant_schemes::{Granularity, Rotation, ScaleCoding, Scheme, SuperScale};

use crate::grid::{Grid, Line, widen};
use crate::nested::nest;
use crate::quantizer::NonFinite;
use crate::rules::{Blocks, Chosen, Group, Groups, Reference, Rules, Sight, reference};
use crate::{Error, Output, Quantizer, Rows, ScaleRule, Statistics, Target};

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

    fn quantize_into(
        &self,
        target: &Target,
        rows: Rows<'_>,
        statistics: Option<&Statistics>,
        mut output: Output<'_>,
        backend: &'static Backend,
    ) -> Result<(), Error> {
        check_output(&rows, &output);
        output.output_losses.clear();
        let reference = if target.rule == ScaleRule::Ggml {
            let blocks = Blocks::of(&target.scheme)?;
            match blocks.reference(rows.in_features)? {
                Some(reference) => reference,
                None => return quantize_blocks(blocks, target, &rows, &mut output, backend),
            }
        } else {
            reference(target, rows.source)?
        };
        let grid = Grid::new(target.scheme.granularity, &rows)?;
        let mut buffers = Buffers::default();
        with_finite(target, &rows, backend, |values| {
            output.tile.clear();
            output.tile.rows = rows.first_row..rows.first_row + widen(rows.n_rows());
            let mut tile = Tile {
                target,
                rows: &rows,
                statistics,
                backend,
                reference: &*reference,
                out: &mut output,
                above: None,
                buffers: &mut buffers,
            };
            grid.lines().try_for_each(|line| tile.line(&line, values))?;
            nest(&target.scheme, &rows, grid, output.tile);
            Ok(())
        })
    }
}

impl RoundToNearest {
    /// Some rows as whole blocks of ggml, the block type of the scheme: everything that is stored of them.
    ///
    /// # Errors
    /// As [`Quantizer::quantize_into`]; a scheme that is no block type's, rows that are no whole blocks.
    ///
    /// # Panics
    /// If `blocks` has not the length of the rows' blocks.
    pub fn quantize_blocks(
        &self,
        target: &Target,
        rows: Rows<'_>,
        blocks: &mut [u8],
        stores: Stores,
        backend: &'static Backend,
    ) -> Result<(), Error> {
        let format = Blocks::of(&target.scheme)?.format_for(rows.in_features)?;
        let (elements, bytes) = (format.elements(), format.bytes());
        let mut largest = 0.0_f32;
        with_finite(target, &rows, backend, |values| {
            let at_once = PART.next_multiple_of(elements);
            let outs = blocks.chunks_mut(at_once / elements * bytes);
            for (out, start) in outs.zip((0..).step_by(at_once)) {
                let cut = values.cut(start..(start + at_once).min(values.len()));
                let mut found = [0.0];
                (backend.magnitudes)(cut, at_once, AHEAD, &mut found);
                if !found[0].is_finite() {
                    return Err(Stop::NonFinite);
                }
                largest = largest.max(found[0]);
                (backend.encode_blocks)(format, cut, out, stores);
            }
            Ok(())
        })?;
        // No number of a block is larger than its largest magnitude: what F16 holds needs no look.
        if largest > half::f16::MAX.to_f32() {
            self.quantize(target, rows, None, backend)?;
        }
        Ok(())
    }
}

/// The lengths of the caller.
pub(crate) fn check_output(rows: &Rows<'_>, output: &Output<'_>) {
    let packing = output.form.packing;
    let (unit, _) = packing.codes_per_unit();
    assert!(
        rows.in_features.is_multiple_of(unit) || rows.n_rows() <= 1,
        "rows of {} codes are no whole units of {unit}",
        rows.in_features
    );
    assert_eq!(
        output.codes.len(),
        packing.packed_len_bytes(rows.values.len(), 1),
        "the packed codes of {} values",
        rows.values.len()
    );
}

/// Block types whose groups are chosen together.
fn quantize_blocks(
    blocks: Blocks,
    target: &Target,
    rows: &Rows<'_>,
    output: &mut Output<'_>,
    backend: &'static Backend,
) -> Result<(), Error> {
    let tile = with_finite(target, rows, backend, |values| {
        let values = values.widened(backend);
        match (backend.first_non_finite)(&values) {
            Some(_) => Err(Stop::NonFinite),
            None => Ok(blocks.quantize(rows, &values, backend)?),
        }
    })?;
    *output.tile = tile;
    let mut codes = std::mem::take(&mut output.tile.codes);
    for code in &mut codes {
        *code ^= output.form.flip;
    }
    (backend.pack)(output.form.packing, &codes, output.codes);
    Ok(())
}

/// Values that are scanned, chosen for and encoded at once: they stay in L1 between the three. Longer groups stay in L2.
const PART: usize = 4096;

/// Columns of blocks that are scanned, chosen for and encoded at once: with 128 rows of BF16 they are half of an L2 of 512 KiB.
const PANEL: usize = 1024;

/// How far ahead the scan asks for memory, in bytes: it meets the values first.
pub(crate) const AHEAD: usize = 2048;

/// What is known of the groups at hand, and what was chosen for them.
#[derive(Default)]
struct Buffers {
    ends: Vec<(f32, f32)>,
    more_ends: Vec<(f32, f32)>,
    extremes: Vec<f32>,
    more_extremes: Vec<f32>,
    rules: Rules,
}

/// A tile on the way to its codes.
struct Tile<'a, 'o> {
    target: &'a Target,
    rows: &'a Rows<'a>,
    statistics: Option<&'a Statistics>,
    backend: &'static Backend,
    reference: &'a dyn Reference,
    out: &'a mut Output<'o>,
    /// Scale of the scales of the matrix at hand.
    above: Option<(u64, f32)>,
    buffers: &'a mut Buffers,
}

impl Tile<'_, '_> {
    /// Chooses for the groups of a line, and encodes its rows while they are in the cache.
    fn line(&mut self, line: &Line, values: Floats<'_>) -> Result<(), Stop> {
        let above = self.above(line)?;
        if self.target.scheme.granularity == Granularity::Tensor {
            return self.with_known_extremes(line, above, values);
        }
        let (unit, _) = self.out.form.packing.codes_per_unit();
        let is_one_run = line.run == line.rows.len() * self.rows.in_features;
        let wanted = if is_one_run { PART } else { PANEL };
        // Parts begin with whole units of the packing.
        let at_once = (wanted / line.group).max(1).next_multiple_of(unit);
        let n = line.n_groups();
        for start in (0..n).step_by(at_once) {
            let groups = start..(start + at_once).min(n);
            self.part(line, &groups, above, values)?;
        }
        Ok(())
    }

    /// Some groups of a line, in all of its runs.
    fn part(
        &mut self,
        line: &Line,
        groups: &Range<usize>,
        above: f32,
        values: Floats<'_>,
    ) -> Result<(), Stop> {
        let columns = groups.start * line.group..(groups.end * line.group).min(line.run);
        let runs = line.runs(self.rows.in_features);
        let cuts = runs.map(|run| run.start + columns.start..run.start + columns.end);
        self.look(line, groups.len(), cuts.clone(), values)?;
        self.choose(line, groups, above)?;
        cuts.for_each(|cut| self.encode(line.group, cut, values));
        Ok(())
    }

    /// Finds what the rule looks at, of so many groups in all cuts.
    fn look(
        &mut self,
        line: &Line,
        n_groups: usize,
        cuts: impl Iterator<Item = Range<usize>>,
        values: Floats<'_>,
    ) -> Result<(), Stop> {
        // From a run to the next one it is as far as that is long.
        let ahead = if line.rows.len() * self.rows.in_features == line.run {
            AHEAD
        } else {
            line.run * values.size_bytes()
        };
        for (i, cut) in cuts.enumerate() {
            let values = values.cut(cut);
            match self.reference.sight() {
                Sight::Magnitude => self.look_at_magnitudes(line, (i, n_groups), ahead, values)?,
                Sight::Ends => self.look_at_ends(line, (i, n_groups), values)?,
                Sight::Extreme => {
                    self.look_at_ends(line, (i, n_groups), values)?;
                    self.find_extremes(line, values);
                }
            }
        }
        Ok(())
    }

    /// Of run `i`.
    fn look_at_magnitudes(
        &mut self,
        line: &Line,
        (i, n_groups): (usize, usize),
        ahead: usize,
        values: Floats<'_>,
    ) -> Result<(), Stop> {
        let Buffers {
            extremes,
            more_extremes,
            ..
        } = &mut *self.buffers;
        let found = if i == 0 {
            &mut *extremes
        } else {
            &mut *more_extremes
        };
        found.resize(n_groups, 0.0);
        (self.backend.magnitudes)(values, line.group, ahead, found);
        if !found
            .iter()
            .fold(true, |all, value| all & value.is_finite())
        {
            return Err(Stop::NonFinite);
        }
        if i > 0 {
            for (all, run) in extremes.iter_mut().zip(&*more_extremes) {
                *all = all.max(*run);
            }
        }
        Ok(())
    }

    /// Of run `i`.
    fn look_at_ends(
        &mut self,
        line: &Line,
        (i, n_groups): (usize, usize),
        values: Floats<'_>,
    ) -> Result<(), Stop> {
        let Buffers {
            ends, more_ends, ..
        } = &mut *self.buffers;
        let found = if i == 0 { &mut *ends } else { &mut *more_ends };
        found.resize(n_groups, (0.0, 0.0));
        (self.backend.extremes)(values, line.group, found);
        found.iter().try_for_each(|&pair| finite(pair).map(drop))?;
        if i > 0 {
            for (all, run) in ends.iter_mut().zip(&*more_ends) {
                *all = (all.0.min(run.0), all.1.max(run.1));
            }
        }
        Ok(())
    }

    /// The values of largest magnitude, from the ends of the groups of a line that is one run.
    fn find_extremes(&mut self, line: &Line, values: Floats<'_>) {
        let Buffers { ends, extremes, .. } = &mut *self.buffers;
        let backend = self.backend;
        let first = |i: usize, largest: f32| {
            let group = i * line.group..((i + 1) * line.group).min(values.len());
            let values = values.cut(group).widened(backend);
            let found = values.iter().find(|value| value.abs() >= largest);
            found.copied().unwrap_or(largest)
        };
        extremes.clear();
        extremes.extend(ends.iter().enumerate().map(|(i, &ends)| {
            let group = Group::new(ends, false);
            if group.has_two_extremes() {
                first(i, group.high)
            } else {
                group.extreme
            }
        }));
    }

    /// Chooses for groups of a line that were looked at.
    fn choose(&mut self, line: &Line, groups: &Range<usize>, above: f32) -> Result<(), Stop> {
        let Buffers {
            ends,
            extremes,
            rules,
            ..
        } = &mut *self.buffers;
        rules.clear();
        let seen = match self.reference.sight() {
            Sight::Magnitude | Sight::Extreme => Groups::Extremes(extremes),
            Sight::Ends => Groups::Ends(ends),
        };
        let mut chosen = Chosen {
            tile: self.out.tile,
            zero_point: self.target.scheme.zero_point,
            rules,
        };
        let last_is_short = line.is_short(groups.end - 1);
        let done = self
            .reference
            .choose_all(seen, last_is_short, above, &mut chosen);
        done.map_err(|(i, scale)| {
            let dtype = stored_dtype(self.target.scheme.scale);
            self.overflow(line, groups.start + i, scale, dtype)
        })
    }

    /// Encodes consecutive values by the rules of their groups.
    fn encode(&mut self, group: usize, values_at: Range<usize>, values: Floats<'_>) {
        let (form, stores) = (self.out.form, self.out.stores);
        let at = |code: usize| form.packing.packed_len_bytes(code, 1);
        let codes = &mut self.out.codes[at(values_at.start)..at(values_at.end)];
        let rules = self.buffers.rules.all();
        (self.backend.encode)(values.cut(values_at), group, rules, form, codes, stores);
    }

    /// The rows of a matrix whose extremes were observed before: here values are only known to be finite.
    fn with_known_extremes(
        &mut self,
        line: &Line,
        above: f32,
        values: Floats<'_>,
    ) -> Result<(), Stop> {
        let known = known_extremes(self.statistics, line.matrix)?;
        let Buffers { ends, rules, .. } = &mut *self.buffers;
        ends.clear();
        ends.push((known.low, known.high));
        rules.clear();
        let mut chosen = Chosen {
            tile: self.out.tile,
            zero_point: self.target.scheme.zero_point,
            rules,
        };
        let done = self
            .reference
            .choose_all(Groups::Ends(ends), false, above, &mut chosen);
        done.map_err(|(_, scale)| {
            self.overflow(line, 0, scale, stored_dtype(self.target.scheme.scale))
        })?;
        let (unit, _) = self.out.form.packing.codes_per_unit();
        let all = line.rows.start * self.rows.in_features..line.rows.end * self.rows.in_features;
        let at_once = PART.next_multiple_of(unit);
        for start in all.clone().step_by(at_once) {
            let cut = start..(start + at_once).min(all.end);
            let mut largest = [0.0];
            (self.backend.magnitudes)(values.cut(cut.clone()), at_once, AHEAD, &mut largest);
            if !largest[0].is_finite() {
                return Err(Stop::NonFinite);
            }
            self.encode(at_once, cut, values);
        }
        Ok(())
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
        self.out.tile.supers.push(scale);
        self.above = Some((line.matrix, scale));
        Ok(scale)
    }

    fn overflow(&self, line: &Line, group: usize, scale: f32, dtype: &'static str) -> Stop {
        let (row, group) = line.place_of(group, self.rows.in_features);
        Stop::Refused(Error::ScaleOverflow {
            row: self.rows.first_row + widen(row),
            group: widen(group),
            scale,
            dtype,
        })
    }
}

/// Why a tile was given up.
pub(crate) enum Stop {
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

pub(crate) fn has_super_scale(scheme: &Scheme) -> bool {
    matches!(
        scheme.super_scale,
        SuperScale::Multiply | SuperScale::Divide
    )
}

/// The dtype of a scale, for messages.
pub(crate) fn stored_dtype(scale: ScaleCoding) -> &'static str {
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

pub(crate) fn known_extremes(statistics: Option<&Statistics>, matrix: u64) -> Result<Group, Error> {
    let index = usize::try_from(matrix).unwrap_or(usize::MAX);
    let known = statistics.and_then(|s| s.extremes.get(index)).copied();
    let extremes = known.ok_or(Error::MissingStatistics { matrix })?;
    Ok(Group::new(extremes, false))
}

/// Calls `work` with the values that are quantized: finite, and in the scheme's basis. Values are looked at one by one only
/// where `work` has met one that is not finite, or a basis has to be changed.
pub(crate) fn with_finite<T>(
    target: &Target,
    rows: &Rows<'_>,
    backend: &'static Backend,
    mut work: impl FnMut(Floats<'_>) -> Result<T, Stop>,
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
