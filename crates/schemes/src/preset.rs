//! The schemes that users name: `W4A16`, `FP8_BLOCK` ... with their options resolved.

use safequant_kernels::Minifloat;

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
        self.granularity = match size {
            -1 => PresetGranularity::Channel,
            1..=crate::config::MAX_GROUP => PresetGranularity::Group {
                size: size.unsigned_abs(),
            },
            _ => return refuse(format!("a group size is -1 or 1 to 2147483647, not {size}")),
        };
        Ok(self)
    }

    /// Bits per code.
    pub const fn bits(&self) -> u32 {
        match self.weights {
            WeightCode::SymmetricInteger { bits } | WeightCode::AsymmetricInteger { bits } => bits,
            WeightCode::Minifloat(m) => m.bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name_in_any_case() {
        assert_eq!(PRESETS.len(), 9);
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
        assert!(
            Preset::by_name("FP8_BLOCK")
                .unwrap()
                .with_group_size(Some(64))
                .is_err()
        );
    }
}
