//! One pass over a checkpoint for all rules.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use safequant_schemes::Error;

use crate::measure::{self, Measured, WeightStatistics};
use crate::{Check, Depth, Finding, Findings, Rule, Severity, Subject, all_rules, problem};

/// What to look at.
pub struct Options {
    /// How much is read. Rules that need more are skipped.
    pub depth: Depth,
    /// The rules to run.
    pub rules: Vec<&'static Rule>,
}

/// What an audit found.
pub struct Report<'a> {
    /// What was audited; its problems include what could not be read.
    pub subject: Subject<'a>,
    /// How much was read.
    pub depth: Depth,
    /// By place, then rule.
    pub findings: Vec<Finding>,
    /// Rules that ran.
    pub ran: Vec<&'static Rule>,
    /// Rules that would have needed more than was read.
    pub skipped: Vec<&'static Rule>,
    /// The numbers, for histograms and maps.
    pub measured: Measured,
}

impl Report<'_> {
    /// Errors that no rule claims: something is wrong all the same, and whoever shows the report must say so. What a rule
    /// claims that was not asked for is not among them.
    pub fn unclaimed(&self) -> impl Iterator<Item = &Error> {
        let is_claimed = |error: &Error| all_rules().any(|rule| claims(rule, error));
        let problems = self.subject.problems.iter();
        problems.filter(move |error| !is_claimed(error))
    }

    /// Findings of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let findings = self.findings.iter();
        findings
            .filter(|finding| finding.severity == severity)
            .count()
    }
}

/// Audits a checkpoint. The report does not depend on the number of threads.
pub fn audit<'a>(mut subject: Subject<'a>, options: &Options) -> Report<'a> {
    let measured = measure(&mut subject, options.depth);
    let (ran, skipped): (Vec<_>, Vec<_>) = options
        .rules
        .iter()
        .copied()
        .partition(|rule| rule.depth() <= options.depth);
    // Rules know nothing of each other.
    let found: Vec<Vec<Finding>> = ran
        .par_iter()
        .map(|rule| {
            let mut found = Vec::new();
            run(
                rule,
                &subject,
                &measured,
                &mut Findings::new(rule, &mut found),
            );
            found
        })
        .collect();
    let mut findings: Vec<Finding> = found.into_iter().flatten().collect();
    findings.sort_by(|a: &Finding, b| (&a.place, a.rule).cmp(&(&b.place, b.rule)));
    Report {
        subject,
        depth: options.depth,
        findings,
        ran,
        skipped,
        measured,
    }
}

/// Reads what `depth` asks of every weight; what cannot be read becomes a problem.
fn measure(subject: &mut Subject<'_>, depth: Depth) -> Measured {
    if depth == Depth::Headers {
        return Measured::default();
    }
    let weights: Vec<(_, Result<WeightStatistics, Error>)> = subject
        .model
        .quantized
        .par_iter()
        .map(|tensor| {
            let statistics = measure::weight(tensor, subject.checkpoint, depth);
            (tensor.module.clone(), statistics)
        })
        .collect();
    let mut measured = Measured::default();
    for (module, statistics) in weights {
        match statistics {
            Ok(statistics) => drop(measured.weights.insert(module, statistics)),
            Err(error) => subject.problems.push(error),
        }
    }
    measured.small =
        measure::small_scales(&subject.model, subject.checkpoint, &mut subject.problems);
    measured
}

fn claims(rule: &Rule, error: &Error) -> bool {
    match rule.check {
        Check::Problems(codes) => codes.contains(&error.code()),
        Check::Headers(_)
        | Check::Module(_)
        | Check::Scales(_)
        | Check::Codes(_)
        | Check::AllScales(_) => false,
    }
}

fn run(rule: &Rule, subject: &Subject<'_>, measured: &Measured, findings: &mut Findings<'_>) {
    let weights = || {
        let all = subject.model.quantized.iter();
        all.filter_map(|tensor| Some((tensor, measured.get(&tensor.module)?)))
    };
    match rule.check {
        Check::Problems(_) => {
            for error in subject.problems.iter().filter(|error| claims(rule, error)) {
                problem::report(error, findings);
            }
        }
        Check::Headers(check) => check(subject, findings),
        Check::Module(check) => {
            for tensor in &subject.model.quantized {
                check(subject, tensor, findings);
            }
        }
        Check::Scales(check) => {
            for (tensor, statistics) in weights() {
                check(tensor, &statistics.scales, findings);
            }
        }
        Check::Codes(check) => {
            for (tensor, statistics) in weights() {
                if let Some(codes) = &statistics.codes {
                    check(tensor, codes, findings);
                }
            }
        }
        Check::AllScales(check) => check(subject, measured, findings),
    }
}
