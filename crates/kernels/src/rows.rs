//! Rows of codes, and how they become rows of dense floats: plain data for [`crate::Backend::decode_rows`].
//!
//! Decoding step by step (unpack to bytes, dequantize to F32, round to the output) moves each element through three
//! buffers. A backend that sees the whole formula at once can do it in registers, from the stored bytes to the output;
//! [`crate::portable::rows::decode`] composes the steps and is what every other way must equal bit for bit.

use crate::{Float, Minifloat, Packing};

/// How results reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// Through the caches: right where the caller reads the output soon.
    Ordinary,
    /// Past the caches (non-temporal): no line is read only to be overwritten, and nothing else is pushed out. Slower
    /// where the output would have fitted; a backend without such stores takes ordinary ones.
    Streaming,
}

impl Stores {
    /// An output of more bytes is streamed: about one core's share of the last-level cache on the servers at hand (Zen 3:
    /// 32 MiB for 8 cores). Where the crossover lies exactly has not been measured.
    pub const STREAMING_ABOVE_BYTES: usize = 4 << 20;

    /// What suits an output of `len_bytes` in all, of which this call may write a part: the caller's whole buffer counts,
    /// not the tile at hand.
    ///
    /// ```
    /// use safequant_kernels::Stores;
    /// assert_eq!(Stores::for_len(1 << 16), Stores::Ordinary);
    /// assert_eq!(Stores::for_len(1 << 30), Stores::Streaming);
    /// ```
    pub const fn for_len(len_bytes: usize) -> Self {
        if len_bytes <= Self::STREAMING_ABOVE_BYTES {
            Stores::Ordinary
        } else {
            Stores::Streaming
        }
    }
}

/// Where floats are written.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// F32 values: results before any rounding.
    F32(&'a mut [f32]),
    /// Little-endian bytes of a dense float type: results rounded once. A NaN is written as FFFF in BF16, as torch does
    /// on a CPU.
    Bytes(Float, &'a mut [u8]),
}

impl FloatsMut<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(values) => values.len(),
            FloatsMut::Bytes(float, bytes) => bytes.len() / float.size_bytes(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows of codes of one matrix with everything that their values depend on.
#[derive(Clone, Copy, Debug)]
pub struct CodedRows<'a> {
    /// Output features.
    pub n_rows: usize,
    /// Input features.
    pub n_columns: usize,
    /// The stored bytes.
    pub codes: StoredCodes<'a>,
    /// What a code stands for.
    pub value: CodeMeaning<'a>,
    /// What shares a scale.
    pub grid: ScaleGrid<'a>,
    /// The operations.
    pub formula: Formula<'a>,
    /// Results are rounded to this before they are rounded to the output: F32 for "no".
    pub first_rounded_to: Float,
}

/// Stored codes.
#[derive(Clone, Copy, Debug)]
pub struct StoredCodes<'a> {
    /// From the first byte of the first line to the last one of the last.
    pub bytes: &'a [u8],
    /// Bytes from one line to the next.
    pub stride: usize,
    /// What a line is.
    pub layout: CodeLayout,
}

/// What a line of stored codes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeLayout {
    /// A line is a row, packed as one run.
    Rows(Packing),
    /// Line `l` holds the `l`-th 32-bit word of every row's run: GPTQ, `[in / pack factor, out]`.
    WordsOfRows(Packing),
    /// A line is a column, packed along the rows: AWQ, `[in, out / pack factor]`.
    Columns(Packing),
}

impl CodeLayout {
    /// How codes sit in a run.
    pub const fn packing(self) -> Packing {
        match self {
            CodeLayout::Rows(packing)
            | CodeLayout::WordsOfRows(packing)
            | CodeLayout::Columns(packing) => packing,
        }
    }
}

/// What a code stands for, before any scale.
#[derive(Clone, Copy, Debug)]
pub enum CodeMeaning<'a> {
    /// `(code ^ flip) - zero`, exact, rounded to F32.
    Integer {
        /// 80 (hexadecimal) for bytes in two's complement, the sign bit of narrower fields in two's complement, 0 for
        /// unsigned codes.
        flip: u8,
        /// In the unsigned form.
        zero: Zeros<'a>,
    },
    /// A small float.
    Minifloat(Minifloat),
    /// One of sixteen values; the upper half of a code's byte is ignored.
    Table16(&'a [f32; 16]),
}

/// What is subtracted from an integer code.
#[derive(Clone, Copy, Debug)]
pub enum Zeros<'a> {
    /// The same everywhere.
    Fixed(i32),
    /// One per entry of the grid.
    Each(&'a [i32]),
}

/// Which codes share a scale. The grid is row-major, `n_columns.div_ceil(columns)` entries wide.
#[derive(Clone, Copy, Debug)]
pub struct ScaleGrid<'a> {
    /// The scales as F32. Empty: every scale is 1.
    pub scales: &'a [f32],
    /// Rows that share a line of the grid (`usize::MAX` for a scale per matrix).
    pub rows: usize,
    /// How many rows of the first line's block lie before the first row.
    pub rows_before: usize,
    /// Columns that share an entry; the last entry of a line may have fewer.
    pub columns: usize,
}

impl ScaleGrid<'_> {
    /// Entries in a line, for rows of `n_columns`.
    pub fn width(&self, n_columns: usize) -> usize {
        n_columns.div_ceil(self.columns)
    }

    /// The line that row `row` uses.
    pub fn line(&self, row: usize) -> usize {
        self.rows_before.saturating_add(row) / self.rows
    }
}

/// The operations on the value of a code, each rounded to F32, in the order written.
#[derive(Clone, Copy, Debug)]
pub enum Formula<'a> {
    /// `value * scale`.
    Product,
    /// `value / scale`.
    Quotient,
    /// `value * scale * factor`.
    ProductTimes(f32),
    /// `step(value * scale) + offset`.
    PlusOffset {
        /// One per entry of the grid.
        offsets: &'a [f32],
        /// What the product is rounded to: F32 for "no".
        step: Float,
    },
    /// `step(value * scale) - offset`.
    MinusOffset {
        /// One per entry of the grid.
        offsets: &'a [f32],
        /// What the product is rounded to.
        step: Float,
    },
    /// `step(value - offset) * scale`.
    OffsetFirst {
        /// One per entry of the grid.
        offsets: &'a [f32],
        /// What the difference is rounded to.
        step: Float,
    },
}

impl<'a> Formula<'a> {
    /// The offsets, where there are any.
    pub const fn offsets(self) -> Option<&'a [f32]> {
        match self {
            Formula::Product | Formula::Quotient | Formula::ProductTimes(_) => None,
            Formula::PlusOffset { offsets, step: _ }
            | Formula::MinusOffset { offsets, step: _ }
            | Formula::OffsetFirst { offsets, step: _ } => Some(offsets),
        }
    }
}

/// The numbers of one entry of the grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) scale: f32,
    pub(crate) zero: i32,
    pub(crate) offset: f32,
}

impl CodedRows<'_> {
    /// The numbers of entry `at` of the grid.
    #[inline(always)]
    pub(crate) fn entry(&self, at: usize) -> Entry {
        Entry {
            scale: self.grid.scales.get(at).copied().unwrap_or(1.0),
            zero: match self.value {
                CodeMeaning::Integer { zero, flip: _ } => match zero {
                    Zeros::Fixed(zero) => zero,
                    Zeros::Each(zeros) => zeros[at],
                },
                CodeMeaning::Minifloat(_) | CodeMeaning::Table16(_) => 0,
            },
            offset: self.formula.offsets().map_or(0.0, |offsets| offsets[at]),
        }
    }

    /// Panics unless everything has the length that it needs.
    pub(crate) fn check(&self, out: &FloatsMut<'_>) {
        let (rows, columns) = (self.n_rows, self.n_columns);
        assert_eq!(
            Some(out.len()),
            rows.checked_mul(columns),
            "one result per code"
        );
        if let FloatsMut::Bytes(float, bytes) = out {
            assert!(
                bytes.len().is_multiple_of(float.size_bytes()),
                "whole results"
            );
        }
        if rows == 0 || columns == 0 {
            return;
        }
        let grid = self.grid;
        assert!(
            grid.columns > 0 && grid.rows > 0,
            "an entry has rows and columns"
        );
        let entries = (grid.line(rows - 1) + 1).saturating_mul(grid.width(columns));
        let enough = |found: usize| assert!(found >= entries, "{found} entries, {entries} needed");
        if !grid.scales.is_empty() {
            enough(grid.scales.len());
        }
        if let Some(offsets) = self.formula.offsets() {
            enough(offsets.len());
        }
        if let CodeMeaning::Integer { zero, flip: _ } = self.value
            && let Zeros::Each(zeros) = zero
        {
            enough(zeros.len());
        }
        self.check_codes();
    }

    /// Panics unless everything has the length that it needs, with an entry of the grid for each column.
    pub(crate) fn check_index(&self, index: &[u32], out: &FloatsMut<'_>) {
        self.check(out);
        assert_eq!(index.len(), self.n_columns, "an entry for each column");
        let width = if index.is_empty() {
            0
        } else {
            self.grid.width(self.n_columns)
        };
        let outside = index.iter().find(|&&entry| entry as usize >= width);
        assert_eq!(outside, None, "a line has {width} entries");
    }

    fn check_codes(&self) {
        let StoredCodes {
            bytes,
            stride,
            layout,
        } = self.codes;
        let packing = layout.packing();
        let (lines, len) = match layout {
            CodeLayout::Rows(_) => (self.n_rows, packing.packed_len_bytes(self.n_columns, 1)),
            CodeLayout::WordsOfRows(_) => (
                packing.packed_len_bytes(self.n_columns, 4) / 4,
                self.n_rows.saturating_mul(4),
            ),
            CodeLayout::Columns(_) => (self.n_columns, packing.packed_len_bytes(self.n_rows, 1)),
        };
        assert!(
            stride >= len,
            "lines of {len} bytes, {stride} from one to the next"
        );
        let needed = stride.saturating_mul(lines - 1).saturating_add(len);
        assert!(
            bytes.len() >= needed,
            "{} bytes of codes, {needed} needed",
            bytes.len()
        );
    }
}
