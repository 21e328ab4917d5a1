//! Jobs in parts, for `safequant.ray`: each function is what one task does, on whatever machine it runs.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use safequant::rewrite::Destination;
use safequant::rewrite::parts::{self, Begun, Part, PartSummary};
use safequant::{CancelToken, Checkpoint, Event, Events, Limits, OsDisk, Plan, Summary};

use crate::errors::Failure;
use crate::jobs::{Request, summary_dict};
use crate::work;

/// Keeps the lines that are worth reading.
struct Notes {
    lines: Mutex<Vec<String>>,
    began: std::time::Instant,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            lines: Mutex::default(),
            #[expect(
                clippy::disallowed_methods,
                reason = "a leaf: it tells people how long it took"
            )]
            began: std::time::Instant::now(),
        }
    }
}

impl Notes {
    fn into_inner(self) -> Vec<String> {
        self.lines.into_inner().unwrap_or_default()
    }
}

impl Events for Notes {
    fn seconds(&self) -> Option<f64> {
        Some(self.began.elapsed().as_secs_f64())
    }

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Note { text } => {
                if let Ok(mut notes) = self.lines.lock() {
                    notes.push(text.to_owned());
                }
            }
            Event::Start { .. }
            | Event::Module { .. }
            | Event::Advance { .. }
            | Event::Shard { .. }
            | Event::Commit => {}
        }
    }
}

/// How a request says what to do with a destination that is taken.
#[derive(Clone, Copy)]
enum Going {
    /// As it was asked: for the task that begins.
    AsAsked,
    /// On with what was begun: for every other task.
    On,
}

/// Plans a request on a thread of its own and does something with the plan; gives what was worth saying, too.
fn planned<T: Send>(
    py: Python<'_>,
    request: &Request,
    going: Going,
    then: impl FnOnce(&Plan<'_>, &Notes, &CancelToken) -> Result<T, Failure> + Send,
) -> PyResult<(T, Vec<String>)> {
    let (verb, mut options) = (request.verb()?, request.options()?);
    match going {
        Going::AsAsked => {}
        Going::On => options.destination = Destination::Resume,
    }
    let cancel = CancelToken::default();
    let notes = Notes::default();
    let work = || {
        let checkpoint = Checkpoint::open(&request.source, &Limits::default())?;
        let plan = safequant::plan(&checkpoint, &verb, &request.output, &options)?;
        then(&plan, &notes, &cancel)
    };
    let done: Result<T, Failure> = work::run_quietly(py, &cancel, work)?;
    Ok((done?, notes.into_inner()))
}

/// What the planner says.
struct Beginning {
    begun: Begun,
    parts: Vec<Part>,
    files: Vec<(String, u64)>,
    n_modules: usize,
    notes: Vec<String>,
}

/// Begins a request in at most `n_parts` parts: makes the partial work ready, and says what the parts are.
///
/// Gives `published` (an earlier attempt got so far that only `finish_parts` is left), `parts` (each with `index`, `files`,
/// `modules`, `source_bytes`, `output_bytes`), `modules` and `notes`.
#[pyfunction]
pub(crate) fn begin_parts(
    py: Python<'_>,
    request: Request,
    n_parts: usize,
) -> PyResult<Bound<'_, PyDict>> {
    let begin = |plan: &Plan<'_>, notes: &Notes, _: &CancelToken| {
        Ok(Beginning {
            begun: parts::begin(plan, &OsDisk, notes)?,
            parts: parts::parts(plan, n_parts),
            files: plan.files.clone(),
            n_modules: plan.modules.len(),
            notes: plan.notes.clone(),
        })
    };
    let (mut beginning, notes) = planned(py, &request, Going::AsAsked, begin)?;
    beginning.notes.extend(notes);
    let parts = beginning.parts.iter().map(|part| {
        let files = beginning.files.get(part.files.clone());
        part_dict(py, part, files.unwrap_or_default())
    });
    let dict = PyDict::new(py);
    dict.set_item("published", beginning.begun == Begun::Published)?;
    dict.set_item("parts", parts.collect::<PyResult<Vec<_>>>()?)?;
    dict.set_item("modules", beginning.n_modules)?;
    dict.set_item("notes", beginning.notes)?;
    Ok(dict)
}

fn part_dict<'py>(
    py: Python<'py>,
    part: &Part,
    files: &[(String, u64)],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("index", part.index)?;
    dict.set_item("files", files.to_vec())?;
    dict.set_item("modules", part.n_modules)?;
    dict.set_item("source_bytes", part.source_bytes)?;
    dict.set_item("output_bytes", part.output_bytes)?;
    Ok(dict)
}

/// Carries out part `index` of `n_parts` of a request that was begun. Ctrl-C (or what cancels a task of Ray) stops it at the next
/// tile; what is done is kept.
///
/// Gives `peak_buffer_bytes`, `resumed_modules` and `notes`.
#[pyfunction]
pub(crate) fn run_part(
    py: Python<'_>,
    request: Request,
    index: usize,
    n_parts: usize,
) -> PyResult<Bound<'_, PyDict>> {
    let run = |plan: &Plan<'_>, notes: &Notes, cancel: &CancelToken| {
        let done = parts::run_part(plan, index, n_parts, &OsDisk, notes, cancel)?;
        Ok::<PartSummary, Failure>(done)
    };
    let (done, notes) = planned(py, &request, Going::On, run)?;
    let dict = PyDict::new(py);
    dict.set_item("peak_buffer_bytes", done.peak_buffer_bytes)?;
    dict.set_item("resumed_modules", done.resumed_modules)?;
    dict.set_item("notes", notes)?;
    Ok(dict)
}

/// Publishes a request whose parts are all done; gives what `run` gives.
#[pyfunction]
pub(crate) fn finish_parts(py: Python<'_>, request: Request) -> PyResult<Bound<'_, PyDict>> {
    let finish = |plan: &Plan<'_>, notes: &Notes, cancel: &CancelToken| {
        Ok::<Summary, Failure>(parts::finish(plan, &OsDisk, notes, cancel)?)
    };
    let (summary, _) = planned(py, &request, Going::On, finish)?;
    summary_dict(py, &summary)
}

/// Removes the partial work of a request that is given up.
#[pyfunction]
pub(crate) fn discard_parts(py: Python<'_>, request: Request) -> PyResult<()> {
    let discard =
        |plan: &Plan<'_>, notes: &Notes, _: &CancelToken| Ok(parts::discard(plan, &OsDisk, notes)?);
    planned(py, &request, Going::On, discard).map(drop)
}
