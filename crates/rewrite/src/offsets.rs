//! What is added to scales that are quantized themselves: the mean over a whole weight.
//!
//! It stands in the description of the weight, whose length is part of a file's header, so weights with such scales are read once while
//! the job is planned. What is found does not depend on tiles or threads: sums are of blocks of scales, and added up in order.

use rayon::prelude::*;
use safequant_container::Checkpoint;
use safequant_schemes::{ConventionWriter, Role, SuperScale};

use crate::Error;
use crate::budget::Budget;
use crate::scratch::Scratch;
use crate::steps::{QuantizeWork, Step};
use crate::tile::StepContext;

/// Finds the offsets of all steps that need one, and lays these out anew.
///
/// # Errors
/// Those of reading the source, and of weights that the recipe refuses; [`Error::MemoryTooSmall`].
pub(crate) fn find(
    checkpoint: &Checkpoint,
    writer: &dyn ConventionWriter,
    budget: Budget,
    steps: &mut [Step],
) -> Result<(), Error> {
    let mut works = steps.iter().filter_map(Step::quantizing);
    if !works.any(has_offset) {
        return Ok(());
    }
    budget.cut(steps, checkpoint)?;
    let pool = budget.pool()?;
    for step in steps {
        let Some(work) = step.quantizing().filter(|work| has_offset(work)) else {
            continue;
        };
        let offset = mean(checkpoint, (step, work), budget, &pool)?;
        let layout = writer.with_scale_offset(work.layout.clone(), offset);
        let layout = layout.map_err(|source| Error::CannotHold {
            module: step.name.clone(),
            source: Box::new(source),
        })?;
        step.lay_out_as(layout);
    }
    Ok(())
}

/// Whether scales are quantized themselves, and chosen anew.
fn has_offset(work: &QuantizeWork) -> bool {
    let scale = work.target.scheme.super_scale;
    work.start.is_none() && matches!(scale, SuperScale::Nested { .. })
}

/// The mean of all scales, before they are quantized themselves.
fn mean(
    checkpoint: &Checkpoint,
    (step, work): (&Step, &QuantizeWork),
    budget: Budget,
    pool: &rayon::ThreadPool,
) -> Result<f32, Error> {
    let context = StepContext::new(0, step, checkpoint, None)?;
    let tiles: Vec<u64> = (0..step.n_tiles()).collect();
    let width = usize::try_from(budget.width(step)).unwrap_or(1);
    let mut sum = 0.0;
    for wave in tiles.chunks(width) {
        let add_up = |tile: &u64| context.scale_sums(&step.tile(*tile), &mut Scratch::default());
        let found: Vec<_> = pool.install(|| wave.par_iter().map(add_up).collect());
        for tile in found {
            for of_block in tile? {
                sum += of_block;
            }
        }
    }
    let scales = work.layout.part(Role::Scale);
    let n_scales = scales.map_or(1, |part| part.shape.iter().product::<u64>());
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "far fewer scales than 2^52, and F32 is what is stored"
    )]
    let mean = (sum / n_scales as f64) as f32;
    Ok(mean)
}
