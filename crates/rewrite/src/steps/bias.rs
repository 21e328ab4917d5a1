//! Which biases make up for what the mean input loses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use safequant_container::{Checkpoint, FileFormat};
use safequant_quantize::Biases;
use safequant_schemes::ConventionWriter;
use safequant_schemes::scheme::float_of;

use super::{BiasWork, InputsOf, Output, QuantizeWork, Step, Work};
use crate::{CalibrationFile, Error, QuantizeRecipe};

/// Modules that a note names.
const MAX_NAMED: usize = 3;

/// Lets the steps that quantize write the biases of their modules, where that was asked for; gives a line about it.
///
/// A module without a bias, and one of which nothing is known, is quantized as if it was not asked for.
///
/// # Errors
/// [`Error::Bias`]: a module with a bias but without a mean input, no module with a bias, a convention of other names.
pub(super) fn correct(
    checkpoint: &Checkpoint,
    writer: &dyn ConventionWriter,
    recipe: &QuantizeRecipe,
    steps: &mut Vec<Step>,
) -> Result<Option<String>, Error> {
    let is_asked = |group: &crate::SchemeGroup| group.settings.biases == Biases::Corrected;
    if !recipe.groups.iter().any(is_asked) {
        return Ok(None);
    }
    let refused = |name: &str, reason: &str| Error::Bias {
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    if writer.file_format() == FileFormat::Gguf {
        return Err(refused(
            writer.id(),
            "biases are corrected in safetensors only",
        ));
    }
    let copied: HashMap<String, usize> = (steps.iter().enumerate())
        .filter(|(_, step)| matches!(step.work, Work::Copy))
        .map(|(at, step)| (step.name.clone(), at))
        .collect();
    let mut means = Means {
        file: recipe.calibration.as_ref(),
        last: None,
    };
    let (mut taken, mut corrected, mut n_without) = (BTreeSet::new(), Vec::new(), 0);
    for step in steps.iter_mut() {
        let name = format!("{}.bias", step.name);
        let Work::Quantize(work) = &mut step.work else {
            continue;
        };
        if work
            .matrices
            .iter()
            .all(|m| m.settings.biases == Biases::Kept)
        {
            continue;
        }
        let bias = checkpoint.tensor(&name).filter(|bias| {
            let is_vector = bias.info.shape[..] == [work.layout.out_features()];
            is_vector && work.matrices.len() == 1 && bias.info.block.is_none()
        });
        let float = bias.and_then(|bias| float_of(bias.info.dtype));
        let (Some(bias), Some(float), Some(&at), Some(of)) =
            (bias, float, copied.get(&name), inputs_of(work))
        else {
            n_without += 1;
            keep(work);
            continue;
        };
        let mean = means.of(&of, work.layout.in_features())?;
        let mean = mean
            .ok_or_else(|| refused(&step.name, "the calibration file has no mean input of it"))?;
        corrected.push(step.name.clone());
        work.bias = Some(BiasWork { name, float, mean });
        taken.insert(at);
        let info = bias.info;
        step.source_bytes += info.len_bytes();
        step.outputs
            .push(Output::new(&info.name, info.dtype, &info.shape, info.block));
    }
    if corrected.is_empty() {
        return Err(refused(
            checkpoint.name(),
            "no module that is quantized with statistics has a bias",
        ));
    }
    let mut at = 0;
    steps.retain(|_| {
        at += 1;
        !taken.contains(&(at - 1))
    });
    Ok(Some(note(&corrected, n_without)))
}

/// Where what is known of the inputs of the one matrix of a module stands.
fn inputs_of(work: &QuantizeWork) -> Option<InputsOf> {
    work.matrices.first()?.inputs.clone()
}

/// The bias stays, and codes are chosen for inputs as they are.
fn keep(work: &mut QuantizeWork) {
    for matrix in &mut work.matrices {
        matrix.settings.biases = Biases::Kept;
    }
}

fn note(corrected: &[String], n_without: usize) -> String {
    let named: Vec<&str> = corrected
        .iter()
        .take(MAX_NAMED)
        .map(String::as_str)
        .collect();
    let more = match corrected.len().saturating_sub(named.len()) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let without = match n_without {
        0 => String::new(),
        n => format!("; {n} modules have no bias, or no statistics, and are quantized as without"),
    };
    format!(
        "{} biases make up for the mean input: {}{more}{without}",
        corrected.len(),
        named.join(", ")
    )
}

/// Mean inputs, those of one owner held once.
struct Means<'a> {
    file: Option<&'a CalibrationFile>,
    last: Option<(String, Arc<[f32]>)>,
}

impl Means<'_> {
    fn of(&mut self, of: &InputsOf, in_features: u64) -> Result<Option<Arc<[f32]>>, Error> {
        if let Some((owner, mean)) = &self.last
            && *owner == of.owner
        {
            return Ok(Some(Arc::clone(mean)));
        }
        let Some(file) = self.file else {
            return Ok(None);
        };
        let found = file.calibration().mean(&of.module, in_features)?;
        let mean: Option<Arc<[f32]>> = found.map(Arc::from);
        self.last = mean.clone().map(|mean| (of.owner.clone(), mean));
        Ok(mean)
    }
}
