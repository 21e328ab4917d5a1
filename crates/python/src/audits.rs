//! The auditing verbs. Their records are the engine's own JSON (specs/cli), which Python parses.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use safequant::audit::diff::{self as compare, Level};
use safequant::audit::report::{self, About};
use safequant::audit::{self as rules, Depth, Options, Subject, Wanted, losses};
use safequant::container::{Checkpoint, Limits};
use safequant::{CancelToken, Model, options};

use crate::errors::Failure;
use crate::work;

/// What `safequant.audits.audit` asks for.
#[derive(FromPyObject)]
pub(crate) struct Question {
    source: PathBuf,
    reference: Option<PathBuf>,
    depth: String,
    select: Vec<String>,
    ignore: Vec<String>,
    runtimes: Vec<String>,
    tensor_parallel: Vec<u64>,
}

/// Audits a checkpoint; gives the report as JSON and as one HTML page.
#[pyfunction]
pub(crate) fn audit(py: Python<'_>, question: Question) -> PyResult<(String, String)> {
    let depth = match question.depth.as_str() {
        "headers" => Depth::Headers,
        "scales" => Depth::Scales,
        "full" => Depth::Full,
        other => {
            let text = format!("depth {other}: expected headers, scales or full");
            return Err(Failure::usage(text).into());
        }
    };
    options::check_runtimes(&question.runtimes).map_err(Failure::from)?;
    let chosen = options::rules(&question.select, &question.ignore).map_err(Failure::from)?;
    let options = Options {
        depth,
        rules: chosen,
    };
    let cancel = CancelToken::default();
    let done = work::run_quietly(py, &cancel, || audited(&question, &options))?;
    Ok(done?)
}

fn audited(question: &Question, options: &Options) -> Result<(String, String), Failure> {
    let limits = Limits::default();
    let (checkpoint, problems) = rules::survey(&question.source, &limits)?;
    let wanted = Wanted {
        tensor_parallel: question.tensor_parallel.clone(),
        runtimes: question.runtimes.clone(),
    };
    let report = rules::audit(Subject::new(&checkpoint, problems, wanted), options);
    let losses = match &question.reference {
        None => None,
        Some(path) => {
            let reference = Checkpoint::open(path, &limits)?;
            let model = Model::bind(&reference)?;
            let ours = (&checkpoint, &report.subject.model);
            Some(losses(ours, (&reference, &model), &report.measured)?)
        }
    };
    if let Some(error) = report.unclaimed().next() {
        return Err(Failure::of(error));
    }
    let about = About {
        source: question.source.to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        known: 0,
        losses,
    };
    Ok((
        report::json(&report, &about).to_string(),
        report::html(&report, &about),
    ))
}

/// Compares two checkpoints; gives the record of `diff --json`.
#[pyfunction]
pub(crate) fn diff(
    py: Python<'_>,
    a: PathBuf,
    b: PathBuf,
    levels: Vec<String>,
    filter: Option<String>,
    tolerance: f64,
) -> PyResult<String> {
    if !tolerance.is_finite() || tolerance < 0.0 {
        return Err(Failure::usage(format!("tolerance {tolerance} is no distance")).into());
    }
    let level = |name: &String| {
        let found = Level::ALL.into_iter().find(|level| level.name() == name);
        found.ok_or_else(|| {
            let known = Level::ALL.map(Level::name).join(", ");
            Failure::usage(format!("there is no level {name}: there are {known}"))
        })
    };
    let levels = levels.iter().map(level).collect::<Result<Vec<_>, _>>()?;
    let select = filter
        .as_deref()
        .map(|text| options::pattern("filter", text));
    let options = compare::Options {
        levels,
        select: select.transpose().map_err(Failure::from)?,
        tolerance,
    };
    let cancel = CancelToken::default();
    let compared = || -> Result<String, Failure> {
        let open = |path: &Path| -> Result<(Checkpoint, Model), Failure> {
            let checkpoint = Checkpoint::open(path, &Limits::default())?;
            let model = Model::bind(&checkpoint)?;
            Ok((checkpoint, model))
        };
        let (left, right) = (open(&a)?, open(&b)?);
        let found = compare::diff((&left.0, &left.1), (&right.0, &right.1), &options)?;
        let names = [a.to_string_lossy(), b.to_string_lossy()];
        Ok(compare::json(&found, [&names[0], &names[1]], filter.as_deref()).to_string())
    };
    Ok(work::run_quietly(py, &cancel, compared)??)
}

/// Which tensor-parallel degrees work; gives the record of `tp-plan --json`.
#[pyfunction]
pub(crate) fn tp_plan(py: Python<'_>, source: PathBuf, degrees: Vec<u64>) -> PyResult<String> {
    let planned = || -> Result<String, Failure> {
        let (checkpoint, problems) = rules::survey(&source, &Limits::default())?;
        let subject = Subject::new(&checkpoint, problems, Wanted::default());
        Ok(report::tp_plan(&subject, &degrees).to_string())
    };
    Ok(py.detach(planned)?)
}

/// The page of an audit rule, by id or name, in Markdown.
#[pyfunction]
pub(crate) fn explain(rule: &str) -> PyResult<String> {
    let found = rules::all_rules().find(|r| r.id.eq_ignore_ascii_case(rule) || r.name == rule);
    let found = found.ok_or_else(|| Failure::usage(format!("no audit rule is called {rule}")))?;
    Ok(format!(
        "# {} {}\n\n{}\n\n{}\n",
        found.id,
        found.name,
        found.summary,
        found.doc.trim()
    ))
}
