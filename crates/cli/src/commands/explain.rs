//! `explain`: what an audit rule checks, or the list of all rules.

use safequant::audit::{Rule, all_rules, rule};

use crate::args::ExplainArgs;
use crate::exit::Failure;
use crate::output::{self, Align, Output, Table, Text};

/// Prints a rule's own documentation, or all rules in a table.
///
/// # Errors
/// A rule that does not exist; standard output.
pub(crate) fn run(args: &ExplainArgs, output: Output) -> Result<(), Failure> {
    match &args.rule {
        None => list(output),
        Some(name) => match rule(name) {
            Some(rule) => one(rule, output),
            None => Err(Failure::usage(
                format!("no audit rule is called {name}"),
                "`safequant explain` lists all rules",
            )),
        },
    }
}

fn list(output: Output) -> Result<(), Failure> {
    let columns = ["rule", "severity", "depth", "name", "what is wrong"];
    let mut table = Table::new(&columns.map(|name| (name, Align::Left)));
    for rule in all_rules() {
        let (severity, depth) = (rule.severity.name(), rule.depth().name());
        table.row([rule.id, severity, depth, rule.name, rule.summary].map(str::to_owned));
    }
    Ok(output.table(&table)?)
}

fn one(rule: &Rule, output: Output) -> Result<(), Failure> {
    let mut text = Text::default();
    text.line(format_args!(
        "{}",
        output.heading(&format!("{} {}", rule.id, rule.name))
    ));
    text.line(format_args!("{}\n", rule.summary));
    text.line(format_args!(
        "severity {}, needs depth {}, since {}\n",
        rule.severity.name(),
        rule.depth().name(),
        rule.since
    ));
    for line in rule.doc.lines() {
        match line.strip_prefix("## ") {
            Some(heading) => text.line(format_args!("{}", output.heading(heading))),
            None => text.line(format_args!("{line}")),
        }
    }
    Ok(output::data(text.as_str())?)
}
