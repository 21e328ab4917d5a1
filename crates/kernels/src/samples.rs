//! Sample work of each kernel family, and the copy that it is measured beside: one list for benches and for `safequant bench`.
//!
//! A [`Sample`] is a format of stored rows, [`BLOCKS`] lists those of blocks; a [`Work`] or [`BlockWork`] is a matrix of one, filled with bytes that are chosen for being no NaN and not all the
//! same, which this crate can decode but nobody wrote. Nothing here looks at a clock: callers do.

use std::hint::black_box;
use std::ops::Range;

use crate::rows::{
    CodeLayout, CodeMeaning, CodedRows, FloatsMut, Formula, ScaleGrid, StoredCodes, Stores, Zeros,
};
use crate::{Backend, BlockFormat, Codebook, Float, Minifloat, Packing};

/// One format of stored rows.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Short, unique, lowercase: `int4_g128`.
    pub name: &'static str,
    /// How codes lie.
    pub layout: CodeLayout,
    /// What a code stands for.
    pub value: CodeMeaning<'static>,
    /// Rows that share a scale; `usize::MAX` for all.
    pub rows_per_scale: usize,
    /// Columns that share a scale; `usize::MAX` for all.
    pub columns_per_scale: usize,
}

const ALL: usize = usize::MAX;
const BYTES: CodeLayout = CodeLayout::Rows(Packing::Bytes);
const NIBBLES: CodeLayout = lsb_first(4);
const E4M3: CodeMeaning<'_> = CodeMeaning::Minifloat(Minifloat::E4M3);
const E2M1: CodeMeaning<'_> = CodeMeaning::Minifloat(Minifloat::E2M1);
const INT4: CodeMeaning<'_> = integer(0, 8);
const INT8: CodeMeaning<'_> = integer(0x80, 128);

/// Every format that is measured.
pub static SAMPLES: &[Sample] = &[
    sample("fp8_tensor", BYTES, E4M3, (ALL, ALL)),
    sample("fp8_channel", BYTES, E4M3, (1, ALL)),
    sample("fp8_block", BYTES, E4M3, (128, 128)),
    sample("int8_channel", BYTES, INT8, (1, ALL)),
    sample("int4_g128", NIBBLES, INT4, (1, 128)),
    sample("int4_g64", NIBBLES, INT4, (1, 64)),
    sample("int4_g32", NIBBLES, INT4, (1, 32)),
    sample(
        "gptq4_g128",
        CodeLayout::WordsOfRows(Packing::LsbFirst { bits: 4 }),
        INT4,
        (1, 128),
    ),
    sample(
        "awq4_g128",
        CodeLayout::Columns(Packing::AwqInterleaved),
        INT4,
        (1, 128),
    ),
    sample(
        "nf4_g64",
        CodeLayout::Rows(Packing::NibblesHighFirst),
        CodeMeaning::Table16(Codebook::Nf4.values()),
        (1, 64),
    ),
    sample("mxfp4", NIBBLES, E2M1, (1, 32)),
    sample("nvfp4", NIBBLES, E2M1, (1, 16)),
    sample("int2_g64", lsb_first(2), integer(0, 2), (1, 64)),
    sample("int3_g128", lsb_first(3), integer(0, 4), (1, 128)),
    sample("int6_g64", lsb_first(6), integer(0, 32), (1, 64)),
];

const fn lsb_first(bits: u32) -> CodeLayout {
    CodeLayout::Rows(Packing::LsbFirst { bits })
}

const fn integer(flip: u8, zero: i32) -> CodeMeaning<'static> {
    let zero = Zeros::Fixed(zero);
    CodeMeaning::Integer { flip, zero }
}

const fn sample(
    name: &'static str,
    layout: CodeLayout,
    value: CodeMeaning<'static>,
    (rows_per_scale, columns_per_scale): (usize, usize),
) -> Sample {
    Sample {
        name,
        layout,
        value,
        rows_per_scale,
        columns_per_scale,
    }
}

/// A matrix of one format.
#[derive(Clone, Debug)]
pub struct Work {
    sample: &'static Sample,
    n_rows: usize,
    n_columns: usize,
    stored: Vec<u8>,
    scales: Vec<f32>,
}

impl Work {
    /// A matrix of `n_rows` x `n_columns`.
    ///
    /// # Panics
    /// If `n_rows` is no multiple of 8 or `n_columns` none of 128: every layout and group is then whole.
    pub fn new(sample: &'static Sample, n_rows: usize, n_columns: usize) -> Self {
        assert!(n_rows.is_multiple_of(8) && n_columns.is_multiple_of(128));
        let n = n_rows * n_columns;
        let n_scales =
            n_rows.div_ceil(sample.rows_per_scale) * n_columns.div_ceil(sample.columns_per_scale);
        // 251 is a prime: bytes that changed places cannot go unnoticed. 7F is the only NaN of E4M3 below it.
        let stored = |i: usize| match (i % 251) as u8 {
            0x7f => 0x7e,
            byte => byte,
        };
        Self {
            sample,
            n_rows,
            n_columns,
            stored: (0..n * sample.layout.packing().bits() as usize / 8)
                .map(stored)
                .collect(),
            scales: (0..n_scales)
                .map(|i| 0.01 + (i * 7919 % 2003) as f32 / 100_000.0)
                .collect(),
        }
    }

    /// The stored bytes.
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Bytes that `n_rows` rows become.
    pub fn out_len(&self, n_rows: usize, float: Float) -> usize {
        n_rows * self.n_columns * float.size_bytes()
    }

    /// Bytes that `n_rows` rows are stored in.
    pub fn stored_len(&self, n_rows: usize) -> usize {
        self.stored.len() / self.n_rows * n_rows
    }

    /// Decodes a range of rows.
    ///
    /// # Panics
    /// If the range begins at no multiple of 8, or `out` is not of [`Work::out_len`].
    pub fn decode(
        &self,
        backend: &Backend,
        rows: Range<usize>,
        (float, out): (Float, &mut [u8]),
        stores: Stores,
    ) {
        (backend.decode_rows)(&self.rows(rows), FloatsMut::Bytes(float, out), stores);
    }

    /// A range of rows as kernels take them.
    fn rows(&self, rows: Range<usize>) -> CodedRows<'_> {
        assert!(rows.start.is_multiple_of(8), "whole words");
        let sample = self.sample;
        let whole = sample.rows(self.n_rows, self.n_columns, &self.stored, &self.scales);
        let StoredCodes { stride, layout, .. } = whole.codes;
        let first = match layout {
            CodeLayout::Rows(_) => rows.start * stride,
            CodeLayout::WordsOfRows(_) => rows.start * 4,
            CodeLayout::Columns(packing) => packing.packed_len_bytes(rows.start, 1),
        };
        let line = rows.start / sample.rows_per_scale;
        CodedRows {
            n_rows: rows.len(),
            codes: StoredCodes {
                bytes: &self.stored[first..],
                ..whole.codes
            },
            grid: ScaleGrid {
                scales: &self.scales[line * whole.grid.width(self.n_columns)..],
                rows_before: rows.start % sample.rows_per_scale,
                ..whole.grid
            },
            ..whole
        }
    }
}

impl Sample {
    /// A whole matrix of this format: its stored bytes and its grid of scales as F32.
    pub const fn rows<'a>(
        &self,
        n_rows: usize,
        n_columns: usize,
        stored: &'a [u8],
        scales: &'a [f32],
    ) -> CodedRows<'a> {
        let stride = match self.layout {
            CodeLayout::Rows(packing) => packing.packed_len_bytes(n_columns, 1),
            CodeLayout::WordsOfRows(_) => n_rows * 4,
            CodeLayout::Columns(packing) => packing.packed_len_bytes(n_rows, 1),
        };
        CodedRows {
            n_rows,
            n_columns,
            codes: StoredCodes {
                bytes: stored,
                stride,
                layout: self.layout,
            },
            value: self.value,
            grid: ScaleGrid {
                scales,
                rows: self.rows_per_scale,
                rows_before: 0,
                columns: self.columns_per_scale,
            },
            formula: Formula::Product,
            first_rounded_to: Float::F32,
        }
    }
}

/// Every block format that is measured.
pub static BLOCKS: &[BlockFormat] = &[
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q2K,
    BlockFormat::Q3K,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
    BlockFormat::Iq4Nl,
    BlockFormat::Iq4Xs,
    BlockFormat::Mxfp4,
];

/// A matrix of blocks.
#[derive(Clone, Debug)]
pub struct BlockWork {
    format: BlockFormat,
    n_columns: usize,
    /// Bytes of a row.
    row_len: usize,
    stored: Vec<u8>,
}

impl BlockWork {
    /// A matrix of `n_rows` x `n_columns`: blocks of any codes, their F16 numbers small and finite.
    ///
    /// # Panics
    /// If `n_columns` is no whole number of blocks.
    pub fn new(format: BlockFormat, n_rows: usize, n_columns: usize) -> Self {
        assert!(n_columns.is_multiple_of(format.elements()), "whole blocks");
        let row_len = n_columns / format.elements() * format.bytes();
        let mut stored: Vec<u8> = (0..n_rows * row_len).map(|i| (i % 251) as u8).collect();
        for block in stored.chunks_exact_mut(format.bytes()) {
            set_scales(format, block);
        }
        Self {
            format,
            n_columns,
            row_len,
            stored,
        }
    }

    /// The stored bytes.
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Bytes that `n_rows` rows become.
    pub fn out_len(&self, n_rows: usize, float: Float) -> usize {
        n_rows * self.n_columns * float.size_bytes()
    }

    /// Bytes that `n_rows` rows are stored in.
    pub fn stored_len(&self, n_rows: usize) -> usize {
        n_rows * self.row_len
    }

    /// Decodes a range of rows.
    ///
    /// # Panics
    /// If there are not so many rows, or `out` is not of [`BlockWork::out_len`].
    pub fn decode(
        &self,
        backend: &Backend,
        rows: Range<usize>,
        (float, out): (Float, &mut [u8]),
        stores: Stores,
    ) {
        let blocks = &self.stored[self.stored_len(rows.start)..self.stored_len(rows.end)];
        (backend.decode_blocks)(self.format, blocks, FloatsMut::Bytes(float, out), stores);
    }
}

/// Scales and offsets of a block, where its type has F16 or E8M0 numbers.
fn set_scales(format: BlockFormat, block: &mut [u8]) {
    match format {
        BlockFormat::Q2K => block[80..84].copy_from_slice(&[0x12, 0x24, 0x34, 0x28]),
        BlockFormat::Q3K => block[108..110].copy_from_slice(&[0x12, 0x24]),
        BlockFormat::Q6K => block[208..210].copy_from_slice(&[0x12, 0x24]),
        BlockFormat::Mxfp4 => block[0] = 121,
        BlockFormat::Q4_0
        | BlockFormat::Q4_1
        | BlockFormat::Q5_0
        | BlockFormat::Q5_1
        | BlockFormat::Q8_0
        | BlockFormat::Q4K
        | BlockFormat::Q5K
        | BlockFormat::Iq2Xxs
        | BlockFormat::Iq2Xs
        | BlockFormat::Iq3Xxs
        | BlockFormat::Iq1S
        | BlockFormat::Iq4Nl
        | BlockFormat::Iq3S
        | BlockFormat::Iq2S
        | BlockFormat::Iq4Xs
        | BlockFormat::Iq1M
        | BlockFormat::Tq1_0
        | BlockFormat::Tq2_0
        | BlockFormat::Nvfp4
        | BlockFormat::Q1_0
        | BlockFormat::Q2_0 => block[..4].copy_from_slice(&[0x12, 0x24, 0x34, 0x28]),
    }
}

/// Copies with the traffic of a kernel: every byte of `from` is read and every byte of `to` written, with no arithmetic. Piece by
/// piece, so that both streams run at once: where the output is longer, a piece of it comes from where a kernel would read
/// (what overlaps is in a cache); where it is shorter, the rest of the input is only read. Pieces begin at whole
/// cache lines of the output, as a kernel's would: a streaming store to a part of a line costs many times more.
///
/// # Panics
/// If `from` is empty and `to` is not.
pub fn copy_traffic(backend: &Backend, from: &[u8], to: &mut [u8], stores: Stores) {
    // Streaming copies end with a fence that waits for memory: with pieces of 4 KiB it took half of the time, and kernels
    // were compared with a limit that was none.
    // Ordinary ones stay below what glibc's memcpy hands to `rep movsb` (4 KiB where vectors have 32 bytes): on Zen 3 that
    // takes fifteen times as long where the output begins a few bytes after the input, modulo 4096, and kernels seemed to beat it.
    let piece = match stores {
        Stores::Ordinary => 2 << 10,
        Stores::Streaming => 128 << 10,
    };
    let (n_in, n_out) = (from.len(), to.len());
    if n_in <= n_out {
        for (at, out) in to.chunks_mut(piece).enumerate() {
            let first = (at * piece * n_in / n_out).min(n_in.saturating_sub(out.len()));
            for out in out.chunks_mut(n_in) {
                (backend.copy)(&from[first..first + out.len()], out, stores);
            }
        }
        return;
    }
    let mut rest = to;
    let mut written = 0;
    for (at, block) in from.chunks(piece).enumerate() {
        let end = match (at * piece + block.len()) * n_out / n_in {
            end if end == n_out => end,
            end => end / LINE * LINE,
        };
        let (out, after) = rest.split_at_mut(end - written);
        let first = (at * piece).min(n_in - out.len());
        (backend.copy)(&from[first..first + out.len()], out, stores);
        let unread = block.get(out.len()..).unwrap_or_default();
        black_box(unread.iter().fold(0, |sum, byte| sum ^ byte));
        (rest, written) = (after, end);
    }
}

/// A line of the cache.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PORTABLE;

    #[test]
    fn names_are_unique_and_plain() {
        let names: std::collections::BTreeSet<&str> = SAMPLES.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SAMPLES.len());
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.iter().all(|name| name.chars().all(is_plain)));
    }

    #[test]
    fn a_range_of_rows_is_that_part_of_the_whole() {
        const ROWS: usize = 264; // more than two blocks of 128
        for sample in SAMPLES {
            let work = Work::new(sample, ROWS, 256);
            let decode = |range: Range<usize>| {
                let mut out = vec![0; work.out_len(range.len(), Float::F32)];
                let to = (Float::F32, out.as_mut_slice());
                work.decode(&PORTABLE, range, to, Stores::Ordinary);
                out
            };
            let whole = decode(0..ROWS);
            let parts: Vec<u8> = [0..8, 8..136, 136..ROWS]
                .into_iter()
                .flat_map(decode)
                .collect();
            assert!(whole == parts, "{}", sample.name);
            let values: Vec<f32> = whole
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            assert!(values.iter().all(|v| v.is_finite()), "{}", sample.name);
            let distinct = |v: &f32| v.to_bits();
            let bits: std::collections::BTreeSet<u32> = values.iter().map(distinct).collect();
            assert!(bits.len() > 64, "{}: {} values", sample.name, bits.len());
        }
    }

    #[test]
    fn blocks_are_finite_and_a_range_of_rows_is_that_part_of_the_whole() {
        for &format in BLOCKS {
            let work = BlockWork::new(format, 3, 512);
            assert_eq!(work.stored().len(), work.stored_len(3));
            let decode = |rows: Range<usize>| {
                let mut out = vec![0; work.out_len(rows.len(), Float::F32)];
                let to = (Float::F32, out.as_mut_slice());
                work.decode(&PORTABLE, rows, to, Stores::Ordinary);
                out
            };
            let whole = decode(0..3);
            assert!(
                whole == [decode(0..1), decode(1..3)].concat(),
                "{}",
                format.name()
            );
            let values = whole.chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            assert!(values.clone().all(f32::is_finite), "{}", format.name());
            let bits: std::collections::BTreeSet<u32> = values.map(f32::to_bits).collect();
            // All blocks have one scale: a 4-bit code has sixteen values.
            assert!(bits.len() > 8, "{}: {} values", format.name(), bits.len());
        }
    }

    #[test]
    fn the_copy_writes_every_byte() {
        for (n_in, n_out) in [
            (5000, 10_000),
            (5000, 20_000),
            (9000, 9000),
            (10_000, 5000),
            (9, 0),
        ] {
            for &stores in &[Stores::Ordinary, Stores::Streaming] {
                let mut to = vec![0; n_out];
                copy_traffic(Backend::detect(), &vec![1; n_in], &mut to, stores);
                assert!(to.iter().all(|&byte| byte == 1), "{n_in} to {n_out}");
            }
        }
    }
}
