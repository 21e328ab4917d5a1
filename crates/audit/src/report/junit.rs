//! `JUnit` XML: a test case for each rule that ran, failed where it found an error or a warning.

use std::fmt::Write as _;

use super::{About, place_text, sentence};
use crate::{Finding, Report, Rule, Severity};

/// The whole report as one suite.
pub fn junit(report: &Report<'_>, about: &About) -> String {
    let is_failure = |rule: &&&Rule| {
        let mut findings = report.findings.iter();
        findings.any(|f| f.rule == rule.id && f.severity != Severity::Note)
    };
    let problems = super::problems(report);
    let n_failures = report.ran.iter().filter(is_failure).count();
    let n_tests = report.ran.len() + report.skipped.len() + problems.len();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = write!(
        text,
        "<testsuites name=\"safequant audit\" tests=\"{n_tests}\" failures=\"{n_failures}\" errors=\"{}\">\n\
         <testsuite name=\"{}\" tests=\"{n_tests}\" failures=\"{n_failures}\" errors=\"{}\" skipped=\"{}\">\n",
        problems.len(),
        escape(&about.source),
        problems.len(),
        report.skipped.len()
    );
    for rule in &report.ran {
        let findings: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|f| f.rule == rule.id)
            .collect();
        text += &case(rule, &findings);
    }
    for rule in &report.skipped {
        let _ = writeln!(
            text,
            "<testcase classname=\"{}\" name=\"{}\"><skipped message=\"needs --depth {}\"/></testcase>",
            rule.id,
            rule.name,
            rule.depth().name()
        );
    }
    for (code, message) in &problems {
        let _ = writeln!(
            text,
            "<testcase classname=\"problem\" name=\"{code}\"><error message=\"{}\"/></testcase>",
            escape(message)
        );
    }
    text + "</testsuite>\n</testsuites>\n"
}

fn case(rule: &Rule, findings: &[&Finding]) -> String {
    let lines = |of: &dyn Fn(&Finding) -> bool| {
        let chosen = findings.iter().filter(|finding| of(finding));
        let lines: Vec<String> = chosen
            .map(|f| format!("{}: {}", place_text(&f.place), sentence(f)))
            .collect();
        lines
    };
    let failures = lines(&|finding| finding.severity != Severity::Note);
    let notes = lines(&|finding| finding.severity == Severity::Note);
    let mut text = format!(
        "<testcase classname=\"{}\" name=\"{}\">",
        rule.id, rule.name
    );
    if !failures.is_empty() {
        let _ = write!(
            text,
            "<failure message=\"{}\" type=\"{}\">{}</failure>",
            escape(rule.summary),
            rule.severity.name(),
            escape(&failures.join("\n"))
        );
    }
    if !notes.is_empty() {
        let _ = write!(
            text,
            "<system-out>{}</system-out>",
            escape(&notes.join("\n"))
        );
    }
    text + "</testcase>\n"
}

/// Text for element content and attributes; what XML 1.0 cannot hold at all becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            '\t' | '\n' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_attribute() {
        assert_eq!(
            escape("<a b=\"c\">&'\u{1}\n"),
            "&lt;a b=&quot;c&quot;&gt;&amp;&apos;\u{fffd}&#10;"
        );
    }
}
