//! The one place that writes text: standard output (data), standard error (messages), color, escaping.
//!
//! Names of tensors and values of configs are hostile input (reliability.md P9): no C0, DEL, C1 or bidirectional control
//! reaches a terminal or a log except our own newline, and names are cut. JSON is escaped instead of cut: it stays lossless.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};

use safequant::audit::Severity;
use serde_json::{Value, json};

use crate::args::Color;
use crate::exit::{Exit, Failure};

/// Characters of a name that are shown.
const MAX_NAME_CHARS: usize = 200;

/// Characters of a message that are shown: it may carry several names.
const MAX_MESSAGE_CHARS: usize = 2000;

/// Lines of notes that one run prints.
pub(crate) const MAX_NOTES: usize = 200;

/// The version of every JSON record this program prints.
pub(crate) const SCHEMA_VERSION: u64 = 1;

/// Where text goes, and how it is decorated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    color_out: bool,
    color_err: bool,
    err_is_terminal: bool,
}

impl Output {
    /// Decides about color, once.
    pub(crate) fn new(color: Color) -> Self {
        let (out, err) = (stdout().is_terminal(), stderr().is_terminal());
        let decide = |is_terminal| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_terminal && !color_is_unwanted(),
        };
        Self {
            color_out: decide(out),
            color_err: decide(err),
            err_is_terminal: err,
        }
    }

    /// Whether a progress bar can be drawn.
    pub(crate) fn draws(self) -> bool {
        self.err_is_terminal
    }

    /// Writes a table to standard output.
    ///
    /// # Errors
    /// As [`data`].
    pub(crate) fn table(self, table: &Table) -> io::Result<()> {
        data(&table.render(self.color_out))
    }

    /// A heading for standard output.
    pub(crate) fn heading(self, text: &str) -> String {
        paint(self.color_out, "1", text)
    }

    /// The word for a severity, for standard output.
    pub(crate) fn severity(self, severity: Severity) -> String {
        let style = match severity {
            Severity::Error => "1;31",
            Severity::Warning => "1;33",
            Severity::Note => "1;36",
        };
        paint(self.color_out, style, severity.name())
    }

    /// Writes `note: ...` to standard error.
    pub(crate) fn remark(self, text: &str) {
        let _ = writeln!(
            stderr().lock(),
            "{} {}",
            paint(self.color_err, "1;36", "note:"),
            Message(text)
        );
    }

    /// Writes a failure to standard error and, if the verb speaks JSON, as a record to standard output.
    pub(crate) fn failure(self, failure: &Failure, record: Record) {
        if matches!(failure.exit(), Exit::Done | Exit::Findings) {
            return;
        }
        let label = paint(self.color_err, "1;31", "error:");
        let mut text = format!("{label} {}\n", Message(&failure.message()));
        if let Some(help) = failure.help() {
            let label = paint(self.color_err, "1;32", "help:");
            let _ = writeln!(text, "  {label} {}", Message(help));
        }
        let _ = stderr().lock().write_all(text.as_bytes());
        match record {
            Record::None => {}
            // If standard output is what failed, there is nowhere left to say so.
            Record::Json => drop(json(&json!({
                "schema_version": SCHEMA_VERSION,
                "error": error_record(failure),
            }))),
        }
    }

    /// Writes clap's answer: help and version to standard output, usage errors to standard error.
    ///
    /// # Errors
    /// As [`data`].
    pub(crate) fn clap(self, error: &clap::Error) -> io::Result<()> {
        if error.use_stderr() {
            let text = multiline(&error.render().to_string());
            let _ = stderr().lock().write_all(text.as_bytes());
            return Ok(());
        }
        let text = error.render();
        data(&if self.color_out {
            text.ansi().to_string()
        } else {
            text.to_string()
        })
    }
}

/// Writes text that is already fit for a terminal to standard output.
///
/// # Errors
/// The system's answer; `BrokenPipe` if the reader went away.
pub(crate) fn data(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a JSON value to standard output.
///
/// # Errors
/// As [`data`].
pub(crate) fn json(value: &Value) -> io::Result<()> {
    data(&json_text(value))
}

/// Writes a line to standard error. Nobody can be told if that fails, so it is not reported.
pub(crate) fn note(text: &str) {
    let _ = writeln!(stderr().lock(), "{}", Message(text));
}

/// Lines for standard output, collected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    /// Adds a line: `text.line(format_args!(..))`. Names in it have passed through [`Name`].
    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{line}");
    }

    /// What was collected.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a failure is also wanted as a JSON record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// No: text only.
    None,
    /// Yes, on standard output.
    Json,
}

impl Record {
    /// As `--json` says.
    pub(crate) const fn of_switch(json: bool) -> Self {
        if json { Record::Json } else { Record::None }
    }
}

/// The `error` member of a JSON record.
pub(crate) fn error_record(failure: &Failure) -> Value {
    json!({ "code": failure.code(), "group": failure.group(), "message": failure.message() })
}

/// Adds the members of one object to another.
pub(crate) fn extend(object: &mut Value, members: Value) {
    if let (Value::Object(object), Value::Object(members)) = (object, members) {
        object.extend(members);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is output.rs")]
fn stdout() -> io::Stdout {
    io::stdout()
}

#[expect(clippy::disallowed_methods, reason = "this is output.rs")]
fn stderr() -> io::Stderr {
    io::stderr()
}

/// <https://no-color.org>: any non-empty value. A dumb terminal shows escape sequences as text.
#[expect(clippy::disallowed_methods, reason = "this is output.rs")]
fn color_is_unwanted() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || std::env::var_os("TERM").is_some_and(|v| v == "dumb")
}

fn paint(wanted: bool, style: &str, text: &str) -> String {
    if wanted {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Whether a character may not reach a terminal or a log: C0, DEL, C1, and everything that hides or reorders text.
fn is_hostile(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

/// A name from a file, made fit for a terminal: hostile characters escaped, at most 200 characters.
pub(crate) struct Name<'a>(pub(crate) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("\"\"");
        }
        write_escaped(f, self.0, MAX_NAME_CHARS)
    }
}

/// A message of one line, made fit for a terminal. Names in it are cut like names, as far as they can be told apart: what
/// a library says after a name of two megabytes is still shown.
pub(crate) struct Message<'a>(pub(crate) &'a str);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = 0;
        let mut word = 0;
        for c in self.0.chars() {
            word = if c == ' ' { 0 } else { word + 1 };
            match word {
                0..=MAX_NAME_CHARS => write_char(f, c)?,
                n if n == MAX_NAME_CHARS + 1 => f.write_str("...")?,
                _ => continue,
            }
            shown += 1;
            if shown == MAX_MESSAGE_CHARS {
                return f.write_str("...");
            }
        }
        Ok(())
    }
}

fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str, max_chars: usize) -> fmt::Result {
    for (i, c) in text.chars().enumerate() {
        if i == max_chars {
            return f.write_str("...");
        }
        write_char(f, c)?;
    }
    Ok(())
}

fn write_char(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    if is_hostile(c) {
        write!(f, "{}", c.escape_unicode())
    } else {
        f.write_char(c)
    }
}

/// Several lines, each made fit for a terminal (clap's usage errors quote what was typed).
fn multiline(text: &str) -> String {
    let mut shown = Text::default();
    text.lines()
        .for_each(|line| shown.line(format_args!("{}", Message(line))));
    shown.0
}

/// Indented JSON with every hostile character written as `\uXXXX`: valid and lossless.
pub(crate) fn json_text(value: &Value) -> String {
    let mut text = String::new();
    // `{:#}` of a `Value` is its indented form; C0 characters are escaped by serde_json, and what is left of the hostile
    // ones can only stand inside strings.
    for c in format!("{value:#}").chars() {
        if c != '\n' && is_hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text.push('\n');
    text
}

/// Which side of its column a cell stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under a heading, padded to the width of their columns.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that carry names have passed through [`Name`].
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Rows so far.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    fn render(&self, color: bool) -> String {
        let width = |i: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(i))
                .map(|cell| cell.chars().count());
            cells
                .chain([self.columns[i].0.chars().count()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let titles = self.columns.iter().map(|(title, _)| *title);
        let mut text = paint(color, "1", &self.line(&widths, titles));
        text.push('\n');
        for row in &self.rows {
            text += &self.line(&widths, row.iter().map(String::as_str));
            text.push('\n');
        }
        text
    }

    fn line<'a>(&self, widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
        let mut line = String::new();
        for ((cell, (_, align)), width) in cells.zip(&self.columns).zip(widths) {
            let pad = " ".repeat(width - cell.chars().count());
            let (left, right) = match align {
                Align::Left => ("", pad.as_str()),
                Align::Right => (pad.as_str(), ""),
            };
            let _ = write!(line, "  {left}{cell}{right}");
        }
        line.trim_end().to_owned()
    }
}

/// A number of bytes for people: `13.6 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = real(n) / 1024.0;
    let mut unit = 0;
    // What would be printed as 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count for people: `14,155,776`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 file`, `14,336 tensors`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A length as a count.
pub(crate) fn len(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A shape: `[384, 1536]`; a long one is cut.
pub(crate) fn shape(dims: &[u64]) -> String {
    const MAX_DIMS: usize = 8;
    match dims.get(..MAX_DIMS) {
        Some(head) if dims.len() > MAX_DIMS => {
            format!("{head:?} and {} more", dims.len() - MAX_DIMS)
        }
        Some(_) | None => format!("{dims:?}"),
    }
}

/// Bits per weight: `4.13`, or `-` where there is no weight.
pub(crate) fn bits_per_weight(len_bytes: u64, n_weights: u64) -> Option<f64> {
    (n_weights > 0).then(|| real(len_bytes) * 8.0 / real(n_weights))
}

/// A figure with two decimals, or `-`.
pub(crate) fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
}

/// A duration for people: `0.42 s`, `12.3 s`, `3 min 07 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.2} s");
    }
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = format!("{seconds:.0}").parse::<u64>().unwrap_or(u64::MAX);
    match whole / 3600 {
        0 => format!("{} min {:02} s", whole / 60, whole % 60),
        hours => format!("{hours} h {:02} min", whole % 3600 / 60),
    }
}

/// Billions of bytes per second: `1.24 GB/s`.
pub(crate) fn rate(len_bytes: u64, seconds: f64) -> String {
    format!("{:.2} GB/s", real(len_bytes) / seconds.max(1e-9) / 1e9)
}

/// A count as a number to compute figures with.
#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people: 53 bits are more than are shown"
)]
pub(crate) fn real(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hostile_survives() {
        let every: String = ('\0'..=char::MAX).collect();
        let shown = every
            .chars()
            .map(|c| Name(&c.to_string()).to_string())
            .collect::<String>();
        assert!(!shown.contains(is_hostile));
        assert!(!shown.contains(char::is_control));
        let json = json_text(&json!({ every.as_str(): every }));
        assert!(!json.replace('\n', "").contains(is_hostile));
        let back: Value = serde_json::from_str(&json).expect("valid JSON");
        assert_eq!(back[every.as_str()], every);
    }

    #[test]
    fn names_are_cut_at_200_characters() {
        let shown = Name(&"é".repeat(1 << 20)).to_string();
        assert_eq!(shown, format!("{}...", "é".repeat(200)));
    }

    #[test]
    fn what_follows_a_long_name_in_a_message_is_still_shown() {
        let message = format!("{}: expected 4, found 5", "x".repeat(1 << 21));
        let shown = Message(&message).to_string();
        assert_eq!(shown, format!("{}... expected 4, found 5", "x".repeat(200)));
        assert!(Message(&"a b ".repeat(10_000)).to_string().chars().count() <= 2003);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(duration(3.256), "3.26 s");
        assert_eq!(duration(187.0), "3 min 07 s");
        assert_eq!(duration(7265.0), "2 h 01 min");
        assert_eq!(figure(bits_per_weight(1, 2)), "4.00");
        assert_eq!(figure(bits_per_weight(1, 0)), "-");
    }

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right)]);
        table.row(["a".to_owned(), "100".to_owned()]);
        table.row(["long name".to_owned(), "1".to_owned()]);
        assert_eq!(
            table.render(false),
            "  name       size\n  a           100\n  long name     1\n"
        );
    }
}
