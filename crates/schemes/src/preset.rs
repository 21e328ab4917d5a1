//! The schemes that users name: `W4A16`, `FP8_BLOCK` ... with their options resolved.

use safequant_kernels::blocks::{BlockOffset, CodeValue};
use safequant_kernels::{BlockFormat, Codebook, Minifloat};

use crate::Error;

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
        /// 2 to 8.
        bits: u32,
    },
    /// Integers with a stored zero point, or with a stored offset where the convention has that instead (MLX, HQQ, quanto).
    AsymmetricInteger {
        /// 2 to 8.
        bits: u32,
    },
    /// A small float with scales that are dense floats.
    Minifloat(Minifloat),
    /// E2M1 with E4M3 scales per 16 input features, and a scale of scales per matrix.
    Nvfp4,
    /// A small float with power-of-two scales per 32 input features.
    Mx(Minifloat),
    /// An index into 16 values.
    Codebook(Codebook),
    /// An index into 16 values, with scales that are 8-bit codes themselves, in blocks of 256 and about an offset for the whole
    /// matrix: bitsandbytes' double quantization.
    NestedCodebook(Codebook),
    /// A block type of ggml.
    Block(BlockFormat),
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

/// How the reference of a convention chooses scale, zero point and codes: whose bytes a writer's quantized weights equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// compressed-tensors' `calculate_qparams` (formats: compressed-tensors §5, nvfp4-mxfp4 §4 and §6).
    CompressedTensors,
    /// `GPTQModel`'s `find_params` (formats: gptq §7).
    Gptq,
    /// transformers' `Fp8Quantize` (formats: fp8 §4).
    FineGrainedFp8,
    /// `AutoAWQ`'s `pseudo_quantize_tensor` (formats: awq §5).
    Awq,
    /// NVIDIA `ModelOpt` (formats: nvfp4-mxfp4 §4 and §6).
    ModelOpt,
    /// bitsandbytes on a CPU (formats: bitsandbytes §6 and §7).
    Bitsandbytes,
    /// MLX on a CPU (formats: mlx §5).
    Mlx,
    /// torchao (formats: torchao §5).
    TorchAo,
    /// HQQ without its optimizer (formats: hqq-quanto §1.5).
    Hqq,
    /// optimum-quanto (formats: hqq-quanto §2.5).
    Quanto,
    /// comfy-kitchen (formats: comfyui §3).
    ComfyUi,
    /// ggml's reference quantizers (formats: gguf §5).
    Ggml,
    /// OCP's own rule for MX scales, as transformers' gpt-oss checkpoints have it: `floor(log2 amax) - emax`.
    OcpMx,
}

impl ScaleRule {
    /// Whether weights that runtimes load as one (q, k, v; gate and up) get one scale per matrix together, as the tool gives
    /// them.
    pub const fn shares_fused_scales(self) -> bool {
        match self {
            Self::CompressedTensors
            | Self::Gptq
            | Self::FineGrainedFp8
            | Self::Awq
            | Self::ModelOpt => true,
            Self::Bitsandbytes
            | Self::Mlx
            | Self::TorchAo
            | Self::Hqq
            | Self::Quanto
            | Self::ComfyUi
            | Self::Ggml
            | Self::OcpMx => false,
        }
    }
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
    /// Quantized per group of this many at run time to E2M1.
    DynamicFp4PerGroup {
        /// Features per group.
        size: u64,
    },
}

/// Every preset, in the order of `--help`. Group sizes are the field's default of 128.
pub static PRESETS: &[Preset] = &[
    integer(
        "W4A16",
        "4-bit integers, symmetric, groups of 128",
        Sign::Symmetric,
        4,
    ),
    integer(
        "W4A16_ASYM",
        "4-bit integers with zero points, groups of 128",
        Sign::Asymmetric,
        4,
    ),
    integer(
        "W8A16",
        "8-bit integers, symmetric, groups of 128",
        Sign::Symmetric,
        8,
    ),
    integer(
        "W3A16",
        "3-bit integers, symmetric, groups of 128",
        Sign::Symmetric,
        3,
    ),
    integer(
        "W2A16",
        "2-bit integers, symmetric, groups of 128",
        Sign::Symmetric,
        2,
    ),
    Preset {
        name: "W8A8",
        summary: "8-bit integers per channel; activations 8-bit integers per token at run time",
        weights: WeightCode::SymmetricInteger { bits: 8 },
        granularity: PresetGranularity::Channel,
        activations: Activations::DynamicInt8PerToken,
        default_convention: "compressed-tensors",
    },
    Preset {
        name: "FP8",
        summary: "FP8 E4M3, one scale per tensor; activations FP8 per token at run time \
                  (llm-compressor's FP8 has static activation scales, which need calibration data)",
        weights: WeightCode::Minifloat(Minifloat::E4M3),
        granularity: PresetGranularity::Tensor,
        activations: Activations::DynamicFp8PerToken,
        default_convention: "compressed-tensors",
    },
    Preset {
        name: "FP8_DYNAMIC",
        summary: "FP8 E4M3, one scale per channel; activations FP8 per token at run time",
        weights: WeightCode::Minifloat(Minifloat::E4M3),
        granularity: PresetGranularity::Channel,
        activations: Activations::DynamicFp8PerToken,
        default_convention: "compressed-tensors",
    },
    Preset {
        name: "FP8_BLOCK",
        summary: "FP8 E4M3, one scale per block of 128 x 128; activations FP8 per group of 128 at run time",
        weights: WeightCode::Minifloat(Minifloat::E4M3),
        granularity: PresetGranularity::Block {
            rows: 128,
            columns: 128,
        },
        activations: Activations::DynamicFp8PerGroup { size: 128 },
        default_convention: "compressed-tensors",
    },
    grouped(
        "NVFP4A16",
        "FP4 E2M1, E4M3 scales per 16, a scale per tensor",
        WeightCode::Nvfp4,
        16,
        Activations::Dense,
    ),
    grouped(
        "NVFP4",
        "FP4 E2M1, E4M3 scales per 16, a scale per tensor; activations the same at run time",
        WeightCode::Nvfp4,
        16,
        Activations::DynamicFp4PerGroup { size: 16 },
    ),
    grouped(
        "MXFP4A16",
        "FP4 E2M1, power-of-two scales per 32",
        WeightCode::Mx(Minifloat::E2M1),
        32,
        Activations::Dense,
    ),
    Preset {
        // The only convention here whose readers can be told of such activations.
        default_convention: "torchao",
        ..grouped(
            "MXFP4",
            "FP4 E2M1, power-of-two scales per 32; activations the same at run time",
            WeightCode::Mx(Minifloat::E2M1),
            32,
            Activations::DynamicFp4PerGroup { size: 32 },
        )
    },
    grouped(
        "MXFP8A16",
        "FP8 E4M3, power-of-two scales per 32",
        WeightCode::Mx(Minifloat::E4M3),
        32,
        Activations::Dense,
    ),
    grouped(
        "MXFP8",
        "FP8 E4M3, power-of-two scales per 32; activations the same at run time",
        WeightCode::Mx(Minifloat::E4M3),
        32,
        Activations::DynamicFp8PerGroup { size: 32 },
    ),
    Preset {
        default_convention: "bitsandbytes",
        ..grouped(
            "NF4",
            "4-bit codes of the normal distribution, blocks of 64",
            WeightCode::Codebook(Codebook::Nf4),
            64,
            Activations::Dense,
        )
    },
    Preset {
        default_convention: "bitsandbytes",
        ..grouped(
            "FP4",
            "4-bit floats of bitsandbytes, blocks of 64",
            WeightCode::Codebook(Codebook::BnbFp4),
            64,
            Activations::Dense,
        )
    },
    Preset {
        default_convention: "bitsandbytes",
        ..grouped(
            "NF4_DQ",
            "NF4 with 8-bit scales (double quantization), blocks of 64",
            WeightCode::NestedCodebook(Codebook::Nf4),
            64,
            Activations::Dense,
        )
    },
    Preset {
        default_convention: "bitsandbytes",
        ..grouped(
            "FP4_DQ",
            "FP4 of bitsandbytes with 8-bit scales (double quantization), blocks of 64",
            WeightCode::NestedCodebook(Codebook::BnbFp4),
            64,
            Activations::Dense,
        )
    },
    Preset {
        name: "INT8",
        summary: "8-bit integers, one scale per row; activations 8-bit integers per token at run time (LLM.int8)",
        weights: WeightCode::SymmetricInteger { bits: 8 },
        granularity: PresetGranularity::Channel,
        activations: Activations::DynamicInt8PerToken,
        default_convention: "bitsandbytes",
    },
    affine(
        "W2A16_ASYM",
        "2-bit integers with zero points or offsets, groups of 64",
        2,
    ),
    affine(
        "W3A16_ASYM",
        "3-bit integers with zero points or offsets, groups of 64",
        3,
    ),
    affine(
        "W5A16_ASYM",
        "5-bit integers with zero points or offsets, groups of 64",
        5,
    ),
    affine(
        "W6A16_ASYM",
        "6-bit integers with zero points or offsets, groups of 64",
        6,
    ),
    affine(
        "W8A16_ASYM",
        "8-bit integers with zero points or offsets, groups of 64",
        8,
    ),
    block("Q2_K", "ggml's 2-bit super-blocks of 256", BlockFormat::Q2K),
    block("Q3_K", "ggml's 3-bit super-blocks of 256", BlockFormat::Q3K),
    block(
        "Q4_0",
        "ggml's 4-bit blocks of 32, symmetric",
        BlockFormat::Q4_0,
    ),
    block(
        "Q4_1",
        "ggml's 4-bit blocks of 32 with a minimum",
        BlockFormat::Q4_1,
    ),
    block("Q4_K", "ggml's 4-bit super-blocks of 256", BlockFormat::Q4K),
    block(
        "Q5_0",
        "ggml's 5-bit blocks of 32, symmetric",
        BlockFormat::Q5_0,
    ),
    block(
        "Q5_1",
        "ggml's 5-bit blocks of 32 with a minimum",
        BlockFormat::Q5_1,
    ),
    block("Q5_K", "ggml's 5-bit super-blocks of 256", BlockFormat::Q5K),
    block("Q6_K", "ggml's 6-bit super-blocks of 256", BlockFormat::Q6K),
    block(
        "Q8_0",
        "ggml's 8-bit blocks of 32, symmetric",
        BlockFormat::Q8_0,
    ),
    block(
        "IQ4_NL",
        "ggml's 4-bit blocks of 32 with a code book",
        BlockFormat::Iq4Nl,
    ),
    block(
        "IQ4_XS",
        "ggml's 4-bit super-blocks of 256 with a code book",
        BlockFormat::Iq4Xs,
    ),
    block(
        "IQ3_S",
        "ggml's super-blocks of 3.44 bits, points of a lattice",
        BlockFormat::Iq3S,
    ),
    block(
        "IQ3_XXS",
        "ggml's super-blocks of 3.06 bits, points of a lattice",
        BlockFormat::Iq3Xxs,
    ),
    block(
        "IQ2_S",
        "ggml's super-blocks of 2.56 bits, points of a lattice",
        BlockFormat::Iq2S,
    ),
    block(
        "IQ2_XS",
        "ggml's super-blocks of 2.31 bits, points of a lattice",
        BlockFormat::Iq2Xs,
    ),
    block(
        "IQ2_XXS",
        "ggml's super-blocks of 2.06 bits, points of a lattice",
        BlockFormat::Iq2Xxs,
    ),
];

/// Which integer preset.
#[derive(Clone, Copy)]
enum Sign {
    Symmetric,
    Asymmetric,
}

/// A weight-only integer preset: what `_int_wnam` of compressed-tensors 0.19 (`quant_scheme.py`) builds.
const fn integer(name: &'static str, summary: &'static str, sign: Sign, bits: u32) -> Preset {
    let weights = match sign {
        Sign::Symmetric => WeightCode::SymmetricInteger { bits },
        Sign::Asymmetric => WeightCode::AsymmetricInteger { bits },
    };
    Preset {
        name,
        summary,
        weights,
        granularity: PresetGranularity::Group { size: 128 },
        activations: Activations::Dense,
        default_convention: "compressed-tensors",
    }
}

/// A preset with groups, spelled as compressed-tensors does (`quant_scheme.py`) where it has it.
const fn grouped(
    name: &'static str,
    summary: &'static str,
    weights: WeightCode,
    size: u64,
    activations: Activations,
) -> Preset {
    Preset {
        name,
        summary,
        weights,
        granularity: PresetGranularity::Group { size },
        activations,
        default_convention: "compressed-tensors",
    }
}

/// Integers with zero points or offsets in groups of 64, MLX's and HQQ's default.
const fn affine(name: &'static str, summary: &'static str, bits: u32) -> Preset {
    Preset {
        default_convention: "mlx",
        ..grouped(
            name,
            summary,
            WeightCode::AsymmetricInteger { bits },
            64,
            Activations::Dense,
        )
    }
}

/// A block type of ggml.
const fn block(name: &'static str, summary: &'static str, format: BlockFormat) -> Preset {
    Preset {
        default_convention: "gguf",
        ..grouped(
            name,
            summary,
            WeightCode::Block(format),
            format.elements() as u64,
            Activations::Dense,
        )
    }
}

impl WeightCode {
    /// Whether codes are integers, in whatever spelling.
    pub const fn is_integer(self) -> bool {
        match self {
            Self::SymmetricInteger { .. } | Self::AsymmetricInteger { .. } => true,
            Self::Block(format) => match format.layout() {
                Some(layout) => matches!(layout.value, CodeValue::Integer { .. }),
                None => false,
            },
            Self::Minifloat(_)
            | Self::Nvfp4
            | Self::Mx(_)
            | Self::Codebook(_)
            | Self::NestedCodebook(_) => false,
        }
    }

    /// Whether a group's range need not be symmetric about zero.
    pub const fn is_asymmetric(self) -> bool {
        match self {
            Self::AsymmetricInteger { .. } => true,
            Self::Block(format) => match format.layout() {
                Some(layout) => !matches!(layout.offset, BlockOffset::None),
                None => false,
            },
            Self::SymmetricInteger { .. }
            | Self::Minifloat(_)
            | Self::Nvfp4
            | Self::Mx(_)
            | Self::Codebook(_)
            | Self::NestedCodebook(_) => false,
        }
    }

    /// Whether the format itself says how many weights share a scale.
    pub const fn has_fixed_groups(self) -> bool {
        match self {
            Self::Nvfp4 | Self::Mx(_) | Self::Block(_) => true,
            Self::SymmetricInteger { .. }
            | Self::AsymmetricInteger { .. }
            | Self::Minifloat(_)
            | Self::Codebook(_)
            | Self::NestedCodebook(_) => false,
        }
    }
}

impl Preset {
    /// The preset of this name, upper or lower case.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`], with the names there are.
    pub fn by_name(name: &str) -> Result<Preset, Error> {
        PRESETS
            .iter()
            .find(|p| p.name.eq_ignore_ascii_case(name))
            .cloned()
            .ok_or_else(|| {
                let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
                Error::UnknownPreset {
                    name: name.to_owned(),
                    known: known.join(", "),
                }
            })
    }

    /// The preset with another group size: −1 for one scale per row, else 1 to 2^31 − 1. `None` leaves it as it is.
    ///
    /// # Errors
    /// [`Error::PresetOption`] if the preset has no groups or the size is out of range.
    pub fn with_group_size(mut self, size: Option<i64>) -> Result<Preset, Error> {
        let Some(size) = size else { return Ok(self) };
        let refuse = |problem: String| {
            Err(Error::PresetOption {
                preset: self.name,
                problem,
            })
        };
        if !matches!(self.granularity, PresetGranularity::Group { .. }) {
            return refuse("has no group size".to_owned());
        }
        if self.weights.has_fixed_groups() {
            return refuse("has groups of a size that the format fixes".to_owned());
        }
        self.granularity = match size {
            -1 => PresetGranularity::Channel,
            1..=crate::config::MAX_GROUP => PresetGranularity::Group {
                size: size.unsigned_abs(),
            },
            _ => return refuse(format!("a group size is -1 or 1 to 2147483647, not {size}")),
        };
        Ok(self)
    }

    /// Whether it is as its name has it, no option changed: a convention that leaves no choice then takes its own sizes.
    pub fn is_as_named(&self) -> bool {
        PRESETS.contains(self)
    }

    /// Bits per code.
    pub const fn bits(&self) -> u32 {
        match self.weights {
            WeightCode::SymmetricInteger { bits } | WeightCode::AsymmetricInteger { bits } => bits,
            WeightCode::Minifloat(m) | WeightCode::Mx(m) => m.bits(),
            WeightCode::Nvfp4 | WeightCode::Codebook(_) | WeightCode::NestedCodebook(_) => 4,
            WeightCode::Block(format) => match format.layout() {
                Some(layout) => layout.code_bits,
                None => 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name_in_any_case() {
        assert_eq!(PRESETS.len(), 42);
        for preset in PRESETS {
            assert_eq!(
                Preset::by_name(&preset.name.to_lowercase()).unwrap(),
                *preset
            );
        }
        assert!(
            Preset::by_name("W5A99")
                .unwrap_err()
                .to_string()
                .contains("W4A16_ASYM")
        );
    }

    #[test]
    fn group_sizes_are_checked() {
        let w4 = Preset::by_name("W4A16").unwrap();
        assert_eq!(w4.clone().with_group_size(None).unwrap(), w4);
        let g = w4.clone().with_group_size(Some(32)).unwrap();
        assert_eq!(g.granularity, PresetGranularity::Group { size: 32 });
        let channel = w4.clone().with_group_size(Some(-1)).unwrap();
        assert_eq!(channel.granularity, PresetGranularity::Channel);
        for bad in [0, -2, i64::MIN, i64::MAX, 1 << 31] {
            assert!(w4.clone().with_group_size(Some(bad)).is_err(), "{bad}");
        }
        for fixed in ["FP8_BLOCK", "NVFP4", "MXFP8", "Q4_K"] {
            let preset = Preset::by_name(fixed).unwrap();
            assert!(preset.with_group_size(Some(64)).is_err(), "{fixed}");
        }
        let nf4 = Preset::by_name("NF4").unwrap();
        assert!(nf4.with_group_size(Some(128)).is_ok());
    }

    #[test]
    fn bits_are_those_of_the_codes() {
        let bits = |name: &str| Preset::by_name(name).unwrap().bits();
        let names = [
            "NVFP4",
            "MXFP8",
            "NF4",
            "INT8",
            "Q6_K",
            "Q4_1",
            "IQ4_XS",
            "W5A16_ASYM",
        ];
        assert_eq!(names.map(bits), [4, 8, 4, 8, 6, 4, 4, 5]);
        let asymmetric = PRESETS.iter().filter(|p| p.weights.is_asymmetric());
        assert_eq!(asymmetric.count(), 11);
        let integers = PRESETS.iter().filter(|p| p.weights.is_integer());
        assert_eq!(integers.count(), 6 + 1 + 5 + 10);
    }
}
