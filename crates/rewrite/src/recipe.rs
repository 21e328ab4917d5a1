//! Which module becomes what.

use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_quantize::{QUANTIZERS, Quantizer, Settings};
use safequant_schemes::{CONVENTIONS, ConventionWriter, Preset};

pub use safequant_schemes::OutputDtype;
use serde_json::{Value, json};

use crate::calibration::CalibrationFile;
use crate::{Error, Verb};

/// The method that stands for the best one for each module, by what is known of its inputs.
pub const AUTO: &str = "auto";

/// What `quantize` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeRecipe {
    /// The scheme, its options resolved.
    pub preset: Preset,
    /// The convention to write.
    pub convention: &'static str,
    /// The quantizer's id (`rtn`), or [`AUTO`].
    pub method: &'static str,
    /// How hard it is to try, and how.
    pub settings: Settings,
    /// What is known of the inputs of modules.
    pub calibration: Option<CalibrationFile>,
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

/// What `convert` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertRecipe {
    /// The convention to write.
    pub convention: &'static str,
    /// What to do with weights whose codes cannot stay.
    pub loss: LossPolicy,
    /// Patterns of modules to leave dense (dequantized).
    pub ignore: Vec<String>,
}

/// What to do with weights whose codes cannot stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LossPolicy {
    /// Refuse the whole job, naming them.
    Refuse,
    /// Dequantize them and quantize them again.
    Allow,
}

/// The quantizer of a recipe.
pub(crate) fn quantizer(method: &str) -> Result<&'static dyn Quantizer, Error> {
    let found = QUANTIZERS.iter().find(|q| q.id() == method);
    found.copied().ok_or_else(|| Error::UnknownMethod {
        method: method.to_owned(),
    })
}

/// The writer of a convention.
pub(crate) fn writer_of(convention: &str) -> Result<&'static dyn ConventionWriter, Error> {
    let found = CONVENTIONS.iter().find(|c| c.id() == convention);
    found
        .and_then(|c| c.writer())
        .ok_or_else(|| Error::NotWritable {
            convention: convention.to_owned(),
        })
}

/// The writer of a recipe's convention, if it holds the recipe's scheme.
pub(crate) fn writer(recipe: &QuantizeRecipe) -> Result<&'static dyn ConventionWriter, Error> {
    let writer = writer_of(recipe.convention)?;
    if writer.presets().contains(&recipe.preset.name) {
        return Ok(writer);
    }
    Err(Error::SchemeNotHeld {
        convention: recipe.convention,
        scheme: recipe.preset.name,
        holds: writer.presets().join(", "),
    })
}

/// Everything of a verb that decides about the output, in a form that compares equal exactly when the verbs do.
pub(crate) fn canonical(verb: &Verb) -> Value {
    match verb {
        Verb::Quantize(r) => json!({
            "verb": "quantize",
            "scheme": r.preset.name,
            "weights": format!("{:?}", r.preset.weights),
            "granularity": format!("{:?}", r.preset.granularity),
            "activations": format!("{:?}", r.preset.activations),
            "convention": r.convention,
            "method": r.method,
            "settings": format!("{:?}", r.settings),
            "calibration": r.calibration.as_ref().map(CalibrationFile::identity),
            "targets": r.targets,
            "ignore": r.ignore,
            "division": format!("{:?}", r.division),
            "nonfinite": format!("{:?}", r.nonfinite),
        }),
        Verb::Convert(r) => json!({
            "verb": "convert",
            "convention": r.convention,
            "loss": format!("{:?}", r.loss),
            "ignore": r.ignore,
        }),
        Verb::Dequantize(r) => json!({
            "verb": "dequantize",
            "dtype": format!("{:?}", r.dtype),
        }),
    }
}
