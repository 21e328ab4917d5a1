//! Annotations of GitHub's workflows: `::error file=..,title=..::message`.

use std::fmt::Write as _;

use super::{About, place_text, sentence};
use crate::{Finding, Report, Severity};

/// One line for each finding.
pub fn github(report: &Report<'_>, about: &About) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &line(finding, about);
    }
    for (code, message) in super::problems(report) {
        let _ = writeln!(text, "::error title={}::{}", property(code), data(&message));
    }
    text
}

fn line(finding: &Finding, about: &About) -> String {
    let command = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let name = crate::rule(finding.rule).map_or("", |rule| rule.name);
    let file = finding.place.file.as_deref().unwrap_or(&about.source);
    let title = format!("{} {name}", finding.rule);
    let message = format!("{}: {}", place_text(&finding.place), sentence(finding));
    format!(
        "::{command} file={},title={}::{}\n",
        property(file),
        property(&title),
        data(message.trim_start_matches(": "))
    )
}

/// What stands behind the second `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// What stands before it.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;

    #[test]
    fn no_name_ends_a_line_or_a_property() {
        let finding = Finding {
            rule: "SC010",
            severity: Severity::Error,
            place: Place::file("a,b::c\n::error::x"),
            message: "100 %\r\n".to_owned(),
            expected: String::new(),
            found: String::new(),
            help: String::new(),
        };
        let line = line(&finding, &About::default());
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.starts_with("::error file=a%2Cb%3A%3Ac%0A%3A%3Aerror%3A%3Ax,title=SC010 "));
        assert!(line.ends_with("100 %25%0D%0A\n"));
    }
}
