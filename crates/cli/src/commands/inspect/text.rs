//! `inspect` for people.

use std::io;

use safequant::container::CheckpointKind;

use super::report::{Report, Sum};
use crate::args::InspectArgs;
use crate::collapse::collapse;
use crate::exit::Failure;
use crate::output::{self, Align, Message, Name, Output, Table, Text, len};

/// Rows that a table of groups or files shows; `--tensors` and `--json` have no such bound.
const MAX_ROWS: usize = 200;

/// Lines of evidence shown for a convention.
const MAX_EVIDENCE: usize = 10;

/// Prints the report.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn print(
    args: &InspectArgs,
    report: &Report,
    failure: Option<&Failure>,
    output: Output,
) -> io::Result<()> {
    output::data(overview(args, report, failure).as_str())?;
    section(output, "Files", &files(report), report.files.len())?;
    section(output, "Dtypes", &dtypes(report), 0)?;
    if report.is_bound {
        section(output, "Schemes", &schemes(report), 0)?;
    }
    section(output, "Roles", &roles(report), 0)?;
    if args.tensors {
        return section(output, "Tensors", &tensors(report), 0);
    }
    let (table, n_groups) = groups(report);
    section(output, "Modules", &table, n_groups)
}

/// A heading and its table; `n_rows` is what there is, of which the table may show less.
fn section(output: Output, title: &str, table: &Table, n_rows: usize) -> io::Result<()> {
    output::data(&format!("\n{}\n", output.heading(title)))?;
    output.table(table)?;
    match n_rows.checked_sub(table.len()) {
        None | Some(0) => Ok(()),
        Some(hidden) => output::data(&format!("  ... and {hidden} more (--json lists all)\n")),
    }
}

fn overview(args: &InspectArgs, report: &Report, failure: Option<&Failure>) -> Text {
    let kind = match report.kind {
        CheckpointKind::File => "file",
        CheckpointKind::Directory => "directory",
        CheckpointKind::Index => "index",
    };
    let (stored, total, quantized) = (report.stored(), report.total(), report.quantized());
    let mut text = Text::default();
    text.line(format_args!(
        "{}: {kind}, {} in {}, {}",
        Name(&args.source.to_string_lossy()),
        output::bytes(report.files.iter().map(|file| file.1).sum()),
        output::counted(len(report.files.len()), "file"),
        output::counted(stored.tensors, "tensor"),
    ));
    if let Some(filter) = &args.filter {
        text.line(format_args!("  only what matches  {}", Name(filter)));
    }
    text.line(format_args!(
        "  stored elements    {}",
        output::count(stored.n_elements)
    ));
    if report.is_bound {
        parameters(&mut text, total, quantized);
    }
    conventions(&mut text, report, failure);
    text
}

fn parameters(text: &mut Text, total: Sum, quantized: Sum) {
    let bits = |sum: Sum| output::figure(output::bits_per_weight(sum.len_bytes, sum.parameters));
    text.line(format_args!(
        "  parameters         {}",
        output::count(total.parameters)
    ));
    text.line(format_args!("  bits per weight    {}", bits(total)));
    if quantized.count > 0 {
        text.line(format_args!(
            "  quantized          {}, {} parameters, {} bits per weight",
            output::counted(quantized.count, "module"),
            output::count(quantized.parameters),
            bits(quantized),
        ));
    }
}

fn conventions(text: &mut Text, report: &Report, failure: Option<&Failure>) {
    if let Some(failure) = failure {
        let reason = failure.message();
        return text.line(format_args!(
            "  conventions        not understood: {}",
            Message(&reason)
        ));
    }
    if report.conventions.is_empty() {
        return text.line(format_args!(
            "  conventions        none: nothing is quantized"
        ));
    }
    for (id, evidence) in &report.conventions {
        text.line(format_args!("  convention         {id}"));
        for line in evidence.iter().take(MAX_EVIDENCE) {
            text.line(format_args!("                     - {}", Name(line)));
        }
        if let Some(hidden @ 1..) = evidence.len().checked_sub(MAX_EVIDENCE) {
            text.line(format_args!("                     - and {hidden} more"));
        }
    }
    if !report.orphans.is_empty() {
        let n = output::counted(len(report.orphans.len()), "tensor");
        text.line(format_args!("  without a weight   {n}"));
    }
}

fn files(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("tensors", Align::Right),
        ("size", Align::Right),
    ]);
    for (name, len_bytes, n_tensors) in report.files.iter().take(MAX_ROWS) {
        table.row([
            Name(name).to_string(),
            output::count(len(*n_tensors)),
            output::bytes(*len_bytes),
        ]);
    }
    table
}

fn dtypes(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("dtype", Align::Left),
        ("tensors", Align::Right),
        ("elements", Align::Right),
        ("size", Align::Right),
    ]);
    for (dtype, sum) in report.dtypes() {
        table.row([
            dtype.name().to_owned(),
            output::count(sum.tensors),
            output::count(sum.n_elements),
            output::bytes(sum.len_bytes),
        ]);
    }
    table
}

/// Count, parameters, size and bits per weight under two titles of one's own.
fn sums(first: &'static str, second: &'static str) -> Table {
    Table::new(&[
        (first, Align::Left),
        (second, Align::Left),
        ("count", Align::Right),
        ("parameters", Align::Right),
        ("size", Align::Right),
        ("bits/weight", Align::Right),
    ])
}

fn sum_cells(first: String, second: String, sum: Sum) -> [String; 6] {
    [
        first,
        second,
        output::count(sum.count),
        output::count(sum.parameters),
        output::bytes(sum.len_bytes),
        output::figure(output::bits_per_weight(sum.len_bytes, sum.parameters)),
    ]
}

fn schemes(report: &Report) -> Table {
    let mut table = sums("convention", "scheme");
    for ((convention, scheme), sum) in report.schemes() {
        table.row(sum_cells(
            convention.unwrap_or("-").to_owned(),
            scheme.to_owned(),
            sum,
        ));
    }
    table
}

fn roles(report: &Report) -> Table {
    if report.is_bound {
        let mut table = sums("role", "");
        for (place, sum) in report.places() {
            table.row(sum_cells(place.word().to_owned(), String::new(), sum));
        }
        return table;
    }
    let mut table = Table::new(&[
        ("role", Align::Left),
        ("tensors", Align::Right),
        ("size", Align::Right),
    ]);
    for (place, sum) in report.places() {
        table.row([
            place.word().to_owned(),
            output::count(sum.count),
            output::bytes(sum.len_bytes),
        ]);
    }
    table
}

/// Modules and plain tensors collapsed, at most [`MAX_ROWS`] rows, and the number of rows there are.
fn groups(report: &Report) -> (Table, usize) {
    let keys = report
        .entries
        .iter()
        .map(|e| (e.name.as_str(), (e.convention, &e.scheme, &e.shape)));
    let groups = collapse(keys);
    let mut table = Table::new(&[
        ("module", Align::Left),
        ("scheme", Align::Left),
        ("shape", Align::Left),
        ("count", Align::Right),
        ("size", Align::Right),
    ]);
    for group in groups.iter().take(MAX_ROWS) {
        let size = group
            .members
            .iter()
            .map(|&i| report.entries[i].len_bytes)
            .sum();
        table.row([
            Name(&group.name).to_string(),
            group.key.1.clone(),
            output::shape(group.key.2),
            output::count(len(group.members.len())),
            output::bytes(size),
        ]);
    }
    (table, groups.len())
}

fn tensors(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("dtype", Align::Left),
        ("shape", Align::Left),
        ("bytes", Align::Right),
        ("file", Align::Left),
    ]);
    for tensor in &report.tensors {
        table.row([
            Name(&tensor.name).to_string(),
            tensor.dtype.name().to_owned(),
            output::shape(&tensor.shape),
            output::count(tensor.len_bytes),
            Name(&tensor.file).to_string(),
        ]);
    }
    table
}
