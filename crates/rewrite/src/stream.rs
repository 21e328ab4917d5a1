//! Runs a plan: row tiles through decode, quantize and encode, in bounded memory, on all cores, in deterministic order.
//!
//! One thread, the caller's, hands out tiles and takes them back *in order*: digests, sums and the journal see the same
//! sequence for every number of threads. Workers read, compute and write their own tile; no two tiles share a byte.

use safequant_container::Disk;
use safequant_quantize::{Effort, Loss, OutputLoss};

use crate::journal::Book;
use crate::outputs::Outputs;
use crate::pipeline::Pipeline;
use crate::steps::QuantizeWork;
use crate::workspace::Workspace;
use crate::{Action, CancelToken, Error, Events, Plan, parts};

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
    /// What its outputs lost on the calibration inputs, summed over rows in order; `None` where these are not known.
    pub output_loss: Option<OutputLoss>,
    /// What they lost before, where codes were chosen anew.
    pub start_loss: Option<OutputLoss>,
    /// The quantizer of what was quantized; several, joined by `+`, where the matrices of a stack were not all quantized alike.
    pub method: Option<String>,
    /// The bias that makes up for what the mean input loses.
    pub corrected_bias: Option<String>,
    /// How hard it tried; `None` for methods that cannot be told.
    pub effort: Option<Effort>,
    /// Seconds of work, those of all threads added up; `None` where the listener has no clock ([`Events::seconds`]).
    pub seconds: Option<f64>,
}

impl ModuleSummary {
    /// Bits that a weight takes, scales and all; `None` where there is no weight.
    pub fn bits_per_weight(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = || 8.0 * self.output_bytes as f64 / self.n_weights as f64;
        (self.n_weights > 0).then(bits)
    }
}

/// Runs a plan to its end, or leaves a resumable state.
///
/// With [`crate::Destination::Resume`] a job that was begun in parts ([`crate::parts`]) is continued, too, and is one in parts no
/// more.
///
/// # Errors
/// Any; the destination is then untouched.
pub fn run(
    plan: &Plan<'_>,
    disk: &dyn Disk,
    events: &dyn Events,
    cancel: &CancelToken,
) -> Result<Summary, Error> {
    let pool = plan.job.budget.pool()?;
    let mut workspace = Workspace::open(plan, disk, events, |workspace, earlier| {
        let of_parts = parts::take_over(workspace)?;
        let records = earlier.records.iter().chain(&of_parts);
        workspace.outputs.verify(records, &pool);
        Ok(workspace.outputs.done_bytes())
    })?;
    let worked = work(&mut workspace, &pool, cancel);
    match worked {
        Ok(peak_buffer_bytes) => {
            workspace.clean_up();
            Ok(summary(&workspace.outputs, peak_buffer_bytes))
        }
        Err(error) => Err(workspace.abandon(error)),
    }
}

/// Everything between opening the workspace and its end; gives the peak of the buffers.
fn work(
    workspace: &mut Workspace<'_>,
    pool: &rayon::ThreadPool,
    cancel: &CancelToken,
) -> Result<u64, Error> {
    if workspace.is_published() {
        return Ok(0);
    }
    workspace.prepare()?;
    workspace.outputs.announce();
    let peak = drive(&mut workspace.outputs, &mut workspace.journal, pool, cancel)?;
    if cancel.is_canceled() {
        return Err(Error::Canceled);
    }
    workspace.commit()?;
    Ok(peak)
}

/// Writes what is not there yet; gives the peak of the buffers.
pub(crate) fn drive(
    outputs: &mut Outputs<'_>,
    book: &mut dyn Book,
    pool: &rayon::ThreadPool,
    cancel: &CancelToken,
) -> Result<u64, Error> {
    pool.in_place_scope(|scope| Pipeline::new(outputs, book, pool, cancel).drive(scope))
}

/// What was done, of the steps that write to these files.
pub(crate) fn summary(outputs: &Outputs<'_>, peak_buffer_bytes: u64) -> Summary {
    let plan = outputs.plan;
    Summary {
        modules: modules(outputs),
        files: plan.files.clone(),
        peak_buffer_bytes,
        resumed_modules: outputs.n_resumed(),
    }
}

/// What became of the modules whose outputs lie in these files.
pub(crate) fn modules(outputs: &Outputs<'_>) -> Vec<ModuleSummary> {
    let summary = |(i, step): (usize, &crate::steps::Step)| ModuleSummary {
        name: step.name.clone(),
        action: step.action.clone(),
        n_weights: step.n_weights(),
        source_bytes: step.source_bytes,
        output_bytes: step.output_bytes(),
        loss: outputs.record(i).and_then(|r| r.loss),
        output_loss: outputs.record(i).and_then(|r| r.output_loss),
        start_loss: outputs.record(i).and_then(|r| r.start_loss),
        method: step.quantizing().map(QuantizeWork::methods),
        corrected_bias: step.quantizing().and_then(QuantizeWork::corrected_bias),
        effort: step.quantizing().and_then(QuantizeWork::effort),
        seconds: outputs.record(i).and_then(|r| r.seconds),
    };
    outputs.steps().map(summary).collect()
}
