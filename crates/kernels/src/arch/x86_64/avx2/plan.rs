//! How rows are cut for [`super::rows`]: segments, and how groups lie in blocks.

use std::ops::Range;

use super::gather;
use super::sixteen::nibbles;
use super::tables::is_plain;
use crate::rows::{CodeLayout, CodeMeaning, CodedRows, Zeros};
use crate::{Minifloat, Packing};

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
    /// Whether they are products of E2M1 values.
    pub(super) is_e2m1: bool,
    /// Columns of a group; no more than a row has.
    pub(super) group: usize,
    /// Columns of a segment.
    pub(super) segment: usize,
    /// How groups lie in blocks of 64 codes.
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
    /// `None` for what is left to portable.
    pub(super) fn new(rows: &CodedRows<'_>, way: Way) -> Option<Self> {
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
        let sharing = match group {
            _ if is_whole => Sharing::Blocks(group.next_multiple_of(64)),
            16 => Sharing::Sixteen,
            32 => Sharing::ThirtyTwo,
            size if size.is_multiple_of(64) => Sharing::Blocks(size),
            _ => Sharing::Other,
        };
        let needs_no_memory = match nibbles(packing) {
            Some(_) => is_sixteen && sharing != Sharing::Other,
            None => matches!(packing, Packing::Bytes | Packing::LsbFirst { bits: 8 }),
        };
        let most = match way {
            Way::Direct if needs_no_memory => usize::MAX,
            Way::Direct => UNPACKED,
            Way::Buffered => SEGMENT,
        };
        Some(Self {
            packing,
            is_sixteen,
            is_e2m1: matches!(rows.value, CodeMeaning::Minifloat(Minifloat::E2M1))
                && is_plain(rows),
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
