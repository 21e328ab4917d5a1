//! ggml's block types: runs of 32 to 256 elements whose codes, scales and minima lie interleaved in one run of bytes.
//!
//! Most types are codes with scales. Those have a [`BlockLayout`], which is data: where each bit of a code lies, how the
//! scales are stored, and the formula of the value. [`BlockLayout::unpack`] gives the *neutral form* (codes in unsigned
//! form, integer scales, super-scales) and [`BlockLayout::pack`] is its inverse. IQ2 and IQ3 index a lattice: their codes are the
//! coordinates with their signs, of which not all go together. IQ1 has no neutral form; [`BlockFormat::dequantize`] serves all.
//!
//! ```text
//! Q4_0, 18 bytes           Q4_K, 144 bytes
//! +---+----------------+   +---+------+--------+--------------------------------------------+
//! | d | 16 x 2 nibbles |   | d | dmin | 6-bit  | 4 x (32 bytes: low nibbles elements 0..31, |
//! +---+----------------+   +---+------+ scales +       high nibbles elements 32..63)        |
//!      byte j: elements               +--------+--------------------------------------------+
//!      j (low), j + 16 (high)          and minima of 8 groups of 32 elements
//! ```
//!
//! Spec: `specs/packings/ggml_blocks.md`. Blocks lie one after the other along a row, without padding.

mod float4;
mod iq_nonlinear;
mod k_quants;
mod lattice;
mod lattice_grids;
mod layout;
mod legacy;
mod points;
pub mod quantize;
mod scales;
mod ternary;

#[cfg(target_arch = "x86_64")]
pub(crate) use float4::{VALUES as E2M1_DOUBLED, half_e8m0};
#[cfg(target_arch = "x86_64")]
pub(crate) use iq_nonlinear::VALUES as IQ4_NL;
#[cfg(target_arch = "x86_64")]
pub(crate) use layout::Block;
pub use layout::{BlockFields, BlockLayout, BlockOffset, BlockScale, CodeValue};
pub use points::Lattice;

use crate::portable::convert;
use crate::{Float, FloatsMut, Stores};

/// Declares [`BlockFormat`] and everything that is a list of block types.
macro_rules! block_formats {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $elements:literal / $bytes:literal, $values:expr;)*) => {
        /// A block type of ggml, by its name there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum BlockFormat { $($(#[$doc])* $variant,)* }

        impl BlockFormat {
            /// Every block type, in the order of ggml's numbers.
            pub const ALL: &'static [BlockFormat] = &[$(BlockFormat::$variant,)*];

            /// The name in ggml (`Q4_K`).
            pub const fn name(self) -> &'static str {
                match self { $(BlockFormat::$variant => $name,)* }
            }

            /// Elements in a block.
            pub const fn elements(self) -> usize {
                match self { $(BlockFormat::$variant => $elements,)* }
            }

            /// Bytes in a block.
            pub const fn bytes(self) -> usize {
                match self { $(BlockFormat::$variant => $bytes,)* }
            }

            /// The type of this name (case-sensitive).
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(BlockFormat::$variant),)* _ => None }
            }

            const fn values(self) -> Values {
                match self { $(BlockFormat::$variant => $values,)* }
            }
        }
    };
}

/// How the bytes of a block become values.
enum Values {
    /// Codes with scales.
    Coded(&'static BlockLayout),
    /// Points of a lattice: the whole block at once, and where codes and scales lie.
    Points(fn(&[u8], &mut [f32]), Option<&'static BlockLayout>),
}

use Values::{Coded, Points};

block_formats! {
    /// 4 bits, symmetric about code 8, one scale.
    Q4_0 = "Q4_0", 32 / 18, Coded(&legacy::Q4_0);
    /// 4 bits, scale and minimum.
    Q4_1 = "Q4_1", 32 / 20, Coded(&legacy::Q4_1);
    /// 5 bits, symmetric about code 16.
    Q5_0 = "Q5_0", 32 / 22, Coded(&legacy::Q5_0);
    /// 5 bits, scale and minimum.
    Q5_1 = "Q5_1", 32 / 24, Coded(&legacy::Q5_1);
    /// 8 bits, signed, one scale.
    Q8_0 = "Q8_0", 32 / 34, Coded(&legacy::Q8_0);
    /// 2 bits, 4-bit scales and minima per 16 elements.
    Q2K = "Q2_K", 256 / 84, Coded(&k_quants::Q2_K);
    /// 3 bits, signed 6-bit scales per 16 elements.
    Q3K = "Q3_K", 256 / 110, Coded(&k_quants::Q3_K);
    /// 4 bits, 6-bit scales and minima per 32 elements.
    Q4K = "Q4_K", 256 / 144, Coded(&k_quants::Q4_K);
    /// 5 bits, 6-bit scales and minima per 32 elements.
    Q5K = "Q5_K", 256 / 176, Coded(&k_quants::Q5_K);
    /// 6 bits, signed 8-bit scales per 16 elements.
    Q6K = "Q6_K", 256 / 210, Coded(&k_quants::Q6_K);
    /// Lattice of 256 points, signs of even parity.
    Iq2Xxs = "IQ2_XXS", 256 / 66, Points(lattice::iq2_xxs, Some(&points::IQ2_XXS));
    /// Lattice of 512 points, signs of even parity.
    Iq2Xs = "IQ2_XS", 256 / 74, Points(lattice::iq2_xs, Some(&points::IQ2_XS));
    /// Lattice of 256 four-dimensional points, signs of even parity.
    Iq3Xxs = "IQ3_XXS", 256 / 98, Points(lattice::iq3_xxs, Some(&points::IQ3_XXS));
    /// Ternary lattice of 2048 points, shifted by an eighth.
    Iq1S = "IQ1_S", 256 / 50, Points(lattice::iq1_s, None);
    /// 4-bit code book, one scale.
    Iq4Nl = "IQ4_NL", 32 / 18, Coded(&iq_nonlinear::IQ4_NL);
    /// Lattice of 512 four-dimensional points, free signs.
    Iq3S = "IQ3_S", 256 / 110, Points(lattice::iq3_s, Some(&points::IQ3_S));
    /// Lattice of 1024 points, free signs.
    Iq2S = "IQ2_S", 256 / 82, Points(lattice::iq2_s, Some(&points::IQ2_S));
    /// 4-bit code book, signed 6-bit scales per 32 elements.
    Iq4Xs = "IQ4_XS", 256 / 136, Coded(&iq_nonlinear::IQ4_XS);
    /// Ternary lattice as `IQ1_S`, scales per 16 elements, the F16 scale in the top nibbles of the four scale words.
    Iq1M = "IQ1_M", 256 / 56, Points(lattice::iq1_m, None);
    /// Three values, five to a byte.
    Tq1_0 = "TQ1_0", 256 / 54, Coded(&ternary::TQ1_0);
    /// Three values, 2 bits each.
    Tq2_0 = "TQ2_0", 256 / 66, Coded(&ternary::TQ2_0);
    /// E2M1 with an E8M0 scale.
    Mxfp4 = "MXFP4", 32 / 17, Coded(&float4::MXFP4);
    /// E2M1 with an unsigned E4M3 scale per 16 elements. A factor per tensor lies outside of the blocks.
    Nvfp4 = "NVFP4", 64 / 36, Coded(&float4::NVFP4);
    /// A sign bit, one scale.
    Q1_0 = "Q1_0", 128 / 18, Coded(&ternary::Q1_0);
    /// -1, 0, 1 or 2 times a scale.
    Q2_0 = "Q2_0", 64 / 18, Coded(&ternary::Q2_0);
}

impl BlockFormat {
    /// The layout of the neutral form; `None` for IQ1.
    pub const fn layout(self) -> Option<&'static BlockLayout> {
        match self.values() {
            Coded(layout) => Some(layout),
            Points(_, layout) => layout,
        }
    }

    /// The values of whole blocks in F32, each operation rounded once and in the order of ggml's `dequantize_row_*`.
    ///
    /// # Panics
    /// If `blocks` is not the bytes of `out.len() / elements()` blocks.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        self.check(blocks, out.len());
        let pairs = blocks
            .chunks_exact(self.bytes())
            .zip(out.chunks_exact_mut(self.elements()));
        match self.values() {
            Coded(layout) => pairs.for_each(|(block, out)| layout.dequantize_block(block, out)),
            Points(values, _) => pairs.for_each(|(block, out)| values(block, out)),
        }
    }

    /// [`BlockFormat::dequantize`], then one rounding to the output: the reference of [`crate::Backend::decode_blocks`].
    ///
    /// F32 has the values themselves. Where an operation meets two NaN, F32 and F16 results are *some* NaN; every NaN is
    /// FFFF in BF16.
    ///
    /// # Panics
    /// If `blocks` is not the bytes of `out.len() / elements()` blocks.
    pub fn decode(self, blocks: &[u8], out: FloatsMut<'_>, _stores: Stores) {
        self.check(blocks, out.len());
        match out {
            FloatsMut::F32(values) => self.dequantize(blocks, values),
            FloatsMut::Bytes(float, bytes) => {
                self.decode_with(blocks, float, bytes, |values, bytes| {
                    convert::round(float, values, bytes);
                });
            }
        }
    }

    /// The same, block after block, with another function that rounds.
    pub(crate) fn decode_with(
        self,
        blocks: &[u8],
        float: Float,
        out: &mut [u8],
        round: impl Fn(&[f32], &mut [u8]),
    ) {
        let mut values = [0.0; MAX_ELEMENTS];
        let values = &mut values[..self.elements()];
        let outs = out.chunks_exact_mut(self.elements() * float.size_bytes());
        for (block, out) in blocks.chunks_exact(self.bytes()).zip(outs) {
            self.dequantize(block, values);
            round(values, out);
            if float == Float::Bf16 {
                for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
                    if value.is_nan() {
                        *bytes = [0xff; 2];
                    }
                }
            }
        }
    }

    /// Panics unless `blocks` is the bytes of whole blocks of `n` elements in all.
    pub(crate) fn check(self, blocks: &[u8], n: usize) {
        let n_blocks = n / self.elements();
        assert_eq!(n, n_blocks * self.elements(), "whole blocks");
        assert_eq!(
            blocks.len(),
            n_blocks * self.bytes(),
            "bytes of {n_blocks} blocks"
        );
    }
}

/// Most elements of any block.
const MAX_ELEMENTS: usize = 256;

/// Most groups of any block.
const MAX_GROUPS: usize = 16;
