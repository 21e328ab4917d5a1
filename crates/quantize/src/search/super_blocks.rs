//! ggml's types with two levels of scales: `Q2_K` to `Q6_K`, `IQ4_XS` and the lattices of IQ2 and IQ3.
//!
//! A group of 16 or 32 elements stands for `level * (d * sc) - dmin * m`: integers `sc` and `m` of its own under F16 numbers `d`
//! and `dmin` that the 256 elements of a super-block share; types without minima have neither `dmin` nor `m`, and lattices have
//! integers and a half for `sc`.
//!
//! The search goes from the groups to the super-block and back. Each group first gets the scale (and offset) that it would have
//! alone; `d` and `dmin` are then sought so that the integers can come close to what all groups want, and from there integers and
//! codes, `d` and `dmin` are fitted in turn. What ggml's own quantizer chooses is one of the starts.

mod alone;
mod solve;
#[cfg(test)]
mod tests;

use safequant_kernels::blocks::{
    BlockFields, BlockLayout, BlockOffset, BlockScale, CodeValue, Lattice,
};
use safequant_kernels::{Backend, BlockFormat, Candidate, Codebook, Floats, Levels, Stores};
use safequant_schemes::Scheme;

use self::solve::{Choice, Problem};
use super::{Freedom, RowFormat, RowScales, Stored};
use crate::rules::Blocks;
use crate::{Effort, Error};

/// Most groups of a super-block.
const GROUPS: usize = 16;

/// A block type with two levels of scales, for rows that are whole blocks.
#[derive(Debug)]
pub(crate) struct SuperBlocks {
    format: BlockFormat,
    layout: &'static BlockLayout,
    levels: Levels,
    /// Which codes go together, where not all do.
    lattice: Option<&'static Lattice>,
    /// What a group tries for itself, as shares of what its largest values ask for.
    shares: (f32, f32),
    /// The least and the largest integer (or integer and a half) that a group's scale or minimum can be.
    integers: (f32, f32),
    /// What the numbers of groups are more than integers.
    half: f32,
}

impl SuperBlocks {
    /// The type of a scheme; `None` for schemes that have not two levels of scales, or have others.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`] for rows that are no whole blocks.
    pub(crate) fn new(scheme: &Scheme, in_features: usize) -> Result<Option<Self>, Error> {
        let Ok(blocks) = Blocks::of(scheme) else {
            return Ok(None);
        };
        let layout = blocks.layout();
        let half = match layout.scale {
            BlockScale::Integers => 0.0,
            BlockScale::Halves => 0.5,
            BlockScale::Super | BlockScale::HalfE8M0 | BlockScale::HalfE4M3 => return Ok(None),
        };
        if layout.n_groups() > GROUPS {
            return Ok(None);
        }
        let format = blocks.format_for(in_features)?;
        let stored = layout.scale_range();
        Ok(Some(Self {
            format,
            layout,
            levels: levels(layout),
            lattice: match layout.value {
                CodeValue::Lattice(lattice) => Some(lattice),
                CodeValue::Integer { .. } | CodeValue::Table(_) => None,
            },
            shares: shares(layout),
            integers: (
                layout.scale.decode(*stored.start()),
                layout.scale.decode(*stored.end()),
            ),
            half,
        }))
    }

    fn has_minima(&self) -> bool {
        self.layout.offset == BlockOffset::Subtracted
    }

    /// What the integers of a group stand for.
    fn effective(&self, (d, dmin): (f32, f32), (scale, min): (f32, f32)) -> Candidate {
        Candidate {
            scale: d * scale,
            offset: if self.has_minima() {
                0.0 - dmin * min
            } else {
                0.0
            },
        }
    }

    /// The integer (or integer and a half) nearest to a ratio; that nearest to 0 for what is none.
    #[inline]
    fn integer(&self, ratio: f32) -> f32 {
        /// Added and subtracted again it rounds what is below 2^22, ties to even; there is no call in it.
        const TO_INTEGER: f32 = 12_582_912.0;
        let (low, high) = self.integers;
        if ratio.is_nan() {
            return self.half;
        }
        let whole = ratio.clamp(low, high) - self.half;
        ((whole + TO_INTEGER) - TO_INTEGER) + self.half
    }

    /// What ggml's quantizer gives the blocks of a row.
    fn reference(&self, values: &[f32], backend: &'static Backend) -> BlockFields {
        let mut blocks = vec![0; values.len() / self.layout.elements * self.layout.bytes];
        let source = Floats::F32(values);
        (backend.encode_blocks)(self.format, source, &mut blocks, Stores::Ordinary);
        let mut fields = BlockFields::default();
        self.layout.unpack(&blocks, &mut fields);
        fields
    }

    /// The numbers of block `i`.
    ///
    /// # Errors
    /// The number that F16 cannot hold.
    fn first(&self, fields: &BlockFields, i: usize) -> Result<Choice, f32> {
        let n = self.layout.n_groups();
        let number = |all: &[f32]| all.get(i).copied().unwrap_or(0.0);
        let numbers = |all: &[i16], decode: &dyn Fn(i16) -> f32| {
            let mut found = [0.0; GROUPS];
            for (to, from) in found.iter_mut().zip(all.iter().skip(i * n).take(n)) {
                *to = decode(*from);
            }
            found
        };
        let supers = (number(&fields.d), number(&fields.m));
        let scales = numbers(&fields.scales, &|scale| self.layout.scale.decode(scale));
        let choice = Choice::new(supers, scales, numbers(&fields.mins, &f32::from));
        let numbers = [choice.d, choice.dmin];
        match numbers.into_iter().find(|number| !number.is_finite()) {
            Some(number) => Err(number),
            None => Ok(choice),
        }
    }

    /// Appends what was chosen for a super-block.
    fn push(&self, choice: &Choice, row: &mut RowScales) {
        let supers = (choice.d, choice.dmin);
        let pairs = choice.scales.iter().zip(&choice.mins);
        for (&scale, &min) in pairs.take(self.layout.n_groups()) {
            row.stored.push(stored((scale, min)));
            row.effective.push(self.effective(supers, (scale, min)));
        }
        row.supers.push(choice.d);
        if self.has_minima() {
            row.offset_supers.push(choice.dmin);
        }
    }
}

impl RowFormat for SuperBlocks {
    fn levels(&self) -> Levels {
        self.levels
    }

    fn lattice(&self) -> Option<&'static Lattice> {
        self.lattice
    }

    fn group(&self) -> usize {
        self.layout.group
    }

    fn freedom(&self) -> Freedom {
        if self.has_minima() {
            Freedom::Both
        } else {
            Freedom::Scale
        }
    }

    fn choose(
        &self,
        values: &[f32],
        weights: &[f32],
        effort: Effort,
        backend: &'static Backend,
        row: &mut RowScales,
    ) -> Result<(), (usize, f32)> {
        row.clear();
        let fields = self.reference(values, backend);
        let elements = self.layout.elements;
        let blocks = values.chunks_exact(elements);
        let mut relative = vec![0.0; elements];
        for (i, (values, weights)) in blocks.zip(weights.chunks_exact(elements)).enumerate() {
            let first = self.first(&fields, i);
            let first = first.map_err(|number| (i * self.layout.n_groups(), number))?;
            make_relative(weights, self.layout.group, &mut relative);
            let problem = Problem::new(self, values, &relative, backend);
            self.push(&problem.solve(first, effort), row);
        }
        Ok(())
    }

    fn near(
        &self,
        row: &RowScales,
        group: usize,
        wanted: Candidate,
    ) -> Option<(Stored, Candidate)> {
        let block = group / self.layout.n_groups();
        let d = *row.supers.get(block)?;
        let dmin = row.offset_supers.get(block).copied().unwrap_or(0.0);
        let scale = self.integer(wanted.scale / d);
        let min = if self.has_minima() {
            self.integer(-wanted.offset / dmin)
        } else {
            0.0
        };
        let found = (
            stored((scale, min)),
            self.effective((d, dmin), (scale, min)),
        );
        (found.0 != *row.stored.get(group)?).then_some(found)
    }
}

/// Integers as they stand in a tile.
fn stored((scale, min): (f32, f32)) -> Stored {
    Stored {
        scale,
        zero: 0,
        offset: min,
    }
}

fn levels(layout: &BlockLayout) -> Levels {
    match layout.value {
        CodeValue::Integer { zero } => Levels::integers(layout.code_bits, i32::from(zero)),
        CodeValue::Table(_) => Levels::codebook(Codebook::Iq4Nl),
        CodeValue::Lattice(lattice) => Levels::codebook(lattice.book),
    }
}

/// Which scales a group tries. With few levels it pays to cut off what is large.
fn shares(layout: &BlockLayout) -> (f32, f32) {
    if let CodeValue::Lattice(_) = layout.value {
        return (0.45, 1.3);
    }
    match (layout.offset, layout.code_bits) {
        (BlockOffset::Subtracted, 0..=3) => (0.55, 1.15),
        (BlockOffset::Subtracted, 4) => (0.8, 1.06),
        (BlockOffset::Subtracted, _) => (0.88, 1.03),
        (BlockOffset::None | BlockOffset::Added, 0..=3) => (0.5, 1.15),
        (BlockOffset::None | BlockOffset::Added, 4) => (0.6, 1.1),
        (BlockOffset::None | BlockOffset::Added, _) => (0.85, 1.03),
    }
}

/// Weights as shares of the largest, so that no sum of theirs leaves F32. A group that weighs nothing gets next to nothing, so that
/// it is not forgotten.
fn make_relative(weights: &[f32], group: usize, relative: &mut [f32]) {
    const NEXT_TO_NOTHING: f32 = 1e-9;
    let largest = weights.iter().copied().fold(0.0, f32::max);
    let groups = weights.chunks_exact(group);
    for (weights, relative) in groups.zip(relative.chunks_exact_mut(group)) {
        for (relative, weight) in relative.iter_mut().zip(weights) {
            *relative = weight / largest;
        }
        if weights.iter().all(|weight| *weight == 0.0) {
            relative.fill(NEXT_TO_NOTHING);
        }
    }
}
