//! A rule is a plain value; [`RULES`] is the list of all of them.

use safequant_schemes::QuantizedTensor;

use crate::measure::{CodeStatistics, Measured, ScaleStatistics};
use crate::{Findings, Subject, rules};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Some readers will stumble, or accuracy is lost that need not be.
    Warning,
    /// The checkpoint is broken, or means something else than it says.
    Error,
}

impl Severity {
    /// As reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// How much of a checkpoint is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Depth {
    /// Headers, index and documents: what a few range requests fetch.
    Headers,
    /// Scales and zero points as well: 0.03 to 11 percent of the bytes.
    Scales,
    /// Everything.
    Full,
}

impl Depth {
    /// All of them, the cheapest first.
    pub const ALL: [Depth; 3] = [Depth::Headers, Depth::Scales, Depth::Full];

    /// As options and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Depth::Headers => "headers",
            Depth::Scales => "scales",
            Depth::Full => "full",
        }
    }
}

/// What a rule looks at, and so what has to be read for it.
#[derive(Clone, Copy)]
pub enum Check {
    /// What stood in the way of opening and binding: the errors with these codes are the rule's findings.
    Problems(&'static [&'static str]),
    /// Names, shapes, index and documents.
    Headers(fn(&Subject<'_>, &mut Findings<'_>)),
    /// The same, one quantized weight at a time.
    Module(fn(&Subject<'_>, &QuantizedTensor, &mut Findings<'_>)),
    /// The scales, zero points and offsets of one weight.
    Scales(fn(&QuantizedTensor, &ScaleStatistics, &mut Findings<'_>)),
    /// The codes of one weight.
    Codes(fn(&QuantizedTensor, &CodeStatistics, &mut Findings<'_>)),
    /// The scales of all weights, beside each other.
    AllScales(fn(&Subject<'_>, &Measured, &mut Findings<'_>)),
}

/// One rule. Its file holds its documentation, its check and its tests.
pub struct Rule {
    /// Family and number (`SC010`). Never given to another rule.
    pub id: &'static str,
    /// Says the pattern, not the cure (`scale-not-finite`).
    pub name: &'static str,
    /// How bad its findings are.
    pub severity: Severity,
    /// The version that had it first.
    pub since: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it checks / Why it matters / What to do / References, in Markdown. The symptoms that users see (the runtimes' own
    /// words) stand in it, so that a search for them finds the rule.
    pub doc: &'static str,
    /// What it looks at.
    pub check: Check,
}

impl Rule {
    /// What must be read for it.
    pub fn depth(&self) -> Depth {
        match self.check {
            Check::Problems(_) | Check::Headers(_) | Check::Module(_) => Depth::Headers,
            Check::Scales(_) | Check::AllScales(_) => Depth::Scales,
            Check::Codes(_) => Depth::Full,
        }
    }

    /// Its family, by the letters of its id.
    pub fn family(&self) -> Option<Family> {
        Family::ALL
            .into_iter()
            .find(|family| self.id.starts_with(family.letters()))
    }
}

/// What rules are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Files and headers.
    Container,
    /// The index against the shards.
    Index,
    /// Configuration against tensors, and against itself.
    Config,
    /// The sets of tensors that quantized weights are stored as.
    Tensors,
    /// Scales, zero points and codes.
    Scales,
    /// Slices for tensor-parallel ranks.
    Parallel,
    /// What a runtime takes.
    Runtime,
    /// Where a checkpoint comes from.
    Provenance,
}

impl Family {
    /// In the order of reports.
    pub const ALL: [Family; 8] = [
        Family::Container,
        Family::Index,
        Family::Config,
        Family::Tensors,
        Family::Scales,
        Family::Parallel,
        Family::Runtime,
        Family::Provenance,
    ];

    /// The letters that ids begin with.
    pub fn letters(self) -> &'static str {
        match self {
            Family::Container => "ST",
            Family::Index => "IX",
            Family::Config => "QC",
            Family::Tensors => "QT",
            Family::Scales => "SC",
            Family::Parallel => "TP",
            Family::Runtime => "RT",
            Family::Provenance => "PV",
        }
    }
}

/// The rules, family by family.
static FAMILIES: [&[&Rule]; 8] = [
    rules::container::RULES,
    rules::index::RULES,
    rules::config::RULES,
    rules::tensors::RULES,
    rules::scales::RULES,
    rules::parallel::RULES,
    rules::runtime::RULES,
    rules::provenance::RULES,
];

/// Every rule, by family and id.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}

/// The rule with this id or name, if there is one.
pub fn rule(name: &str) -> Option<&'static Rule> {
    all().find(|rule| rule.id.eq_ignore_ascii_case(name) || rule.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_registry_is_in_order() {
        let mut seen = BTreeSet::new();
        for rule in all() {
            let number = &rule.id[2..];
            assert!(rule.family().is_some(), "{}: no such family", rule.id);
            assert!(
                number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit()),
                "{}",
                rule.id
            );
            assert!(seen.insert(rule.id), "{} twice", rule.id);
            assert!(seen.insert(rule.name), "{} twice", rule.name);
            let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            assert!(rule.name.bytes().all(is_word), "{}: name", rule.id);
            for heading in [
                "## What it checks",
                "## Why it matters",
                "## What to do",
                "## References",
            ] {
                assert!(
                    rule.doc.contains(heading),
                    "{}: {heading} is missing",
                    rule.id
                );
            }
            assert!(!rule.summary.ends_with('.'), "{}: summary", rule.id);
        }
        for family in FAMILIES {
            assert!(family.is_sorted_by_key(|rule| rule.id), "by id");
        }
        assert!(seen.len() >= 12);
    }

    #[test]
    fn a_problem_is_one_rules_business() {
        let mut owners = std::collections::BTreeMap::new();
        for rule in all() {
            if let Check::Problems(codes) = rule.check {
                for code in codes {
                    let other = owners.insert(code, rule.id);
                    assert_eq!(other, None, "{code} belongs to {} too", rule.id);
                }
            }
        }
    }
}
