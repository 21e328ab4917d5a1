//! Which biases make up for what the mean input loses.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use safequant_container::{Checkpoint, FileFormat, TensorRef};
use safequant_quantize::Biases;
use safequant_schemes::ConventionWriter;
use safequant_schemes::scheme::float_of;

use super::{BiasWork, InputsOf, MAX_NAMED, MatrixWork, Output, QuantizeWork, Step, Work, named};
use crate::{CalibrationFile, Error, QuantizeRecipe};

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
    if writer.file_format() == FileFormat::Gguf {
        return Err(refused(
            writer.id(),
            "biases are corrected in safetensors only",
        ));
    }
    let copied = steps.iter().filter(|step| matches!(step.work, Work::Copy));
    let mut biases = Correction {
        checkpoint,
        copied: copied.map(|step| step.name.clone()).collect(),
        means: Means {
            file: recipe.calibration.as_ref(),
            last: None,
        },
        corrected: Vec::new(),
        taken: BTreeSet::new(),
        n_without: 0,
    };
    for step in steps.iter_mut() {
        biases.add(step)?;
    }
    if biases.corrected.is_empty() {
        return Err(refused(
            checkpoint.name(),
            "no module that is quantized with statistics has a bias",
        ));
    }
    steps.retain(|step| !biases.taken.contains(&step.name));
    Ok(Some(note(&biases.corrected, biases.n_without)))
}

fn refused(name: &str, reason: &str) -> Error {
    Error::Bias {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

/// What was found so far.
struct Correction<'a> {
    checkpoint: &'a Checkpoint,
    /// Tensors that would be copied.
    copied: HashSet<String>,
    means: Means<'a>,
    /// Modules whose bias is corrected, and these.
    corrected: Vec<String>,
    taken: BTreeSet<String>,
    n_without: usize,
}

impl Correction<'_> {
    /// Looks for the bias of what a step quantizes.
    fn add(&mut self, step: &mut Step) -> Result<(), Error> {
        let name = format!("{}.bias", step.name);
        let Work::Quantize(work) = &mut step.work else {
            return Ok(());
        };
        let is_kept = |m: &MatrixWork| m.settings.biases == Biases::Kept;
        if work.matrices.iter().all(is_kept) {
            return Ok(());
        }
        let is_fit = |bias: &TensorRef<'_>| {
            let is_vector = bias.info.shape[..] == [work.layout.out_features()];
            is_vector && work.matrices.len() == 1 && bias.info.block.is_none()
        };
        let bias = self.checkpoint.tensor(&name).filter(is_fit);
        let bias = bias.filter(|_| self.copied.contains(&name));
        let float = bias.and_then(|bias| float_of(bias.info.dtype));
        let (Some(bias), Some(float), Some(of)) = (bias, float, inputs_of(work)) else {
            self.n_without += 1;
            keep(work);
            return Ok(());
        };
        let mean = self.means.of(&of, work.layout.in_features())?;
        let mean = mean
            .ok_or_else(|| refused(&step.name, "the calibration file has no mean input of it"))?;
        self.corrected.push(step.name.clone());
        self.taken.insert(name.clone());
        work.bias = Some(BiasWork { name, float, mean });
        let info = bias.info;
        step.source_bytes += info.len_bytes();
        step.outputs
            .push(Output::new(&info.name, info.dtype, &info.shape, info.block));
        Ok(())
    }
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
    let without = match n_without {
        0 => String::new(),
        n => format!("; {n} modules have no bias, or no statistics, and are quantized as without"),
    };
    format!(
        "{} biases make up for the mean input: {}{without}",
        corrected.len(),
        named(corrected, corrected.len(), MAX_NAMED)
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
