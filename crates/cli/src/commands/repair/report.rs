//! What a repair changes, for people and for programs.

use safequant::audit::repair::Reason;
use safequant::rewrite::repair::{ChangedDocument, RepairedFile};
use serde_json::{Value, json};

use super::diff::{Hunk, hunks, shortened};
use crate::exit::Failure;
use crate::output::{self, Align, Message, Name, Output, Table, Text, counted, len};
use crate::plan::{Mode, Repair};

/// Lines of reasons, of differences and of files that are shown; `--json` has all.
const MAX_LINES: usize = 200;

/// Shows it.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn print(
    job: &Repair,
    reasons: &[Reason],
    documents: &[ChangedDocument],
    files: &[RepairedFile],
    output: Output,
) -> Result<(), Failure> {
    if job.record == output::Record::Json {
        return Ok(output::json(&record(job, reasons, documents, files))?);
    }
    let mut text = Text::default();
    text.line(format_args!("{}", output.heading("Changes")));
    for reason in reasons.iter().take(MAX_LINES) {
        text.line(format_args!("  {} {}", reason.rule, Message(&reason.text)));
    }
    more(&mut text, reasons.len());
    for document in documents {
        changed(&mut text, document, output);
    }
    text.line(format_args!("\n{}", output.heading("Files")));
    output::data(text.as_str())?;
    output.table(&table(files))?;
    let mut text = Text::default();
    more(&mut text, files.len());
    closing(&mut text, job, files);
    Ok(output::data(text.as_str())?)
}

fn more(text: &mut Text, n: usize) {
    if let Some(hidden @ 1..) = n.checked_sub(MAX_LINES) {
        text.line(format_args!("  ... and {hidden} more (--json lists all)"));
    }
}

/// The lines that differ.
fn changed(text: &mut Text, document: &ChangedDocument, output: Output) {
    let old = document.old.as_deref().unwrap_or_default();
    let (old, new): (Vec<&str>, Vec<&str>) =
        (old.lines().collect(), document.new.lines().collect());
    let name = Name(&document.name).to_string();
    let what = if document.old.is_some() { "" } else { " (new)" };
    text.line(format_args!("\n{}{what}", output.heading(&name)));
    let mut left = MAX_LINES;
    for hunk in hunks(&old, &new) {
        let n = hunk.old.len() + hunk.new.len();
        text.line(format_args!("  line {}", hunk.old_at + 1));
        for (sign, line) in lines(&hunk).take(left) {
            text.line(format_args!("  {sign} {}", Message(&line)));
        }
        left = left.saturating_sub(n);
        if left == 0 {
            text.line(format_args!("  ... and more (--json has the whole texts)"));
            return;
        }
    }
}

fn lines<'a>(hunk: &'a Hunk<'_>) -> impl Iterator<Item = (char, String)> + 'a {
    let pair = match (hunk.old.as_slice(), hunk.new.as_slice()) {
        ([old], [new]) => Some(shortened(old, new)),
        _ => None,
    };
    let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let (old, new) = pair.map_or_else(
        || (owned(&hunk.old), owned(&hunk.new)),
        |(old, new)| (vec![old], vec![new]),
    );
    let old = old.into_iter().map(|line| ('-', line));
    old.chain(new.into_iter().map(|line| ('+', line)))
}

fn table(files: &[RepairedFile]) -> Table {
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("how", Align::Left),
        ("bytes", Align::Right),
    ]);
    for file in files.iter().take(MAX_LINES) {
        table.row([
            Name(&file.name).to_string(),
            file.how.word().to_owned(),
            output::count(file.len_bytes),
        ]);
    }
    table
}

fn closing(text: &mut Text, job: &Repair, files: &[RepairedFile]) {
    let destination = job.options.destination.to_string_lossy().into_owned();
    let n = counted(len(files.len()), "file");
    let all = files
        .iter()
        .fold(0, |sum: u64, file| sum.saturating_add(file.len_bytes));
    let all = output::bytes(all);
    text.line(format_args!(
        "\n  {n}, {all} in all, to {}",
        Name(&destination)
    ));
    match job.mode {
        Mode::DryRun => text.line(format_args!("  nothing was written: this was a dry run")),
        Mode::Run => {}
    }
}

fn record(
    job: &Repair,
    reasons: &[Reason],
    documents: &[ChangedDocument],
    files: &[RepairedFile],
) -> Value {
    let reason = |reason: &Reason| json!({ "rule": reason.rule, "text": reason.text });
    let document = |d: &ChangedDocument| json!({ "name": d.name, "old": d.old, "new": d.new });
    let file = |file: &RepairedFile| json!({ "name": file.name, "bytes": file.len_bytes, "how": file.how.word() });
    json!({
        "schema_version": output::SCHEMA_VERSION,
        "command": "repair",
        "dry_run": job.mode == Mode::DryRun,
        "source": job.source.to_string_lossy(),
        "destination": job.options.destination.to_string_lossy(),
        "rules": job.rules.iter().map(|rule| rule.id).collect::<Value>(),
        "changes": reasons.iter().map(reason).collect::<Value>(),
        "documents": documents.iter().map(document).collect::<Value>(),
        "files": files.iter().map(file).collect::<Value>(),
    })
}
