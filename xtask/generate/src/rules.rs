//! `docs/rules.md`: a page of every audit rule, from the rules themselves.

use std::fmt::Write as _;

use safequant::audit::{Family, Rule, all_rules};

/// The page.
pub(crate) const PAGE: &str = "docs/rules.md";

/// What the families are about, in the order of reports.
fn about(family: Family) -> &'static str {
    match family {
        Family::Container => "Files and headers",
        Family::Index => "The index against the shards",
        Family::Config => "Configuration against tensors, and against itself",
        Family::Tensors => "The sets of tensors that quantized weights are stored as",
        Family::Scales => "Scales, zero points and codes",
        Family::Parallel => "Slices for tensor-parallel ranks",
        Family::Runtime => "What a runtime takes",
        Family::Provenance => "Where a checkpoint comes from",
    }
}

/// The page's text.
pub(crate) fn page() -> String {
    let mut out = String::from(
        "# Audit rules\n\n\
         Generated from the rules by `cargo xtask generate`; do not edit. `safequant explain RULE` prints one of them,\n\
         `safequant audit SRC` runs them. Ids never change their meaning. *Depth* is what must be read: headers and documents, scales\n\
         as well, or everything (`--depth`). Rules of the families TP and RT run where `--tp` and `--runtime` ask for them.\n\n",
    );
    for family in Family::ALL {
        let _ = writeln!(out, "## {}: {}\n", family.letters(), about(family));
        out.push_str(
            "| rule | name | severity | depth | what is wrong |\n| --- | --- | --- | --- | --- |\n",
        );
        for rule in of(family) {
            let _ = writeln!(
                out,
                "| [{}](#{}) | {} | {} | {} | {} |",
                rule.id,
                anchor(rule),
                rule.name,
                rule.severity.name(),
                rule.depth().name(),
                rule.summary.replace('|', "\\|")
            );
        }
        out.push('\n');
    }
    for rule in all_rules() {
        let _ = writeln!(
            out,
            "## {} {}\n\n*{}.* Severity {}, depth {}, since {}.\n",
            rule.id,
            rule.name,
            sentence(rule.summary),
            rule.severity.name(),
            rule.depth().name(),
            rule.since
        );
        for line in rule.doc.trim_end().lines() {
            let line = line
                .strip_prefix("## ")
                .map_or(line.to_owned(), |heading| format!("### {heading}"));
            let _ = writeln!(out, "{line}");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn of(family: Family) -> impl Iterator<Item = &'static Rule> {
    all_rules().filter(move |rule| rule.family() == Some(family))
}

/// As Markdown's readers make it of the heading.
fn anchor(rule: &Rule) -> String {
    format!("{}-{}", rule.id.to_ascii_lowercase(), rule.name)
}

/// With a capital first letter, unless it is code.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}
