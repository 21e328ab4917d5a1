//! Runs a plan: row tiles through decode, quantize and encode, in bounded memory, on all cores, in deterministic order.

use safequant_container::Disk;
use safequant_quantize::Loss;

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
    _plan: &Plan<'_>,
    _disk: &dyn Disk,
    _events: &dyn Events,
    _cancel: &CancelToken,
) -> Result<Summary, Error> {
    unimplemented!()
}
