//! The schemes that users name: `W4A16`, `FP8_BLOCK` ... with their options resolved.

use safequant_kernels::Minifloat;

/// A scheme to quantize to, as users name it, with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// The shared name (`W4A16_ASYM`).
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// What the codes are.
    pub weights: WeightCode,
    /// What shares one scale.
    pub granularity: PresetGranularity,
    /// What the runtime does with activations (config only; nothing is computed here).
    pub activations: Activations,
    /// The convention written unless the user asks for another.
    pub default_convention: &'static str,
}

/// What a preset's codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightCode {
    /// Integers with their zero in the middle.
    SymmetricInteger {
        /// 2, 3, 4 or 8.
        bits: u32,
    },
    /// Integers with a stored zero point.
    AsymmetricInteger {
        /// 2, 3, 4 or 8.
        bits: u32,
    },
    /// A small float.
    Minifloat(Minifloat),
}

/// What shares one scale, as a user option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PresetGranularity {
    /// The whole matrix.
    Tensor,
    /// One output feature.
    Channel,
    /// Consecutive input features.
    Group {
        /// How many.
        size: u64,
    },
    /// A rectangle.
    Block {
        /// Output features.
        rows: u64,
        /// Input features.
        columns: u64,
    },
}

/// What a runtime does with activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Stay as they are.
    Dense,
    /// Quantized per token at run time to 8-bit integers.
    DynamicInt8PerToken,
    /// Quantized per token at run time to FP8.
    DynamicFp8PerToken,
    /// Quantized per group of this many at run time to FP8.
    DynamicFp8PerGroup {
        /// Features per group.
        size: u64,
    },
}

/// Every preset, in the order of `--help`. Group sizes are the field's default of 128.
pub static PRESETS: &[Preset] = &[];
