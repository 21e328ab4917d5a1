//! The comparison for people: a line for each level, then what differs most.

use std::collections::BTreeMap;
use std::io;

use safequant::audit::diff::{
    Compared, Diff, DocumentChange, Level, Scales, Sums, Weight, WeightDiff,
};
use serde_json::Value;

use crate::output::{self, Align, Message, Name, Output, Table, Text, count, counted, len, real};
use crate::plan::Diffing;

/// Entries of a list, and rows of a table.
const MAX_ROWS: usize = 12;
/// Characters of a value that are shown.
const MAX_VALUE_CHARS: usize = 60;

/// The whole report.
pub(super) fn print(job: &Diffing, found: &Diff, output: Output) -> io::Result<()> {
    let mut text = Text::default();
    for (letter, at) in [("A", 0), ("B", 1)] {
        let conventions = match &found.conventions[at][..] {
            [] => "dense".to_owned(),
            ids => ids.join(", "),
        };
        let source = job.sources[at].to_string_lossy();
        text.line(format_args!("{letter}  {} ({conventions})", Name(&source)));
    }
    text.line(format_args!(""));
    summary(&mut text, found, output);
    for note in &found.notes {
        text.line(format_args!("  note: {}", Message(note)));
    }
    one_sided(&mut text, found, output);
    structure(&mut text, found, output);
    documents(&mut text, found, output);
    output::data(text.as_str())?;
    worst(found, output)?;
    let verdict = match (found.is_equal(), found.tolerance > 0.0) {
        (true, false) => "equal",
        (true, true) => "equal within the tolerance",
        (false, _) => "different",
    };
    output::data(&format!("\n{}\n", output.heading(verdict)))
}

/// A line for each level.
fn summary(text: &mut Text, found: &Diff, output: Output) {
    let sums = found.sums();
    for level in &found.levels {
        let what = match level {
            Level::Structure => of_structure(found, &sums),
            Level::Config => of_documents(found),
            Level::Codes => of_codes(&sums),
            Level::Values => of_values(&sums),
        };
        // Padded before it is painted.
        let name = output.heading(&format!("{:<10}", level.name()));
        text.line(format_args!("  {name} {what}"));
    }
}

fn of_structure(found: &Diff, sums: &Sums) -> String {
    let [a, b] = &found.only;
    let changed = match sums.n_changed {
        0 => "no differences".to_owned(),
        n => format!("{} differ", count(n)),
    };
    let alone = match (a.len(), b.len()) {
        (0, 0) => String::new(),
        (a, b) => format!("; {} only in A, {} only in B", count(len(a)), count(len(b))),
    };
    format!(
        "{} in both, {changed}{alone}",
        counted(sums.n_weights, "tensor")
    )
}

fn of_documents(found: &Diff) -> String {
    if found.documents.is_empty() {
        return "no differences".to_owned();
    }
    let shown = found.documents.iter().take(4).map(|document| {
        let what = match document.found {
            [true, false] => "only in A".to_owned(),
            [false, true] => "only in B".to_owned(),
            [_, _] => counted(document.n_changes, "value"),
        };
        format!("{} ({what})", Name(&document.name))
    });
    let shown: Vec<String> = shown.collect();
    let more = match found.documents.len().saturating_sub(shown.len()) {
        0 => String::new(),
        n => format!(" and {}", counted(len(n), "other document")),
    };
    format!("{}{more}", shown.join(", "))
}

fn of_codes(sums: &Sums) -> String {
    let not = not_compared(sums.n_codes_not_compared);
    if sums.n_coded == 0 {
        return format!("no codes compared{not}");
    }
    let share = match sums.codes.n_flipped {
        0 => String::new(),
        n => format!(" ({})", percent(n, sums.codes.n)),
    };
    let codes = format!(
        "{} of {} flipped{share} in {}",
        count(sums.codes.n_flipped),
        counted(sums.codes.n, "code"),
        counted(sums.n_coded, "weight")
    );
    let zeros = differ(sums.zeros.n_differ, sums.zeros.n, "zero point");
    let parts = [Some(codes), of_scales(&sums.scales), zeros];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{}{not}", parts.join(", "))
}

fn of_scales(scales: &Scales) -> Option<String> {
    let differ = differ(scales.n_differ, scales.n, "scale")?;
    let ratio = match (scales.n_differ, scales.min_ratio, scales.max_ratio) {
        (1.., Some(min), Some(max)) => format!(" (B is {min:.4} to {max:.4} times A)"),
        _ => String::new(),
    };
    let grids = if scales.is_per_weight {
        " (granularity differs)"
    } else {
        ""
    };
    Some(format!("{differ}{ratio}{grids}"))
}

/// How many differ, where there are any.
fn differ(n_differ: u64, n: u64, noun: &str) -> Option<String> {
    (n > 0).then(|| format!("{} of {} differ", count(n_differ), counted(n, noun)))
}

fn of_values(sums: &Sums) -> String {
    let near = match sums.n_not_equal.saturating_sub(sums.n_values_differ) {
        0 => String::new(),
        n => format!(", {} within the tolerance", count(n)),
    };
    let not = not_compared(sums.n_values_not_compared);
    match sums.n_values_differ {
        0 if sums.n_valued == 0 => format!("no values compared{not}"),
        0 if sums.n_not_equal == 0 => {
            format!("all of {} are equal{not}", counted(sums.n_valued, "tensor"))
        }
        n => format!(
            "{} of {} differ{near}{not}",
            count(n),
            counted(sums.n_valued, "tensor")
        ),
    }
}

fn not_compared(n: u64) -> String {
    match n {
        0 => String::new(),
        n => format!("; {} cannot be compared", count(n)),
    }
}

fn percent(part: u64, all: u64) -> String {
    format!("{:.3} %", 100.0 * real(part) / real(all.max(1)))
}

/// What only one of both has.
fn one_sided(text: &mut Text, found: &Diff, output: Output) {
    for (letter, only) in ["A", "B"].into_iter().zip(&found.only) {
        if only.is_empty() {
            continue;
        }
        let heading = output.heading(&format!("Only in {letter}"));
        text.line(format_args!("\n{heading}"));
        let line = |weight: &Weight| {
            let shape = output::shape(&weight.shape);
            format!("{} {shape} {}", Name(&weight.name), Message(&weight.form))
        };
        list(text, only.iter().map(line), only.len());
    }
}

/// Changes of structure, the same ones together.
fn structure(text: &mut Text, found: &Diff, output: Output) {
    let mut same: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    let mut renamed = (0, None);
    for weight in &found.weights {
        for change in &weight.changes {
            if change.what == "name" {
                renamed.0 += 1;
                renamed.1.get_or_insert(change);
                continue;
            }
            let key = (change.what.as_str(), change.a.as_str(), change.b.as_str());
            same.entry(key).or_default().push(&weight.a.name);
        }
    }
    if same.is_empty() && renamed.0 == 0 {
        return;
    }
    text.line(format_args!("\n{}", output.heading("Structure")));
    let mut groups: Vec<_> = same.into_iter().collect();
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    if let (n, Some(change)) = renamed {
        let (a, b) = (Name(&change.a), Name(&change.b));
        text.line(format_args!(
            "  name: {a} -> {b}  ({})",
            counted(n, "tensor")
        ));
    }
    let n = groups.len();
    let line = |((what, a, b), names): ((&str, &str, &str), Vec<&str>)| {
        let which = match &names[..] {
            [name] => Name(name).to_string(),
            [name, ..] => format!(
                "{}, {} ...",
                counted(len(names.len()), "tensor"),
                Name(name)
            ),
            [] => String::new(),
        };
        format!("{what}: {} -> {}  ({which})", Message(a), Message(b))
    };
    list(text, groups.into_iter().map(line), n);
}

fn documents(text: &mut Text, found: &Diff, output: Output) {
    for document in found.documents.iter().filter(|d| d.n_changes > 0) {
        let heading = output.heading(&Name(&document.name).to_string());
        text.line(format_args!("\n{heading}"));
        let line = |change: &DocumentChange| {
            let path = match change.path.as_str() {
                "" => "the whole document",
                path => path,
            };
            let (a, b) = (value(change.a.as_ref()), value(change.b.as_ref()));
            format!("{}: {a} -> {b}", Name(path))
        };
        let n = usize::try_from(document.n_changes).unwrap_or(usize::MAX);
        list(text, document.changes.iter().map(line), n);
    }
}

/// A value of a document, cut.
fn value(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "(none)".to_owned();
    };
    let text = value.to_string();
    let cut: String = text.chars().take(MAX_VALUE_CHARS).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{dots}", Message(&cut))
}

/// The first lines, and how many there are besides.
fn list(text: &mut Text, lines: impl Iterator<Item = String>, n: usize) {
    for line in lines.take(MAX_ROWS) {
        text.line(format_args!("  {line}"));
    }
    if n > MAX_ROWS {
        let more = count(len(n - MAX_ROWS));
        text.line(format_args!("  ... and {more} more; --json lists all"));
    }
}

/// The weights whose codes or values differ, the worst first.
fn worst(found: &Diff, output: Output) -> io::Result<()> {
    let differs = |weight: &&WeightDiff| {
        let of = |level| weight.differs(level, 0.0);
        of(Level::Codes) || of(Level::Values)
    };
    let mut weights: Vec<&WeightDiff> = found.weights.iter().filter(differs).collect();
    if weights.is_empty() {
        return Ok(());
    }
    weights.sort_by(|a, b| {
        let by_value = badness(b).total_cmp(&badness(a));
        let by_code = flipped(b).cmp(&flipped(a));
        by_value.then(by_code).then_with(|| a.a.name.cmp(&b.a.name))
    });
    let mut table = Table::new(&[
        ("weight", Align::Left),
        ("flipped", Align::Right),
        ("scales differ", Align::Right),
        ("B / A", Align::Left),
        ("zeros differ", Align::Right),
        ("rel. L2", Align::Right),
        ("SQNR, dB", Align::Right),
        ("cosine", Align::Right),
        ("max error", Align::Right),
    ]);
    for weight in weights.iter().take(MAX_ROWS) {
        table.row(row(weight));
    }
    let title = match weights.len() {
        n if n > MAX_ROWS => format!("Worst {MAX_ROWS} of {}", counted(len(n), "weight")),
        _ => "Worst first".to_owned(),
    };
    output::data(&format!("\n{}\n", output.heading(&title)))?;
    output.table(&table)
}

/// The larger, the further apart.
fn badness(weight: &WeightDiff) -> f64 {
    match &weight.values {
        Compared::Not(_) => f64::INFINITY,
        Compared::Found(values) if values.n_not_finite > 0 => f64::INFINITY,
        Compared::Found(values) => match &values.loss {
            Some(loss) => loss.relative_l2(),
            None => real(values.n_differ) / real(values.n.max(1)),
        },
        Compared::Nothing | Compared::SameBytes => 0.0,
    }
}

fn flipped(weight: &WeightDiff) -> u64 {
    weight.codes.found().map_or(0, |codes| codes.n_flipped)
}

fn row(weight: &WeightDiff) -> [String; 9] {
    let of = |n: u64, all: u64| format!("{} ({})", count(n), percent(n, all));
    let scales = weight.scales.found();
    let ratio = scales.and_then(|s| Some((s.min_ratio?, s.max_ratio?)));
    let [l2, sqnr, cosine, error] = figures(weight);
    [
        Name(&weight.a.name).to_string(),
        cell(&weight.codes, |codes| of(codes.n_flipped, codes.n)),
        cell(&weight.scales, |scales| of(scales.n_differ, scales.n)),
        ratio.map_or_else(String::new, |(min, max)| format!("{min:.4} to {max:.4}")),
        cell(&weight.zeros, |zeros| of(zeros.n_differ, zeros.n)),
        l2,
        sqnr,
        cosine,
        error,
    ]
}

fn cell<T>(compared: &Compared<T>, found: impl Fn(&T) -> String) -> String {
    match compared {
        Compared::Nothing => "-".to_owned(),
        Compared::SameBytes => "same bytes".to_owned(),
        Compared::Not(why) => Message(why).to_string(),
        Compared::Found(value) => found(value),
    }
}

/// Relative L2, SQNR, cosine and largest error.
fn figures(weight: &WeightDiff) -> [String; 4] {
    let dash = || "-".to_owned();
    let loss = match &weight.values {
        Compared::Found(values) if values.n_differ == 0 => {
            return ["equal".to_owned(), dash(), dash(), dash()];
        }
        Compared::Found(values) => {
            let Some(loss) = &values.loss else {
                let n = counted(values.n_differ, "element");
                return [n, dash(), dash(), dash()];
            };
            loss
        }
        Compared::Nothing | Compared::SameBytes | Compared::Not(_) => {
            let text = cell(&weight.values, |_| String::new());
            return [text, dash(), dash(), dash()];
        }
    };
    [
        format!("{:.6}", loss.relative_l2()),
        format!("{:.2}", loss.sqnr_db()),
        format!("{:.6}", loss.cosine()),
        format!("{:.3e}", loss.max_error),
    ]
}
