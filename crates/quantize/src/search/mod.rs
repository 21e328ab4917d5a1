//! Scales and offsets by search: what a file can hold for the groups of a row, and the best of it for given values and weights.

mod groups;
mod half_quadratic;
mod one;
mod super_blocks;

use safequant_kernels::blocks::Lattice;
use safequant_kernels::{Backend, Candidate, Levels};

pub(crate) use self::groups::{GroupFormat, Sharing, ends_of, levels};
pub(crate) use self::half_quadratic::half_quadratic;
pub(crate) use self::super_blocks::SuperBlocks;
use crate::Effort;

/// The numbers that are stored for a group, as [`safequant_schemes::CodeTile`] has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stored {
    /// A value that the scale's coding holds.
    pub(crate) scale: f32,
    /// Zero of the unsigned form; 0 where none is stored.
    pub(crate) zero: i32,
    /// The float zero point or bias; 0 where there is none.
    pub(crate) offset: f32,
}

/// What was chosen for the groups of a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowScales {
    /// What levels are multiplied by and what is added, for each group.
    pub(crate) effective: Vec<Candidate>,
    /// What is stored for it.
    pub(crate) stored: Vec<Stored>,
    /// What scales are scaled by, one for each super-block; else empty.
    pub(crate) supers: Vec<f32>,
    /// What offsets are scaled by, laid out as `supers`.
    pub(crate) offset_supers: Vec<f32>,
    /// What the scale of each group is scaled by, where blocks of scales go on over the ends of rows: known before anything is chosen.
    /// Else empty.
    pub(crate) nested: Vec<f32>,
}

impl RowScales {
    /// Takes out what was chosen.
    pub(crate) fn clear(&mut self) {
        self.effective.clear();
        self.stored.clear();
        self.supers.clear();
        self.offset_supers.clear();
    }
}

/// What moves when a group's scale does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freedom {
    /// Nothing: rows share the scale.
    Fixed,
    /// The scale; an offset, a whole number of scales, moves with it.
    Scale,
    /// Scale and offset, each for itself.
    Both,
}

/// What a file can hold for the groups of a row of one matrix.
pub(crate) trait RowFormat: Sync {
    /// What codes stand for before scale and offset.
    fn levels(&self) -> Levels;

    /// Which codes go together, where not all do.
    fn lattice(&self) -> Option<&'static Lattice> {
        None
    }

    /// Columns that share a scale; the last group of a row may have fewer.
    fn group(&self) -> usize;

    /// What can move once codes are chosen.
    fn freedom(&self) -> Freedom;

    /// Chooses for the groups of a row, so that `sum weight * (value - nearest)^2` is small, never larger than with the scales of
    /// the convention's own tool. What `row` held is replaced.
    ///
    /// `values`, `weights`: `[in_features]`, finite, no weight negative.
    ///
    /// # Errors
    /// The group whose scale its dtype cannot hold, and that scale.
    fn choose(
        &self,
        values: &[f32],
        weights: &[f32],
        effort: Effort,
        backend: &'static Backend,
        row: &mut RowScales,
    ) -> Result<(), (usize, f32)>;

    /// What can be stored for group `group` of a row and is near to `wanted`, and what it stands for; super-scales stay. `None` if
    /// there is nothing but what it has.
    fn near(&self, row: &RowScales, group: usize, wanted: Candidate)
    -> Option<(Stored, Candidate)>;
}
