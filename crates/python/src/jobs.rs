//! The writing verbs: a request of Python's becomes a verb of the engine, its plan and summary become plain values.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use safequant::options::{self, Choosing, Quantizing};
use safequant::quantize::quantizer::NonFinite;
use safequant::quantize::{Biases, Division, Effort, OutputLoss};
use safequant::recipe::Recipe;
use safequant::rewrite::{
    Action, CalibrationFile, ConvertRecipe, DequantizeRecipe, Destination, JobOptions, LossPolicy,
    Reference, RefineRecipe, Verb,
};
use safequant::size::Size;
use safequant::{CancelToken, Checkpoint, Event, Events, Limits, OsDisk, Plan, Summary};

use crate::checkpoint::output_dtype;
use crate::errors::Failure;
use crate::work;

/// `safequant.jobs.Request`, as its attributes are.
#[derive(FromPyObject)]
pub(crate) struct Request {
    verb: String,
    pub(crate) source: PathBuf,
    pub(crate) output: PathBuf,
    scheme: Option<String>,
    recipe: Option<String>,
    schemes: Vec<String>,
    target_bpw: Option<f64>,
    group_size: Option<i64>,
    convention: Option<String>,
    method: Option<String>,
    calibration: Option<PathBuf>,
    reference: Option<PathBuf>,
    effort: Option<String>,
    order: Option<String>,
    damping: Option<f64>,
    bias_correction: bool,
    targets: Vec<String>,
    ignore: Vec<String>,
    division: String,
    nonfinite: String,
    allow_lossy: bool,
    dtype: String,
    memory: String,
    threads: Option<usize>,
    max_shard_size: String,
    destination: String,
}

impl Request {
    /// What it asks for.
    pub(crate) fn verb(&self) -> Result<Verb, Failure> {
        match self.verb.as_str() {
            "quantize" => self.quantize(),
            "refine" => self.refine(),
            "dequantize" => Ok(Verb::Dequantize(DequantizeRecipe {
                dtype: output_dtype(&self.dtype)?,
            })),
            "convert" => self.convert(),
            other => Err(Failure::usage(format!("there is no verb {other}"))),
        }
    }

    fn quantize(&self) -> Result<Verb, Failure> {
        let calibration = self.opened_calibration()?;
        let quantizing = Quantizing {
            scheme: self.scheme.as_deref(),
            schemes: &self.schemes,
            group_size: self.group_size,
            choosing: self.choosing(),
            targets: &self.targets,
            ignore: &self.ignore,
            convention: self.convention.as_deref(),
            recipe: self.recipe.as_deref().map(|text| ("the recipe", text)),
            calibration,
            division: match self.division.as_str() {
                "source" => Division::SourceDtype,
                "f32" => Division::F32,
                other => return Err(expected("division", other, "source or f32")),
            },
            nonfinite: match self.nonfinite.as_str() {
                "refuse" => NonFinite::Refuse,
                "clamp" => NonFinite::Clamp,
                other => return Err(expected("nonfinite", other, "refuse or clamp")),
            },
        };
        Ok(Verb::Quantize(quantizing.resolve()?))
    }

    fn opened_calibration(&self) -> Result<Option<CalibrationFile>, Failure> {
        let opened = |path: &PathBuf| CalibrationFile::open(path, &Limits::default());
        let calibration = self.calibration.as_ref().map(opened).transpose();
        Ok(calibration.map_err(safequant::Error::from)?)
    }

    fn choosing(&self) -> Choosing<'_> {
        Choosing {
            method: self.method.as_deref(),
            effort: self.effort.as_deref(),
            order: self.order.as_deref(),
            damping: self.damping,
            biases: if self.bias_correction {
                Biases::Corrected
            } else {
                Biases::Kept
            },
        }
    }

    fn refine(&self) -> Result<Verb, Failure> {
        options::check_patterns("ignore", &self.ignore)?;
        let (Some(reference), Some(calibration)) = (&self.reference, self.opened_calibration()?)
        else {
            return Err(Failure::usage(
                "refine goes by a reference and a calibration file",
            ));
        };
        Ok(Verb::Refine(RefineRecipe {
            reference: Reference::open(reference, &Limits::default())?,
            calibration,
            settings: options::refining(self.choosing())?,
            ignore: self.ignore.clone(),
        }))
    }

    fn convert(&self) -> Result<Verb, Failure> {
        options::check_patterns("ignore", &self.ignore)?;
        let convention = self.convention.as_deref().unwrap_or_default();
        Ok(Verb::Convert(ConvertRecipe {
            convention: options::written_convention(convention)?,
            loss: if self.allow_lossy {
                LossPolicy::Allow
            } else {
                LossPolicy::Refuse
            },
            ignore: self.ignore.clone(),
        }))
    }

    /// What does not change the content.
    pub(crate) fn options(&self) -> Result<JobOptions, Failure> {
        let size = |option: &str, text: &str| {
            let parsed = text.parse::<Size>();
            parsed.map_err(|error| Failure::usage(format!("{option} {text}: {error}")))
        };
        Ok(JobOptions {
            memory_bytes: size("memory", &self.memory)?.0,
            threads: self.threads.unwrap_or(0),
            max_shard_bytes: size("max_shard_size", &self.max_shard_size)?.0,
            destination: match self.destination.as_str() {
                "new" => Destination::New,
                "replace" => Destination::Replace,
                "resume" => Destination::Resume,
                other => return Err(expected("destination", other, "new, replace or resume")),
            },
        })
    }
}

fn expected(option: &str, found: &str, words: &str) -> Failure {
    Failure::usage(format!("{option} {found}: expected {words}"))
}

/// An event, as Python gets it: what happened, of what, and how much.
#[derive(IntoPyObject)]
pub(crate) struct Told {
    kind: &'static str,
    name: String,
    bytes: u64,
    modules: usize,
}

impl Told {
    fn new(event: Event<'_>) -> Self {
        let told = |kind, name: &str, bytes, modules| Self {
            kind,
            name: name.to_owned(),
            bytes,
            modules,
        };
        match event {
            Event::Start {
                source_bytes,
                modules,
            } => told("start", "", source_bytes, modules),
            Event::Module { name } => told("module", name, 0, 0),
            Event::Advance { source_bytes } => told("advance", "", source_bytes, 0),
            Event::Shard { name, len_bytes } => told("file", name, len_bytes, 0),
            Event::Commit => told("commit", "", 0, 0),
            Event::Note { text } => told("note", text, 0, 0),
        }
    }
}

/// Sends events to the thread that listens.
pub(crate) struct Sending {
    sender: std::sync::Mutex<std::sync::mpsc::Sender<Told>>,
    began: std::time::Instant,
}

impl Sending {
    pub(crate) fn new(sender: std::sync::mpsc::Sender<Told>) -> Self {
        Self {
            sender: std::sync::Mutex::new(sender),
            #[expect(
                clippy::disallowed_methods,
                reason = "a leaf: it tells people how long it took"
            )]
            began: std::time::Instant::now(),
        }
    }
}

impl Events for Sending {
    fn seconds(&self) -> Option<f64> {
        Some(self.began.elapsed().as_secs_f64())
    }

    fn event(&self, event: Event<'_>) {
        // Who does not listen any more has canceled the job.
        if let Ok(sender) = self.sender.lock() {
            let _ = sender.send(Told::new(event));
        }
    }
}

/// Tells events to a callback, where there is one.
pub(crate) fn teller(
    progress: Option<Py<PyAny>>,
) -> impl FnMut(Python<'_>, Told) -> PyResult<()> + Send {
    move |py, told| match &progress {
        None => Ok(()),
        Some(callback) => callback.call1(py, (told,)).map(drop),
    }
}

/// Plans a request: what would be written. Nothing is touched.
#[pyfunction]
pub(crate) fn plan(py: Python<'_>, request: Request) -> PyResult<Bound<'_, PyDict>> {
    let (verb, options) = (request.verb()?, request.options()?);
    let planned = py.detach(|| -> Result<Planned, Failure> {
        let checkpoint = Checkpoint::open(&request.source, &Limits::default())?;
        let plan = safequant::plan(&checkpoint, &verb, &request.output, &options)?;
        Ok(Planned::new(&plan))
    })?;
    planned.into_dict(py)
}

/// Carries a request out. `progress` is called with each event; what it raises cancels the job, and so does Ctrl-C: what is done
/// then is kept, and a request to resume goes on.
#[pyfunction]
#[pyo3(signature = (request, progress=None))]
pub(crate) fn run(
    py: Python<'_>,
    request: Request,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'_, PyDict>> {
    let (verb, options) = (request.verb()?, request.options()?);
    let cancel = CancelToken::default();
    let work = |sender| -> Result<Summary, Failure> {
        let checkpoint = Checkpoint::open(&request.source, &Limits::default())?;
        let plan = safequant::plan(&checkpoint, &verb, &request.output, &options)?;
        let events = Sending::new(sender);
        for note in &plan.notes {
            events.event(Event::Note { text: note });
        }
        Ok(safequant::run(&plan, &OsDisk, &events, &cancel)?)
    };
    let summary = work::run(py, &cancel, work, teller(progress))??;
    summary_dict(py, &summary)
}

/// The recipe of a mixture: for each module one of the request's schemes, so that all keep to its bits per weight.
#[pyfunction]
pub(crate) fn mixed_recipe(py: Python<'_>, request: Request) -> PyResult<String> {
    let (verb, options) = (request.verb()?, request.options()?);
    let target = options::target_bits(request.target_bpw.unwrap_or_default());
    let target = target.map_err(Failure::from)?;
    let Verb::Quantize(recipe) = verb else {
        return Err(Failure::usage("only quantize mixes schemes").into());
    };
    let cancel = CancelToken::default();
    let work = |_sender: std::sync::mpsc::Sender<Told>| -> Result<String, Failure> {
        let checkpoint = Checkpoint::open(&request.source, &Limits::default())?;
        let found =
            safequant::rewrite::mixed::choose(&checkpoint, &recipe, target, &options, &cancel);
        Ok(Recipe::of(&found?.recipe).to_json())
    };
    Ok(work::run(py, &cancel, work, teller(None))??)
}

/// A plan without its borrowings.
struct Planned {
    files: Vec<(String, u64)>,
    modules: Vec<safequant::rewrite::PlannedModule>,
    peak_memory_bytes: u64,
    peak_statistics_bytes: u64,
    scratch_bytes: u64,
    notes: Vec<String>,
}

impl Planned {
    fn new(plan: &Plan<'_>) -> Self {
        Self {
            files: plan.files.clone(),
            modules: plan.modules.clone(),
            peak_memory_bytes: plan.peak_memory_bytes,
            peak_statistics_bytes: plan.peak_statistics_bytes,
            scratch_bytes: plan.scratch_bytes,
            notes: plan.notes.clone(),
        }
    }

    fn into_dict(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let modules = self.modules.into_iter().map(|module| {
            let dict = action_dict(py, module.name, &module.action)?;
            dict.set_item("method", module.method)?;
            dict.set_item("effort", module.effort.map(Effort::name))?;
            dict.set_item("shape", module.shape)?;
            dict.set_item("source_bytes", module.source_bytes)?;
            dict.set_item("output_bytes", module.output_bytes)?;
            Ok(dict)
        });
        let dict = PyDict::new(py);
        dict.set_item("files", self.files)?;
        dict.set_item("modules", modules.collect::<PyResult<Vec<_>>>()?)?;
        dict.set_item("peak_memory_bytes", self.peak_memory_bytes)?;
        dict.set_item("peak_statistics_bytes", self.peak_statistics_bytes)?;
        dict.set_item("scratch_bytes", self.scratch_bytes)?;
        dict.set_item("notes", self.notes)?;
        Ok(dict)
    }
}

/// What was done, as keyword arguments of `safequant.jobs.Summary`.
pub(crate) fn summary_dict<'py>(
    py: Python<'py>,
    summary: &Summary,
) -> PyResult<Bound<'py, PyDict>> {
    let modules = summary.modules.iter().map(|module| {
        let dict = action_dict(py, module.name.clone(), &module.action)?;
        dict.set_item("weights", module.n_weights)?;
        dict.set_item("source_bytes", module.source_bytes)?;
        dict.set_item("output_bytes", module.output_bytes)?;
        let loss = module.loss.as_ref();
        dict.set_item("sqnr_db", loss.map(safequant::quantize::Loss::sqnr_db))?;
        dict.set_item("max_error", loss.map(|loss| loss.max_error))?;
        dict.set_item("method", module.method.as_deref())?;
        dict.set_item("effort", module.effort.map(Effort::name))?;
        dict.set_item("corrected_bias", module.corrected_bias.as_deref())?;
        let output = module.output_loss.as_ref();
        dict.set_item("output_error", output.map(OutputLoss::relative))?;
        let start = module.start_loss.as_ref();
        dict.set_item("output_error_before", start.map(OutputLoss::relative))?;
        dict.set_item("seconds", module.seconds)?;
        Ok(dict)
    });
    let dict = PyDict::new(py);
    dict.set_item("files", &summary.files)?;
    dict.set_item("modules", modules.collect::<PyResult<Vec<_>>>()?)?;
    dict.set_item("peak_buffer_bytes", summary.peak_buffer_bytes)?;
    dict.set_item("resumed_modules", summary.resumed_modules)?;
    Ok(dict)
}

fn action_dict<'py>(
    py: Python<'py>,
    name: String,
    action: &Action,
) -> PyResult<Bound<'py, PyDict>> {
    let (to, label) = match action {
        Action::Quantize(to) | Action::Dequantize(to) => (Some(*to), None),
        Action::Convert(label) => (None, Some(label.word())),
        Action::Copy | Action::Respell | Action::Drop | Action::Fold | Action::Refine => {
            (None, None)
        }
    };
    let dict = PyDict::new(py);
    dict.set_item("name", name)?;
    dict.set_item("action", action.word())?;
    dict.set_item("scheme_or_convention", to)?;
    dict.set_item("label", label)?;
    Ok(dict)
}
