//! Which module becomes what.

use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_schemes::Preset;

/// What `quantize` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeRecipe {
    /// The scheme, its options resolved.
    pub preset: Preset,
    /// The convention to write.
    pub convention: &'static str,
    /// The quantizer's id (`rtn`).
    pub method: &'static str,
    /// Patterns of modules to quantize; empty means every linear weight.
    pub targets: Vec<String>,
    /// Patterns of modules to leave dense; wins over `targets`. `lm_head` and embeddings are left dense unless targeted
    /// by name.
    pub ignore: Vec<String>,
    /// Where divisions round.
    pub division: Division,
    /// What to do with NaN and infinities.
    pub nonfinite: NonFinite,
}

/// What `dequantize` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct DequantizeRecipe {
    /// The dtype of the dense weights.
    pub dtype: OutputDtype,
}

/// The dtype of dequantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputDtype {
    /// The dtype and bits of the convention's own reference.
    Auto,
    /// Computed in F32, rounded once to nearest even.
    Float(safequant_kernels::Float),
}
