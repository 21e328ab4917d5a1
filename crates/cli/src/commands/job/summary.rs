//! What a finished job did: sizes before and after, bits per weight, per action, the worst modules.

use std::cmp::Ordering;

use safequant::quantize::{Effort, Loss, OutputLoss};
use safequant::rewrite::{ModuleSummary, Summary};
use serde_json::{Value, json};

use super::{files_record, path, total, wants_json, weights};
use crate::describe;
use crate::exit::Failure;
use crate::output::{self, Align, Name, Output, Table};
use crate::plan::Job;

/// Modules in the list of the worst.
const N_WORST: usize = 5;

/// Prints the summary.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn print(
    job: &Job,
    summary: &Summary,
    elapsed: f64,
    output: Output,
) -> Result<(), Failure> {
    if wants_json(job) {
        return Ok(output::json(&record(job, summary, elapsed))?);
    }
    output::data(&headline(job, summary))?;
    output::data(&format!("\n{}\n", output.heading("Weights")))?;
    output.table(&actions_table(summary))?;
    let outputs = worst_outputs(summary);
    if !outputs.is_empty() {
        let title = output.heading("Worst modules by error of their outputs");
        output::data(&format!("\n{title}\n"))?;
        output.table(&outputs_table(&outputs))?;
        return Ok(());
    }
    let worst = worst(summary);
    if !worst.is_empty() {
        output::data(&format!("\n{}\n", output.heading("Worst modules by SQNR")))?;
        output.table(&worst_table(&worst))?;
    }
    Ok(())
}

/// `read 13.5 MiB in 0.21 s (0.07 GB/s)`.
pub(super) fn speed(summary: &Summary, elapsed: f64) -> String {
    let read = source_bytes(summary);
    let text = format!(
        "read {} in {} ({})",
        output::bytes(read),
        output::duration(elapsed),
        output::rate(read, elapsed)
    );
    match summary.resumed_modules {
        0 => text,
        n => format!("{text}, {n} modules taken over from the interrupted job"),
    }
}

fn source_bytes(summary: &Summary) -> u64 {
    summary
        .modules
        .iter()
        .map(|module| module.source_bytes)
        .sum()
}

fn output_bytes(summary: &Summary) -> u64 {
    summary
        .modules
        .iter()
        .map(|module| module.output_bytes)
        .sum()
}

fn headline(job: &Job, summary: &Summary) -> String {
    let (before, after) = (source_bytes(summary), output_bytes(summary));
    let bits = |len_bytes| output::figure(output::bits_per_weight(len_bytes, weights(summary)));
    let outputs = mean_output_error(summary).map_or_else(String::new, |error| {
        let before = mean_start_error(summary)
            .map_or_else(String::new, |before| format!("{:.4}% -> ", 100.0 * before));
        format!(
            "  output error     {before}{:.4}% in the mean of modules\n",
            100.0 * error
        )
    });
    format!(
        "{}: {}, {}\n  weights          {} -> {} ({:.1}%)\n  bits per weight  {} -> {}\n{outputs}",
        Name(&path(&job.destination)),
        output::counted(output::len(summary.files.len()), "file"),
        output::bytes(total(&summary.files)),
        output::bytes(before),
        output::bytes(after),
        100.0 * output::real(after) / output::real(before.max(1)),
        bits(before),
        bits(after),
    )
}

/// What was done with how many modules.
struct ActionTotal {
    label: String,
    parts: (&'static str, Option<&'static str>),
    loss: Option<&'static str>,
    modules: usize,
    weights: u64,
    source_bytes: u64,
    output_bytes: u64,
}

/// In the order in which each action first occurs.
fn actions(summary: &Summary) -> Vec<ActionTotal> {
    let mut totals: Vec<ActionTotal> = Vec::new();
    for module in &summary.modules {
        let label = describe::action_by(&module.action, module.method.as_deref());
        let at = totals
            .iter()
            .position(|total| total.label == label)
            .unwrap_or_else(|| {
                let parts = describe::action_parts(&module.action);
                totals.push(ActionTotal {
                    label,
                    parts,
                    loss: describe::label(&module.action),
                    modules: 0,
                    weights: 0,
                    source_bytes: 0,
                    output_bytes: 0,
                });
                totals.len() - 1
            });
        let total = &mut totals[at];
        total.modules += 1;
        total.weights = total.weights.saturating_add(module.n_weights);
        total.source_bytes = total.source_bytes.saturating_add(module.source_bytes);
        total.output_bytes = total.output_bytes.saturating_add(module.output_bytes);
    }
    totals
}

fn actions_table(summary: &Summary) -> Table {
    let mut table = Table::new(&[
        ("action", Align::Left),
        ("count", Align::Right),
        ("weights", Align::Right),
        ("before", Align::Right),
        ("after", Align::Right),
        ("bits/weight", Align::Right),
    ]);
    for total in actions(summary) {
        table.row([
            total.label,
            total.modules.to_string(),
            output::count(total.weights),
            output::bytes(total.source_bytes),
            output::bytes(total.output_bytes),
            output::figure(output::bits_per_weight(total.output_bytes, total.weights)),
        ]);
    }
    table
}

/// The quantized modules with the lowest ratio of signal to noise, worst first; a module that lost nothing is not among
/// them, and equal ones stand in the order of their names.
fn worst(summary: &Summary) -> Vec<(&ModuleSummary, f64)> {
    let lossy = summary.modules.iter().filter_map(|module| {
        let loss = module.loss.as_ref().filter(|loss| loss.noise > 0.0)?;
        Some((module, loss.sqnr_db()))
    });
    let mut all: Vec<_> = lossy.collect();
    all.sort_by(|(a, a_db), (b, b_db)| {
        a_db.partial_cmp(b_db)
            .unwrap_or(Ordering::Equal)
            .then_with(|| a.name.cmp(&b.name))
    });
    all.truncate(N_WORST);
    all
}

fn worst_table(worst: &[(&ModuleSummary, f64)]) -> Table {
    let mut table = Table::new(&[
        ("module", Align::Left),
        ("SQNR", Align::Right),
        ("largest error", Align::Right),
    ]);
    for (module, db) in worst {
        let max_error = module.loss.as_ref().map_or(0.0, |loss| loss.max_error);
        table.row([
            Name(&module.name).to_string(),
            format!("{db:.2} dB"),
            format!("{max_error:.3e}"),
        ]);
    }
    table
}

/// The quantized modules whose outputs on the calibration inputs are off most, as a share of them, worst first.
fn worst_outputs(summary: &Summary) -> Vec<(&ModuleSummary, f64)> {
    let lossy = summary.modules.iter().filter_map(|module| {
        let error = output_error(module)?;
        (error > 0.0).then_some((module, error))
    });
    let mut all: Vec<_> = lossy.collect();
    all.sort_by(|(a, a_error), (b, b_error)| {
        b_error
            .partial_cmp(a_error)
            .unwrap_or(Ordering::Equal)
            .then_with(|| a.name.cmp(&b.name))
    });
    all.truncate(N_WORST);
    all
}

/// The error of a module's outputs on the calibration inputs as a share of these, where it is known.
fn output_error(module: &ModuleSummary) -> Option<f64> {
    let error = module.output_loss.as_ref().map(OutputLoss::relative);
    error.filter(|error| error.is_finite())
}

/// The same before, where codes were chosen anew.
fn start_error(module: &ModuleSummary) -> Option<f64> {
    let error = module.start_loss.as_ref().map(OutputLoss::relative);
    error.filter(|error| error.is_finite())
}

/// Over all modules whose outputs are known: the mean of their relative errors.
fn mean_output_error(summary: &Summary) -> Option<f64> {
    mean(summary.modules.iter().filter_map(output_error).collect())
}

/// Over all modules whose codes were chosen anew: the mean of what these were before.
fn mean_start_error(summary: &Summary) -> Option<f64> {
    mean(summary.modules.iter().filter_map(start_error).collect())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers that nobody wants again"
)]
fn mean(errors: Vec<f64>) -> Option<f64> {
    let n = output::real(output::len(errors.len()));
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / n)
}

fn outputs_table(worst: &[(&ModuleSummary, f64)]) -> Table {
    let mut table = Table::new(&[
        ("module", Align::Left),
        ("before", Align::Right),
        ("output error", Align::Right),
        ("SQNR", Align::Right),
        ("method", Align::Left),
    ]);
    for (module, error) in worst {
        let sqnr = module.loss.as_ref().map(Loss::sqnr_db);
        table.row([
            Name(&module.name).to_string(),
            start_error(module).map_or_else(|| "-".to_owned(), |e| format!("{:.4}%", 100.0 * e)),
            format!("{:.4}%", 100.0 * error),
            sqnr.map_or_else(|| "-".to_owned(), |db| format!("{db:.2} dB")),
            module.method.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// Infinities and NaN are no JSON numbers: a module that lost nothing has `null`.
fn module_record(module: &ModuleSummary) -> Value {
    let (action, to) = describe::action_parts(&module.action);
    let sqnr_db = module.loss.as_ref().map(Loss::sqnr_db);
    json!({
        "name": module.name,
        "action": action,
        "scheme_or_convention": to,
        "label": describe::label(&module.action),
        "method": module.method,
        "effort": module.effort.map(Effort::name),
        "corrected_bias": module.corrected_bias,
        "weights": module.n_weights,
        "source_bytes": module.source_bytes,
        "output_bytes": module.output_bytes,
        "sqnr_db": sqnr_db.filter(|db| db.is_finite()),
        "max_error": module.loss.as_ref().map(|loss| loss.max_error),
        "output_error": output_error(module),
        "output_error_before": start_error(module),
        "bits_per_weight": module.bits_per_weight(),
        "seconds": module.seconds,
    })
}

fn record(job: &Job, summary: &Summary, elapsed: f64) -> Value {
    let (before, after, n) = (
        source_bytes(summary),
        output_bytes(summary),
        weights(summary),
    );
    let actions = actions(summary).into_iter().map(|total| {
        json!({
            "action": total.parts.0,
            "scheme_or_convention": total.parts.1,
            "label": total.loss,
            "modules": total.modules,
            "weights": total.weights,
            "source_bytes": total.source_bytes,
            "output_bytes": total.output_bytes,
            "bits_per_weight": output::bits_per_weight(total.output_bytes, total.weights),
        })
    });
    let rest = json!({
        "files": files_record(&summary.files),
        "output_bytes": total(&summary.files),
        "weights": n,
        "weight_bytes": { "before": before, "after": after },
        "bits_per_weight": {
            "before": output::bits_per_weight(before, n),
            "after": output::bits_per_weight(after, n),
        },
        "actions": actions.collect::<Value>(),
        "worst": worst(summary).iter().map(|(m, db)| json!({ "name": m.name, "sqnr_db": db })).collect::<Value>(),
        "worst_outputs": worst_outputs(summary).iter().map(|(m, error)| json!({ "name": m.name, "output_error": error })).collect::<Value>(),
        "mean_output_error": mean_output_error(summary),
        "mean_output_error_before": mean_start_error(summary),
        "modules": summary.modules.iter().map(module_record).collect::<Value>(),
        "peak_buffer_bytes": summary.peak_buffer_bytes,
        "resumed_modules": summary.resumed_modules,
        "elapsed_s": elapsed,
        "source_bytes_per_s": output::real(before) / elapsed.max(1e-9),
    });
    super::record(job, rest)
}
