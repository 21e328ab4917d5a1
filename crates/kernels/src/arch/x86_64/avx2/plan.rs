//! How rows are cut for [`super::rows`]: segments, and how groups lie in blocks.

use std::ops::Range;

use super::gather;
use super::sixteen::{BYTES, nibbles, source_of};
use super::wide::Wide;
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Zeros};
use crate::{Float, Packing};

/// The most codes that are decoded at once by way of memory: 4 or 8 KiB of results.
pub(super) const SEGMENT: usize = 2048;

/// Codes that are unpacked at once: few, so that unpacking and the stores of results overlap.
const UNPACKED: usize = 512;

/// Of rows that are made of columns, two codes to a byte.
const NIBBLES: Packing = Packing::LsbFirst { bits: 4 };

/// How a row is cut.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// Of the rows that segments are taken from: stored, or made of what is ([`super::transposed`]).
    pub(super) packing: Packing,
    /// Whether sixteen results are all there are for a group.
    pub(super) is_sixteen: bool,
    /// Whether two neighbors are looked up as one code with both results.
    pub(super) is_paired: bool,
    /// How integers are calculated, to results of two bytes.
    pub(super) wide: Option<Wide>,
    /// Columns of a group; no more than a row has.
    pub(super) group: usize,
    /// Columns of a segment.
    pub(super) segment: usize,
    /// How groups lie in blocks of 64 codes, or pairs.
    pub(super) sharing: Sharing,
    /// How streamed results reach the output.
    pub(super) way: Way,
}

/// How results reach the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By stores of whole vectors.
    Direct,
    /// From a buffer in L1: past the caches to where no vector lies on its boundary.
    Buffered,
}

/// How groups lie in blocks of 64 codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Four groups in a block.
    Sixteen,
    /// Two groups in a block.
    ThirtyTwo,
    /// So many codes in a group, all of them in whole blocks, or in the last block of a row.
    Blocks(usize),
    /// Otherwise.
    Other,
}

impl Plan {
    /// For results of type `float`. `None` for what is left to portable.
    pub(super) fn new(rows: &CodedRows<'_>, way: Way, float: Float) -> Option<Self> {
        if rows.n_columns == 0 || rows.n_rows == 0 || !zeros_are_small(rows) {
            return None;
        }
        let stored = rows.codes.layout.packing();
        let group = rows.grid.columns.min(rows.n_columns);
        let is_whole = group == rows.n_columns;
        let (packing, unit) = match rows.codes.layout {
            CodeLayout::Rows(_) => (stored, stored.codes_per_unit().0),
            CodeLayout::WordsOfRows(_) => (stored, stored.codes_per_word_unit(4).0),
            CodeLayout::Columns(_) => match nibbles(stored) {
                Some(_) if is_whole || group.is_multiple_of(2) => (NIBBLES, 2),
                Some(_) | None => (Packing::Bytes, 1),
            },
        };
        if !is_whole && !group.is_multiple_of(unit) || !SEGMENT.is_multiple_of(unit) {
            return None;
        }
        if matches!(rows.codes.layout, CodeLayout::Columns(_))
            && !gather::ROWS.is_multiple_of(stored.codes_per_unit().0)
        {
            return None;
        }
        let is_table = matches!(rows.value, CodeMeaning::Table16(_));
        let is_sixteen = is_table || stored.bits() <= 4;
        let is_paired = is_sixteen && has_pairs(packing, rows.n_columns, group, float);
        let sharing = match if is_paired { group / 2 } else { group } {
            size if is_whole => Sharing::Blocks(size.next_multiple_of(64)),
            16 => Sharing::Sixteen,
            32 => Sharing::ThirtyTwo,
            size if size.is_multiple_of(64) => Sharing::Blocks(size),
            _ => Sharing::Other,
        };
        let wide = match float {
            Float::F32 => None,
            Float::F16 | Float::Bf16 => Wide::new(rows, packing),
        };
        let is_wide = !is_sixteen && wide.is_some_and(|wide| wide.bits < 8);
        let needs_no_memory = is_wide
            || if is_paired || source_of(packing) != BYTES {
                is_sixteen && sharing != Sharing::Other
            } else {
                matches!(packing, Packing::Bytes | Packing::LsbFirst { bits: 8 })
            };
        let most = match way {
            Way::Direct if needs_no_memory => usize::MAX,
            Way::Direct => UNPACKED,
            Way::Buffered => SEGMENT,
        };
        Some(Self {
            packing,
            is_sixteen,
            is_paired,
            wide,
            group,
            segment: whole_groups(most, group),
            sharing,
            way,
        })
    }
}

/// `most` columns at most: whole groups, or a part of one.
fn whole_groups(most: usize, group: usize) -> usize {
    match most / group {
        0 => most,
        groups => groups * group,
    }
}

/// Whether two neighbors of two bits are always of one group, with two results of two bytes.
fn has_pairs(packing: Packing, n_columns: usize, group: usize, float: Float) -> bool {
    let is_two_bits = matches!(
        packing,
        Packing::LsbFirst { bits: 2 } | Packing::LsbFirstNoStraddle { bits: 2 }
    );
    is_two_bits && float.size_bytes() == 2 && n_columns.is_multiple_of(2) && group.is_multiple_of(2)
}

/// Whether `code - zero` is exact in F32, however it is calculated. No real zero point is larger.
fn zeros_are_small(rows: &CodedRows<'_>) -> bool {
    let is_small = |&zero: &i32| zero.unsigned_abs() < 1 << 23;
    match rows.value {
        CodeMeaning::Integer { flip: _, zero } => match zero {
            Zeros::Fixed(zero) => is_small(&zero),
            Zeros::Each(zeros) => zeros.iter().all(is_small),
        },
        CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => true,
    }
}

impl Plan {
    /// The same with other segments, of `most` columns at most.
    pub(super) fn cut(self, most: usize) -> Self {
        let segment = whole_groups(most, self.group);
        Self { segment, ..self }
    }

    /// The segment that starts at column `start`, and the entry of its first group in a line of the grid.
    pub(super) fn segment(&self, start: usize, n_columns: usize) -> (Range<usize>, usize) {
        let entry = start / self.group;
        let end = if self.segment > self.group {
            start.saturating_add(self.segment)
        } else {
            start
                .saturating_add(self.segment)
                .min((entry + 1) * self.group)
        };
        (start..end.min(n_columns), entry)
    }
}
