//! ggml's blocks to rows of floats in one go: see [`BlockFormat::decode`].
//!
//! Nearly all of a block is runs of 32 elements ([`runs`]). Sixteen results that share a table are calculated once and looked
//! up; wider codes are calculated each. A block whose scale is no finite number goes to portable, so that nothing here can
//! meet a NaN; so do the types that have no code here.

mod k_quants;
mod legacy;
mod runs;

use super::formula::{BF16, F16, F32, size_of_result};
use super::lanes::prefetch_ahead;
use super::rows::bytes_of;
use super::{convert, stream};
use crate::{BlockFormat, Float, FloatsMut, Stores};

/// Values of 4-bit codes about a zero of 8.
const SIGNED: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

/// Values of 4-bit codes.
const UNSIGNED: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Bytes of results that are moved past the caches at once, where they cannot be written there.
const BUFFER: usize = 8192;

/// See [`BlockFormat::decode`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode_blocks(
    format: BlockFormat,
    blocks: &[u8],
    out: FloatsMut<'_>,
    stores: Stores,
) {
    format.check(blocks, out.len());
    match out {
        FloatsMut::F32(values) => decode::<F32>(format, blocks, bytes_of(values), stores),
        FloatsMut::Bytes(Float::F32, bytes) => decode::<F32>(format, blocks, bytes, stores),
        FloatsMut::Bytes(Float::F16, bytes) => decode::<F16>(format, blocks, bytes, stores),
        FloatsMut::Bytes(Float::Bf16, bytes) => decode::<BF16>(format, blocks, bytes, stores),
    }
}

#[target_feature(enable = "avx2,f16c")]
fn decode<const FLOAT: usize>(format: BlockFormat, blocks: &[u8], out: &mut [u8], stores: Stores) {
    match stores {
        Stores::Ordinary => kernel::<FLOAT, false>(format, blocks, out),
        Stores::Streaming if out.as_ptr().addr().is_multiple_of(16) => {
            kernel::<FLOAT, true>(format, blocks, out);
            stream::fence();
        }
        Stores::Streaming => {
            let mut buffer = Buffer([0; BUFFER]);
            let block_len = format.elements() * size_of_result::<FLOAT>();
            let n = BUFFER / block_len;
            let pieces = out.chunks_mut(n * block_len);
            for (out, blocks) in pieces.zip(blocks.chunks(n * format.bytes())) {
                let buffer = &mut buffer.0[..out.len()];
                kernel::<FLOAT, false>(format, blocks, buffer);
                // SAFETY: the fence follows.
                unsafe { stream::copy(buffer, out) }
            }
            stream::fence();
        }
    }
}

#[repr(align(64))]
struct Buffer([u8; BUFFER]);

#[target_feature(enable = "avx2,f16c")]
fn kernel<const FLOAT: usize, const STREAM: bool>(
    format: BlockFormat,
    blocks: &[u8],
    out: &mut [u8],
) {
    match format {
        BlockFormat::Q4_0 => legacy::q4_0::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q4_1 => legacy::q4_1::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q5_0 => legacy::q5_0::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q5_1 => legacy::q5_1::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q8_0 => legacy::q8_0::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Iq4Nl => legacy::iq4_nl::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Mxfp4 => legacy::mxfp4::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q2K => k_quants::q2_k::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q3K => k_quants::q3_k::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q4K => k_quants::q4_k::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q5K => k_quants::q5_k::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Q6K => k_quants::q6_k::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Iq4Xs => k_quants::iq4_xs::<FLOAT, STREAM>(blocks, out),
        BlockFormat::Iq2Xxs
        | BlockFormat::Iq2Xs
        | BlockFormat::Iq3Xxs
        | BlockFormat::Iq1S
        | BlockFormat::Iq3S
        | BlockFormat::Iq2S
        | BlockFormat::Iq1M
        | BlockFormat::Tq1_0
        | BlockFormat::Tq2_0
        | BlockFormat::Nvfp4
        | BlockFormat::Q1_0
        | BlockFormat::Q2_0 => composed::<FLOAT>(format, blocks, out),
    }
}

/// Values by portable, rounded here.
#[target_feature(enable = "avx2,f16c")]
fn composed<const FLOAT: usize>(format: BlockFormat, blocks: &[u8], out: &mut [u8]) {
    let float = match FLOAT {
        F32 => Float::F32,
        F16 => Float::F16,
        _ => Float::Bf16,
    };
    format.decode_with(blocks, float, out, |values, out| {
        convert::round(float, values, out);
    });
}

/// Calls `block` with each block and the bytes of its results, unless one of the F16 numbers at `halves` is not finite.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn each<const BYTES: usize, const FLOAT: usize>(
    format: BlockFormat,
    halves: &[usize],
    blocks: &[u8],
    out: &mut [u8],
    mut block: impl FnMut(&[u8; BYTES], &mut [u8]),
) {
    let len = format.elements() * size_of_result::<FLOAT>();
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    for (bytes, out) in blocks.iter().zip(out.chunks_exact_mut(len)) {
        bytes
            .iter()
            .step_by(64)
            .for_each(|line| prefetch_ahead(line));
        if halves.iter().all(|&at| half(bytes, at) & 0x7c00 != 0x7c00) {
            block(bytes, out);
        } else {
            special::<FLOAT>(format, bytes, out);
        }
    }
}

/// A block with a NaN or an infinity.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,f16c")]
fn special<const FLOAT: usize>(format: BlockFormat, block: &[u8], out: &mut [u8]) {
    composed::<FLOAT>(format, block, out);
}

/// `N` bytes of a block.
#[inline(always)]
fn piece<const BYTES: usize, const N: usize>(block: &[u8; BYTES], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("within a block")
}

/// The bits of an F16 number in a block.
#[inline(always)]
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u16 {
    u16::from_le_bytes(piece(block, at))
}
