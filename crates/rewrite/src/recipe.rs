//! Which module becomes what.

use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_quantize::{QUANTIZERS, Quantizer, Settings};
use safequant_schemes::{CONVENTIONS, ConventionWriter, Preset};

pub use safequant_schemes::OutputDtype;
use serde_json::{Value, json};

use crate::calibration::CalibrationFile;
use crate::{Error, Reference, Verb};

/// The method that stands for the best one for each module, by what is known of its inputs.
pub const AUTO: &str = "auto";

/// The method that scales input features, folds the scales into what comes before (the crate's `fold`), and searches scales as `mse` does.
pub const AWQ: &str = "awq";

/// What `quantize` is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeRecipe {
    /// The schemes, and which modules get them; at least one.
    pub groups: Vec<SchemeGroup>,
    /// The convention to write.
    pub convention: &'static str,
    /// What is known of the inputs of modules.
    pub calibration: Option<CalibrationFile>,
    /// Patterns of modules to leave dense; wins over the targets of all groups. `lm_head` and embeddings are left dense unless
    /// targeted by name.
    pub ignore: Vec<String>,
    /// Where divisions round.
    pub division: Division,
    /// What to do with NaN and infinities.
    pub nonfinite: NonFinite,
    /// What is to be said about how it was read; has no effect.
    pub notes: Vec<String>,
}

/// A scheme, and which modules get it how.
///
/// A module that several groups want gets the one whose pattern says most: a whole name wins over a pattern, that over "all linear
/// weights"; among equals the first group wins.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemeGroup {
    /// The scheme, its options resolved.
    pub preset: Preset,
    /// The quantizer's id (`rtn`), [`AUTO`] or [`AWQ`].
    pub method: &'static str,
    /// How hard it is to try, and how.
    pub settings: Settings,
    /// Patterns of modules to quantize; empty means every linear weight.
    pub targets: Vec<String>,
    /// Patterns of modules that this group does not want.
    pub ignore: Vec<String>,
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

/// What `refine` is to do: better codes for weights that are quantized, under the scales that they have.
#[derive(Clone, Debug, PartialEq)]
pub struct RefineRecipe {
    /// The dense checkpoint that the source was made of.
    pub reference: Reference,
    /// What is known of the inputs of modules.
    pub calibration: CalibrationFile,
    /// How hard it is to try, and how.
    pub settings: Settings,
    /// Patterns of modules to leave as they are.
    pub ignore: Vec<String>,
}

/// The quantizer of a recipe.
pub(crate) fn quantizer(method: &str) -> Result<&'static dyn Quantizer, Error> {
    let id = if method == AWQ { "mse" } else { method };
    let found = QUANTIZERS.iter().find(|q| q.id() == id);
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

/// The writer of a recipe's convention, if it holds the recipe's schemes.
pub(crate) fn writer(recipe: &QuantizeRecipe) -> Result<&'static dyn ConventionWriter, Error> {
    let writer = writer_of(recipe.convention)?;
    let is_held = |group: &&SchemeGroup| writer.presets().contains(&group.preset.name);
    match recipe.groups.iter().find(|group| !is_held(group)) {
        None => Ok(writer),
        Some(group) => Err(Error::SchemeNotHeld {
            convention: recipe.convention,
            scheme: group.preset.name,
            holds: writer.presets().join(", "),
        }),
    }
}

/// Everything of a verb that decides about the output, in a form that compares equal exactly when the verbs do.
pub(crate) fn canonical(verb: &Verb) -> Value {
    match verb {
        Verb::Quantize(r) => json!({
            "verb": "quantize",
            "groups": r.groups.iter().map(canonical_group).collect::<Value>(),
            "convention": r.convention,
            "calibration": r.calibration.as_ref().map(CalibrationFile::identity),
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
        Verb::Refine(r) => json!({
            "verb": "refine",
            "reference": r.reference.identity(),
            "calibration": r.calibration.identity(),
            "settings": format!("{:?}", r.settings),
            "ignore": r.ignore,
        }),
        Verb::Dequantize(r) => json!({
            "verb": "dequantize",
            "dtype": format!("{:?}", r.dtype),
        }),
    }
}

fn canonical_group(group: &SchemeGroup) -> Value {
    json!({
        "scheme": group.preset.name,
        "weights": format!("{:?}", group.preset.weights),
        "granularity": format!("{:?}", group.preset.granularity),
        "activations": format!("{:?}", group.preset.activations),
        "method": group.method,
        "settings": format!("{:?}", group.settings),
        "targets": group.targets,
        "ignore": group.ignore,
    })
}
