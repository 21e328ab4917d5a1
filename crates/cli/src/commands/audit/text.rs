//! The report for people: rule by rule, the gravest first, each place with what was expected, what was found and what to do.

use std::collections::BTreeMap;

use safequant::audit::profile::verdicts;
use safequant::audit::report::{About, place_text};
use safequant::audit::{Finding, Loss, Losses, Report, Severity, rule};

use crate::output::{Message, Name, Output, Text, count, counted, len};

/// Places of a rule that are shown; the other reports list all.
const MAX_PLACES: usize = 12;

/// Weights of the table of losses.
const MAX_LOSSES: usize = 12;

/// The whole report.
pub(super) fn render(report: &Report<'_>, about: &About, output: Output) -> String {
    let mut text = Text::default();
    let mut groups: BTreeMap<(std::cmp::Reverse<Severity>, &str), Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        let key = (std::cmp::Reverse(finding.severity), finding.rule);
        groups.entry(key).or_default().push(finding);
    }
    for ((severity, id), findings) in &groups {
        group(&mut text, severity.0, id, findings, output);
    }
    for error in report.unclaimed() {
        let label = output.severity(Severity::Error);
        text.line(format_args!(
            "{label} not audited: {}\n",
            Message(&error.to_string())
        ));
    }
    if let Some(losses) = &about.losses {
        lost(&mut text, losses, output);
    }
    runtimes(&mut text, report, output);
    super::super::tp_plan::degrees(&mut text, &report.subject, output);
    closing(&mut text, report, about);
    text.as_str().to_owned()
}

fn group(text: &mut Text, severity: Severity, id: &str, findings: &[&Finding], output: Output) {
    let (name, summary) = rule(id).map_or(("", ""), |rule| (rule.name, rule.summary));
    let label = output.severity(severity);
    text.line(format_args!(
        "{label} {} {name}: {summary}",
        output.heading(id)
    ));
    for finding in findings.iter().take(MAX_PLACES) {
        place(text, finding);
    }
    if findings.len() > MAX_PLACES {
        let more = count(len(findings.len() - MAX_PLACES));
        text.line(format_args!(
            "  ... and {more} more; --format json lists all"
        ));
    }
    // The same advice for all of them is given once.
    let mut helps: Vec<&str> = findings
        .iter()
        .map(|finding| finding.help.as_str())
        .collect();
    helps.sort_unstable();
    helps.dedup();
    for help in helps.iter().filter(|help| !help.is_empty()).take(3) {
        text.line(format_args!("  = help: {}", Message(help)));
    }
    text.line(format_args!(""));
}

fn place(text: &mut Text, finding: &Finding) {
    let place = place_text(&finding.place);
    if !place.is_empty() {
        text.line(format_args!("  {}", Message(&place)));
    }
    text.line(format_args!("      {}", Message(&finding.message)));
    if !finding.expected.is_empty() || !finding.found.is_empty() {
        let (expected, found) = (Message(&finding.expected), Message(&finding.found));
        text.line(format_args!("      expected {expected}, found {found}"));
    }
}

/// What was lost: all together, by part, and the worst weights.
fn lost(text: &mut Text, losses: &Losses, output: Output) {
    text.line(format_args!(
        "{}",
        output.heading("Loss against the reference")
    ));
    text.line(format_args!(
        "  {:<44} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "", "SQNR, dB", "rel. L2", "cosine", "max error", "at ends"
    ));
    if let Some(total) = losses.total() {
        line(text, "all weights", &total);
    }
    for part in losses.by_part() {
        let of = if part.of_experts { "experts' " } else { "" };
        let name = format!(
            "{of}{} ({})",
            part.part.name(),
            counted(len(part.n_modules), "weight")
        );
        line(text, &name, &part.sum);
    }
    text.line(format_args!("  worst first:"));
    for loss in losses.modules.iter().take(MAX_LOSSES) {
        line(text, &Name(&loss.module).to_string(), loss);
    }
    if let Some((methods, error)) = losses.recorded_summary() {
        let error = error.map_or_else(String::new, |error| {
            format!(
                "; outputs on the calibration inputs lost {:.4}% in the mean",
                100.0 * error
            )
        });
        text.line(format_args!(
            "  by the manifest it was quantized by {}{error}",
            Message(&methods)
        ));
    }
    for (module, why) in losses.unmatched.iter().take(MAX_LOSSES) {
        text.line(format_args!(
            "  {}: not compared, {}",
            Name(module),
            Message(why)
        ));
    }
    text.line(format_args!(""));
}

/// Whether the runtimes that were asked for load it, and why not.
fn runtimes(text: &mut Text, report: &Report<'_>, output: Output) {
    for verdict in verdicts(&report.subject) {
        let name = match verdict.profile {
            Some(profile) => profile.name(),
            None => Name(&verdict.runtime).to_string(),
        };
        let answer = if verdict.loads {
            "loads it"
        } else {
            "does not load it"
        };
        text.line(format_args!("{} {answer}", output.heading(&name)));
        for reason in &verdict.reasons {
            let more = match reason.count {
                0 | 1 => String::new(),
                n => format!(" (and {} more)", count(n - 1)),
            };
            text.line(format_args!("  {}{more}", Message(&reason.message)));
            text.line(format_args!("      source: {}", Message(reason.source)));
        }
        text.line(format_args!(""));
    }
}

fn line(text: &mut Text, name: &str, loss: &Loss) {
    let sqnr = match loss.sqnr_db() {
        db if db.is_finite() => format!("{db:.2}"),
        _ => "lossless".to_owned(),
    };
    let saturated = loss
        .saturated
        .map_or("-".to_owned(), |share| format!("{:.2} %", 100.0 * share));
    text.line(format_args!(
        "  {name:<44} {sqnr:>9} {:>9.5} {:>9.6} {:>10.3e} {saturated:>9}",
        loss.relative_l2(),
        loss.cosine(),
        loss.max_error
    ));
}

fn closing(text: &mut Text, report: &Report<'_>, about: &About) {
    let known = match about.known {
        0 => String::new(),
        n => format!("; {} of the baseline not shown", counted(len(n), "finding")),
    };
    let skipped = match report.skipped.len() {
        0 => String::new(),
        n => format!(", {} need more --depth", counted(len(n), "rule")),
    };
    text.line(format_args!(
        "{}: {}{known} ({} at depth {}{skipped})",
        Name(&about.source),
        super::summary(report),
        counted(len(report.ran.len()), "rule"),
        report.depth.name()
    ));
    if let Some(finding) = report
        .findings
        .iter()
        .max_by_key(|finding| finding.severity)
    {
        text.line(format_args!(
            "`safequant explain {}` says more",
            finding.rule
        ));
    }
}
