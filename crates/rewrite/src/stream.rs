//! Runs a plan: row tiles through decode, quantize and encode, in bounded memory, on all cores, in deterministic order.
//!
//! One thread, the caller's, hands out tiles and takes them back *in order*: digests, sums and the journal see the same
//! sequence for every number of threads. Workers read, compute and write their own tile; no two tiles share a byte.

use safequant_container::Disk;
use safequant_quantize::Loss;

use crate::pipeline::Pipeline;
use crate::workspace::Workspace;
use crate::{Action, CancelToken, Error, Events, Plan};

/// What a finished job did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Per module, in the plan's order.
    pub modules: Vec<ModuleSummary>,
    /// Output files with their lengths.
    pub files: Vec<(String, u64)>,
    /// Largest sum of buffers held at once, in bytes.
    pub peak_buffer_bytes: u64,
    /// Modules taken over from an interrupted job.
    pub resumed_modules: usize,
}

/// What became of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleSummary {
    /// Module or tensor name.
    pub name: String,
    /// What was done.
    pub action: Action,
    /// Logical weights.
    pub n_weights: u64,
    /// Bytes read.
    pub source_bytes: u64,
    /// Bytes written.
    pub output_bytes: u64,
    /// What quantizing lost; `None` where nothing was quantized.
    pub loss: Option<Loss>,
}

/// Runs a plan to its end, or leaves a resumable state.
///
/// # Errors
/// Any; the destination is then untouched.
pub fn run(
    plan: &Plan<'_>,
    disk: &dyn Disk,
    events: &dyn Events,
    cancel: &CancelToken,
) -> Result<Summary, Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(plan.job.budget.threads)
        .build()
        .map_err(|source| Error::Threads {
            threads: plan.job.budget.threads,
            source,
        })?;
    let mut workspace = Workspace::open(plan, disk, events, &pool)?;
    let worked = work(plan, &mut workspace, &pool, cancel);
    match worked {
        Ok(peak_buffer_bytes) => {
            workspace.clean_up();
            Ok(summary(plan, &workspace, peak_buffer_bytes))
        }
        Err(error) => Err(workspace.abandon(error)),
    }
}

/// Everything between opening the workspace and its end; gives the peak of the buffers.
fn work<'p>(
    plan: &'p Plan<'p>,
    workspace: &mut Workspace<'p>,
    pool: &rayon::ThreadPool,
    cancel: &CancelToken,
) -> Result<u64, Error> {
    if workspace.is_published() {
        return Ok(0);
    }
    workspace.prepare()?;
    let peak = pool.in_place_scope(|scope| {
        let mut pipeline = Pipeline::new(plan, workspace, pool, cancel)?;
        pipeline.drive(scope)
    })?;
    if cancel.is_canceled() {
        return Err(Error::Canceled);
    }
    workspace.commit()?;
    Ok(peak)
}

fn summary(plan: &Plan<'_>, workspace: &Workspace<'_>, peak_buffer_bytes: u64) -> Summary {
    let modules = plan
        .job
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| ModuleSummary {
            name: step.name.clone(),
            action: step.action.clone(),
            n_weights: step.n_weights(),
            source_bytes: step.source_bytes,
            output_bytes: step.output_bytes(),
            loss: workspace.record(i).and_then(|r| r.loss),
        });
    Summary {
        modules: modules.collect(),
        files: plan.files.clone(),
        peak_buffer_bytes,
        resumed_modules: workspace.n_resumed(),
    }
}
