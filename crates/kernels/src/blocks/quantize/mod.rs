//! ggml's reference quantizers: F32 to blocks.
//!
//! All arithmetic is F32, one rounding per operation, sums in the order of the elements, no fused multiply-add. With that
//! `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, the ternary types, MXFP4 and NVFP4 give the bytes of ggml on any build of it. The K types
//! and IQ4 give those of a build without fused multiply-add; a build with it differs in a few blocks of a thousand, so
//! that their bytes are no standard. IQ2 and IQ3 are not ggml's at all: its own quantizer of IQ2 needs an importance matrix, and that of
//! IQ3 does badly without one. None uses an importance matrix.

mod float4;
mod iq4;
pub(crate) mod k_quants;
pub(crate) mod lattice;
mod legacy;
mod pack;
mod ternary;

use super::BlockFormat;
use super::layout::{Block, BlockLayout};
use super::points;
use crate::portable;

/// Chooses the fields of one block. `codes` beyond the block's elements, and fields that the layout lacks, are ignored.
type QuantizeBlock = fn(&[f32], &mut Block);

/// The reference quantizer of a block type.
#[derive(Clone, Copy, Debug)]
pub struct BlockQuantizer {
    layout: &'static BlockLayout,
    choose: QuantizeBlock,
}

impl BlockFormat {
    /// The reference quantizer; `None` for the types that are only read here (IQ1).
    pub fn quantizer(self) -> Option<BlockQuantizer> {
        let choose: QuantizeBlock = match self {
            BlockFormat::Q4_0 => legacy::q4_0,
            BlockFormat::Q4_1 => legacy::q4_1,
            BlockFormat::Q5_0 => legacy::q5_0,
            BlockFormat::Q5_1 => legacy::q5_1,
            BlockFormat::Q8_0 => legacy::q8_0,
            BlockFormat::Q2K => k_quants::q2_k,
            BlockFormat::Q3K => k_quants::q3_k,
            BlockFormat::Q4K => k_quants::q4_k,
            BlockFormat::Q5K => k_quants::q5_k,
            BlockFormat::Q6K => k_quants::q6_k,
            BlockFormat::Iq4Nl => iq4::iq4_nl,
            BlockFormat::Iq4Xs => iq4::iq4_xs,
            BlockFormat::Tq1_0 | BlockFormat::Tq2_0 => ternary::tq,
            BlockFormat::Q1_0 => ternary::q1_0,
            BlockFormat::Q2_0 => ternary::q2_0,
            BlockFormat::Mxfp4 => float4::mxfp4,
            BlockFormat::Nvfp4 => float4::nvfp4,
            BlockFormat::Iq2Xxs => |values, block| {
                lattice::choose(&points::IQ2_XXS, portable::points::edge, values, block);
            },
            BlockFormat::Iq2Xs => |values, block| {
                lattice::choose(&points::IQ2_XS, portable::points::edge, values, block);
            },
            BlockFormat::Iq2S => |values, block| {
                lattice::choose(&points::IQ2_S, portable::points::edge, values, block);
            },
            BlockFormat::Iq3Xxs => |values, block| {
                lattice::choose(&points::IQ3_XXS, portable::points::edge, values, block);
            },
            BlockFormat::Iq3S => |values, block| {
                lattice::choose(&points::IQ3_S, portable::points::edge, values, block);
            },
            BlockFormat::Iq1S | BlockFormat::Iq1M => return None,
        };
        let layout = self.layout()?;
        Some(BlockQuantizer { layout, choose })
    }

    /// Whether the quantizer's bytes are those of every build of ggml (the module's documentation says which are not).
    pub const fn is_reproducible(self) -> bool {
        match self {
            BlockFormat::Q4_0
            | BlockFormat::Q4_1
            | BlockFormat::Q5_0
            | BlockFormat::Q5_1
            | BlockFormat::Q8_0
            | BlockFormat::Tq1_0
            | BlockFormat::Tq2_0
            | BlockFormat::Q1_0
            | BlockFormat::Q2_0
            | BlockFormat::Mxfp4
            | BlockFormat::Nvfp4 => true,
            BlockFormat::Q2K
            | BlockFormat::Q3K
            | BlockFormat::Q4K
            | BlockFormat::Q5K
            | BlockFormat::Q6K
            | BlockFormat::Iq4Nl
            | BlockFormat::Iq4Xs
            | BlockFormat::Iq2Xxs
            | BlockFormat::Iq2Xs
            | BlockFormat::Iq2S
            | BlockFormat::Iq3Xxs
            | BlockFormat::Iq3S
            | BlockFormat::Iq1S
            | BlockFormat::Iq1M => false,
        }
    }
}

impl BlockQuantizer {
    /// Quantizes whole blocks; NaN and infinities give some codes, never a panic.
    ///
    /// # Panics
    /// If `blocks` is not the bytes of `values.len() / elements` blocks.
    pub fn quantize(self, values: &[f32], blocks: &mut [u8]) {
        let BlockLayout {
            elements, bytes, ..
        } = *self.layout;
        let n_blocks = values.len() / elements;
        assert_eq!(values.len(), n_blocks * elements, "whole blocks");
        assert_eq!(blocks.len(), n_blocks * bytes, "bytes of {n_blocks} blocks");
        for (values, bytes) in values
            .chunks_exact(elements)
            .zip(blocks.chunks_exact_mut(bytes))
        {
            let mut block = Block::ZERO;
            (self.choose)(values, &mut block);
            self.layout.pack_block(&block, bytes);
        }
    }
}

/// `nearest_int`: the nearest integer, ties to even, for |value| < 2^22; otherwise whatever ggml gives.
fn nearest_int(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits() as i32;
    (bits & 0x007f_ffff) - 0x0040_0000
}

/// The largest magnitude, as ggml finds it: NaN is passed over.
fn max_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| {
        let magnitude = value.abs();
        if max < magnitude { magnitude } else { max }
    })
}

/// The value of largest magnitude, the first of several; 0 if there is none.
fn extreme(values: &[f32]) -> f32 {
    let mut extreme = 0.0_f32;
    for &value in values {
        if extreme.abs() < value.abs() {
            extreme = value;
        }
    }
    extreme
}

/// `1 / value`, and 0 for 0.
fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first worked example of gguf.md: x[i] = (i - 16) / 16, x[5] = 0.3, x[31] = -1.25.
    fn ramp() -> [f32; 32] {
        let mut x: [f32; 32] = std::array::from_fn(|i| (i as f32 - 16.0) / 16.0);
        (x[5], x[31]) = (0.3, -1.25);
        x
    }

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("hex digits"))
            .collect()
    }

    /// The bytes of the example, and its values at the elements given.
    fn check(format: BlockFormat, x: &[f32], bytes: &str, values: &[(usize, f32)]) {
        let (mut found, mut back) = (vec![0; hex(bytes).len()], vec![0.0; x.len()]);
        let quantizer = format.quantizer().expect("a coded type");
        quantizer.quantize(x, &mut found);
        format.dequantize(&found, &mut back);
        for &(i, value) in values {
            assert_eq!(
                back[i].to_bits(),
                value.to_bits(),
                "{} element {i}",
                format.name()
            );
        }
        assert_eq!(found, hex(bytes), "{}", format.name());
    }

    #[test]
    fn worked_examples_of_32_elements() {
        let at = |a, b, c, d| [(0, a), (5, b), (16, c), (31, d)];
        check(
            BlockFormat::Q4_0,
            &ramp(),
            "00 31 82 82 92 93 a3 aa a4 b4 b5 c5 c6 c6 d6 d7 e7 08",
            &at(-0.9375, 0.3125, 0.0, -1.25),
        );
        check(
            BlockFormat::Q4_1,
            &ramp(),
            "89 30 00 bd 92 92 a3 a3 b4 bb b4 c5 c5 d6 d6 e7 e7 f8 f8 08",
            &at(-0.966_552_73, 0.308_959_96, 0.025_512_695, -1.25),
        );
        check(
            BlockFormat::Q5_0,
            &ramp(),
            "00 2d 20 00 ff 7f 03 14 25 26 36 44 58 69 6a 7a 8b 9c ad ae be 0f",
            &at(-1.015_625, 0.3125, 0.0, -1.25),
        );
        check(
            BlockFormat::Q5_1,
            &ramp(),
            "63 2c 00 bd 20 e0 ff 7f 24 35 45 56 67 77 89 9a ab ac bd ce df e0 f0 01",
            &at(-0.975_830_1, 0.326_477_05, -0.016_235_352, -1.25),
        );
        check(
            BlockFormat::Q8_0,
            &ramp(),
            "0a 21 9a a1 a7 ad b4 1e c0 c7 cd d4 da e0 e7 ed f3 fa 00 06 0d 13 19 20 26 2c 33 39 40 46 4c 53 59 81",
            &at(-1.003_875_7, 0.295_257_57, 0.0, -1.249_923_7),
        );
        check(
            BlockFormat::Mxfp4,
            &ramp(),
            "7d 0e 0e 1d 1d 2d 22 3c 3c 4c 4b 4b 5a 5a 59 59 e0",
            &at(-1.0, 0.25, 0.0, -1.0),
        );
    }

    #[test]
    fn worked_example_of_nvfp4() {
        let mut x = ramp().to_vec();
        x.extend(ramp().map(|x| 0.1 * x));
        check(
            BlockFormat::Nvfp4,
            &x,
            "23 25 09 0b df df cf ce be a3 9e 9d 40 51 51 52 62 63 64 f4 df cf ce ce be a3 9e 9d 40 51 51 52 52 63 63 f4",
            &[
                (0, -1.031_25),
                (5, 0.257_812_5),
                (31, -1.218_75),
                (63, -0.128_906_25),
            ],
        );
    }

    #[test]
    fn worked_example_of_q4_k() {
        let x: Vec<f32> = (0..256)
            .map(|i| ((0.37 * f64::from(i)).sin() * (1.0 + f64::from(i) / 64.0)) as f32)
            .collect();
        check(
            BlockFormat::Q4K,
            &x,
            "11 21 c1 2c 93 d9 df e6 94 d9 de e5 dd 33 89 ff 38 5a 8c ad ce dd ed eb d9 b7 95 63 42 22 12 14
             16 38 5a 8d ae df ef fe fc d9 b6 94 62 30 10 01 21 11 13 15 37 5a 8c ae ce ee ed eb d8 b6 83 61
             30 10 01 02 15 38 5a 8d ae df ef fd fb d8 b5 83 b6 84 62 31 21 11 03 15 38 5a 8d be df ee fd eb
             d8 b6 83 61 30 10 01 03 15 38 5b 8d bf df ff fd ee fd eb d8 b5 83 51 30 10 01 03 15 38 5b 8d be
             df fe fd fb d8 b5 83 51 30 10 01 03 15 38 5b 8d",
            &[(0, 0.018_493_652), (1, 0.394_516), (100, -1.620_285), (255, 0.307_617_2)],
        );
    }

    #[test]
    fn hostile_values_never_panic() {
        let tricky = [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-40,
            -0.0,
            0.0,
            65504.0 * 127.0,
        ];
        for &format in BlockFormat::ALL {
            let Some(quantizer) = format.quantizer() else {
                continue;
            };
            let mut bytes = vec![0; format.bytes()];
            for step in 0..tricky.len() {
                let x: Vec<f32> = (0..format.elements())
                    .map(|i| tricky[(i * step + i / 16) % tricky.len()])
                    .collect();
                quantizer.quantize(&x, &mut bytes);
            }
            for value in tricky {
                quantizer.quantize(&vec![value; format.elements()], &mut bytes);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut n_formats = 0;
        for &format in BlockFormat::ALL {
            let Some(quantizer) = format.quantizer() else {
                continue;
            };
            let (mut bytes, mut back) = (vec![0; format.bytes()], vec![1.0; format.elements()]);
            quantizer.quantize(&vec![0.0; format.elements()], &mut bytes);
            format.dequantize(&bytes, &mut back);
            assert!(back.iter().all(|value| *value == 0.0), "{}", format.name());
            n_formats += 1;
        }
        assert_eq!(n_formats, 23);
    }
}
