//! Method `awq`: input features are scaled before their weights are quantized, and the scales are folded into whatever makes the features, so
//! that the model stays the same but for what quantizing loses.
//!
//! Everything here happens while a job is planned. The scales follow from the source, the recipe and the calibration file alone; a digest of
//! them is part of what the journal binds.
//!
//! The fold is exact. A norm is divided and rounded to its own dtype *first*; the weights that read it are then multiplied by the ratio of the
//! gains before and after, in F32, right before they are quantized, so that this rounding costs nothing. Where anything else changes that
//! is stored as a number and not quantized anew (biases, routers), or rows of a weight that is quantized for itself, scales are powers of
//! two: dividing by them moves exponents, and rows keep the codes that they would have had.

mod dense;
mod layers;
pub(crate) mod pairs;
mod search;

use std::sync::Arc;

use safequant_container::{Checkpoint, FileFormat};
use safequant_quantize::Needs;
use safequant_schemes::{Granularity, SuperScale, config};
use serde_json::Value;

use self::layers::{Divided, Group, Left, wanted};
use self::pairs::Architecture;
use self::search::{Chosen, Search};
use crate::budget::Budget;
use crate::steps::{QuantizeWork, Step, Steps, Work, named};
use crate::{AWQ, Action, Error, JobOptions, QuantizeRecipe, recipe};

/// Chooses scales for the modules that want some, and folds them into the steps of the job.
///
/// # Errors
/// [`Error::Fold`] for what cannot be folded, by name; those of reading the source and the calibration file.
pub(crate) fn fold(
    checkpoint: &Checkpoint,
    recipe: &QuantizeRecipe,
    options: &JobOptions,
    steps: &mut Steps,
) -> Result<(), Error> {
    if recipe.groups.iter().all(|group| group.method != AWQ) {
        return Ok(());
    }
    if recipe::writer(recipe)?.file_format() == FileFormat::Gguf {
        let reason = "names and norms change on the way to GGUF; use mse, gptq or refine";
        return Err(refused(recipe.convention, reason.to_owned()));
    }
    let file = recipe.calibration.as_ref();
    let file = file.ok_or(Error::NoCalibration { method: AWQ })?;
    let architecture = architecture(checkpoint)?;
    let asking = steps.list.iter();
    for (step, work) in asking.filter_map(|step| Some((step, wanted(step)?))) {
        check_scheme(step, work)?;
    }
    let (groups, left) = layers::groups(&steps.list, architecture)?;
    if groups.is_empty() {
        return Err(nothing(checkpoint, &left));
    }
    let budget = Budget::new(options.memory_bytes, options.threads);
    let pool = budget.pool()?;
    let mut tally = Tally::default();
    for group in &groups {
        let mut search = Search {
            checkpoint,
            file: file.calibration(),
            steps: &steps.list,
            budget,
            pool: &pool,
            inputs: tally.inputs.take(),
        };
        let chosen = search.choose(group)?;
        tally.inputs = search.inputs;
        tally.add(group, chosen.as_ref());
        if let Some(chosen) = chosen {
            apply(&mut steps.list, group, chosen)?;
        }
    }
    steps.notes.push(tally.note());
    steps.notes.extend(left_notes(&left));
    steps.folded = Some(tally.hasher.finalize().to_hex().to_string());
    Ok(())
}

pub(crate) fn refused(name: &str, reason: String) -> Error {
    Error::Fold {
        name: name.to_owned(),
        reason,
    }
}

/// The row of the table that the source's configuration names.
fn architecture(checkpoint: &Checkpoint) -> Result<&'static Architecture, Error> {
    const CONFIG: &str = "config.json";
    let known = || {
        let all = pairs::ARCHITECTURES.iter().flat_map(|a| a.classes);
        all.copied().collect::<Vec<_>>().join(", ")
    };
    let Some(bytes) = checkpoint.document(CONFIG) else {
        let reason = format!(
            "there is none, and it says what feeds what; known are {}",
            known()
        );
        return Err(refused(CONFIG, reason));
    };
    let parsed = config::parse(CONFIG, bytes)?;
    let class = parsed.pointer("/architectures/0").and_then(Value::as_str);
    class.and_then(pairs::of_class).ok_or_else(|| {
        let found = class.unwrap_or("none");
        let reason = format!(
            "the architecture {found} is not in the table of what feeds what; known are {}",
            known()
        );
        refused(CONFIG, reason)
    })
}

/// Scales must be those of columns of a row, or the choice for one module would change another's codes.
fn check_scheme(step: &Step, work: &QuantizeWork) -> Result<(), Error> {
    let is_of_rows = match work.target.scheme.granularity {
        Granularity::Channel | Granularity::Group { .. } => true,
        Granularity::Tensor
        | Granularity::IndexedGroup { .. }
        | Granularity::Block { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => false,
    };
    let is_nested = matches!(work.target.scheme.super_scale, SuperScale::Nested { .. });
    let method = work.matrix(0).method.0;
    let is_alone = !is_nested
        && !method.needs_statistics(&work.target)
        && method.needs() != Needs::SecondMoment;
    if is_of_rows && is_alone {
        return Ok(());
    }
    let reason = format!(
        "{} has scales of more than a row, which would change with those of other features; use mse, gptq or refine",
        work.scheme
    );
    Err(refused(&step.name, reason))
}

fn nothing(checkpoint: &Checkpoint, left: &Left) -> Error {
    let mut reason = "there is nothing to fold".to_owned();
    for note in left_notes(left) {
        reason.push_str("; ");
        reason.push_str(&note);
    }
    refused(checkpoint.name(), reason)
}

/// Puts the scales of a group into its steps.
fn apply(steps: &mut [Step], group: &Group, chosen: Chosen) -> Result<(), Error> {
    for &reader in &group.readers {
        if let Some(Work::Quantize(work)) = steps.get_mut(reader).map(|step| &mut step.work) {
            work.scaling.columns = Some(Arc::clone(&chosen.scales));
        }
    }
    match group.source {
        Divided::Norm { step, .. } => content(steps, step, chosen.source)?,
        Divided::Linear { step, bias } => {
            if let Some(bias) = bias {
                content(steps, bias, chosen.source)?;
            }
            if let Some(Work::Quantize(work)) = steps.get_mut(step).map(|step| &mut step.work) {
                let n_rows = usize::try_from(work.layout.out_features()).unwrap_or(usize::MAX);
                let before = n_rows.saturating_sub(chosen.scales.len());
                let ones = std::iter::repeat_n(1.0, before);
                work.scaling.rows = Some(ones.chain(chosen.scales.iter().copied()).collect());
            }
        }
    }
    for (&router, bytes) in group.routers.iter().zip(chosen.routers) {
        content(steps, router, Some(bytes))?;
    }
    Ok(())
}

/// A step writes these bytes instead of its source's.
fn content(steps: &mut [Step], at: usize, bytes: Option<Vec<u8>>) -> Result<(), Error> {
    let Some((step, bytes)) = steps.get_mut(at).zip(bytes) else {
        return Ok(());
    };
    if step.output_bytes() != bytes.len() as u64 {
        return Err(refused(
            &step.name,
            "its shape is not that of its bytes".to_owned(),
        ));
    }
    step.action = Action::Fold;
    step.source_bytes = 0;
    step.work = Work::Content(bytes);
    Ok(())
}

/// What became of all groups.
#[derive(Default)]
struct Tally {
    inputs: Option<search::Known>,
    hasher: blake3::Hasher,
    n_groups: u64,
    n_scaled: u64,
    /// The mean of the logarithms of what is left of the loss.
    logs: f64,
}

impl Tally {
    fn add(&mut self, group: &Group, chosen: Option<&Chosen>) {
        self.n_groups = self.n_groups.saturating_add(1);
        self.hasher.update(group.name.as_bytes());
        self.hasher.update(&[0]);
        let Some(chosen) = chosen else {
            return;
        };
        self.n_scaled = self.n_scaled.saturating_add(1);
        self.hasher.update(&chosen.step.to_le_bytes());
        for scale in chosen.scales.iter() {
            self.hasher.update(&scale.to_le_bytes());
        }
        let (with, without) = chosen.noise;
        self.logs += (with / without).max(f64::MIN_POSITIVE).ln();
    }

    fn note(&self) -> String {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a mean of a few thousand numbers"
        )]
        let mean = (self.logs / self.n_groups.max(1) as f64).exp();
        format!(
            "--method awq: inputs of {} of {} groups of modules are scaled; on the calibration inputs groups lose {:.1} % of what they lose by mse (geometric mean)",
            self.n_scaled,
            self.n_groups,
            100.0 * mean
        )
    }
}

/// One line for each reason why something stays as it is.
fn left_notes(left: &Left) -> Vec<String> {
    const MAX_NAMED: usize = 8;
    let named = |names: &[String]| named(names, names.len(), MAX_NAMED);
    let mut notes = Vec::new();
    if !left.grouped.is_empty() {
        notes.push(format!(
            "--method awq: what reads {} is not scaled: several heads share a value (grouped-query attention)",
            named(&left.grouped)
        ));
    }
    let mut dense = left.dense.clone();
    dense.sort();
    dense.dedup();
    if !dense.is_empty() {
        notes.push(format!(
            "--method awq: {} are not quantized by it: no scale is folded into what they read or make, nor into what reads the same",
            named(&dense)
        ));
    }
    notes
}

#[cfg(test)]
mod tests;
