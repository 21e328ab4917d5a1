//! `--dry-run`: the plan as a table or as JSON. It equals what the run then does.

use safequant::quantize::Effort;
use safequant::rewrite::Plan;
use serde_json::{Value, json};

use super::{files_record, path, total, wants_json};
use crate::collapse::collapse;
use crate::describe;
use crate::exit::Failure;
use crate::output::{self, Align, MAX_NOTES, Name, Output, Table, Text};
use crate::plan::Job;

/// Rows that a table of groups shows.
const MAX_ROWS: usize = 200;

/// Prints the plan.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn print(job: &Job, plan: &Plan<'_>, output: Output) -> Result<(), Failure> {
    if wants_json(job) {
        return Ok(output::json(&record(job, plan))?);
    }
    output::data(&format!("{}\n", output.heading("Modules")))?;
    let (table, hidden) = modules(plan);
    output.table(&table)?;
    if hidden > 0 {
        output::data(&format!(
            "  ... and {hidden} more rows (--json lists every module)\n"
        ))?;
    }
    output::data(&format!("\n{}\n", output.heading("Files")))?;
    output.table(&files(&plan.files))?;
    output::data(totals(job, plan).as_str())?;
    for note in plan.notes.iter().take(MAX_NOTES) {
        output.remark(note);
    }
    Ok(())
}

/// Modules collapsed, and the number of rows left out.
fn modules(plan: &Plan<'_>) -> (Table, usize) {
    let keys = plan.modules.iter().map(|m| {
        let action = describe::action_by(&m.action, m.method.as_deref());
        (m.name.as_str(), (action, &m.shape))
    });
    let groups = collapse(keys);
    let mut table = Table::new(&[
        ("module", Align::Left),
        ("action", Align::Left),
        ("shape", Align::Left),
        ("count", Align::Right),
        ("read", Align::Right),
        ("written", Align::Right),
    ]);
    for group in groups.iter().take(MAX_ROWS) {
        let members = || group.members.iter().map(|&i| &plan.modules[i]);
        table.row([
            Name(&group.name).to_string(),
            group.key.0.clone(),
            output::shape(group.key.1),
            group.members.len().to_string(),
            output::bytes(members().map(|m| m.source_bytes).sum()),
            output::bytes(members().map(|m| m.output_bytes).sum()),
        ]);
    }
    (table, groups.len().saturating_sub(MAX_ROWS))
}

/// Output files with their exact lengths.
pub(super) fn files(files: &[(String, u64)]) -> Table {
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("bytes", Align::Right),
        ("size", Align::Right),
    ]);
    for (name, len_bytes) in files.iter().take(MAX_ROWS) {
        table.row([
            Name(name).to_string(),
            output::count(*len_bytes),
            output::bytes(*len_bytes),
        ]);
    }
    table
}

fn totals(job: &Job, plan: &Plan<'_>) -> Text {
    let mut text = Text::default();
    if let Some(hidden @ 1..) = plan.files.len().checked_sub(MAX_ROWS) {
        text.line(format_args!("  ... and {hidden} more files"));
    }
    let n = output::counted(output::len(plan.files.len()), "file");
    let all = output::bytes(total(&plan.files));
    text.line(format_args!(
        "\n  {n}, {all} in all, to {}",
        Name(&path(&job.destination))
    ));
    text.line(format_args!(
        "  peak memory of buffers {}, free disk needed {}",
        output::bytes(plan.peak_memory_bytes),
        output::bytes(plan.scratch_bytes),
    ));
    if plan.peak_statistics_bytes > 0 {
        text.line(format_args!(
            "  beside the budget: {} for the largest second moment and what is derived from it",
            output::bytes(plan.peak_statistics_bytes),
        ));
    }
    text.line(format_args!("  nothing was written: this was a dry run"));
    text
}

fn record(job: &Job, plan: &Plan<'_>) -> Value {
    let modules = plan.modules.iter().map(|module| {
        let (action, to) = describe::action_parts(&module.action);
        json!({
            "name": module.name,
            "action": action,
            "scheme_or_convention": to,
            "label": describe::label(&module.action),
            "method": module.method,
            "effort": module.effort.map(Effort::name),
            "shape": module.shape,
            "source_bytes": module.source_bytes,
            "output_bytes": module.output_bytes,
        })
    });
    let rest = json!({
        "files": files_record(&plan.files),
        "output_bytes": total(&plan.files),
        "peak_memory_bytes": plan.peak_memory_bytes,
        "peak_statistics_bytes": plan.peak_statistics_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "modules": modules.collect::<Value>(),
        "notes": plan.notes,
    });
    super::record(job, rest)
}
