//! `repair`: audits, says what should change, looks at the result before it is there, and writes it or shows it.

use std::collections::BTreeSet;

use safequant::audit::repair::{Reason, are_unlisted_needed, repair_unlisted};
use safequant::audit::{
    self, Finding, Options, Place, Report, Severity, Subject, Wanted, all_rules,
};
use safequant::container::{Checkpoint, ErrorGroup, Limits, OsDisk};
use safequant::repair::edits;
use safequant::rewrite::repair::{self as rewrite, RepairPlan};

use crate::exit::Failure;
use crate::output::{MAX_NOTES, Output, counted, len};
use crate::plan::{Mode, Repair};

mod diff;
mod report;

/// Plans a repair; shows what it would change, or carries it out and shows what it did.
///
/// # Errors
/// What cannot be repaired, and whatever the libraries refuse.
pub(crate) fn run(job: &Repair, output: Output) -> Result<(), Failure> {
    let limits = Limits::default();
    let (checkpoint, problems) = Checkpoint::survey(&job.source, &limits)?;
    let before = audit(job, &checkpoint, problems);
    if let (Some(index), [_, ..]) = (checkpoint.index(), checkpoint.unreferenced()) {
        let (all, problems) = Checkpoint::survey_files(&job.source, &limits)?;
        if are_unlisted_needed(&before, &job.rules, &all) {
            let changes = repair_unlisted(&audit(job, &all, problems), &job.rules, index);
            return carry_out(job, &all, &before, changes, output);
        }
    }
    let changes = audit::repair(&before, &job.rules);
    carry_out(job, &checkpoint, &before, changes, output)
}

/// Plans the writing of changes; shows them, or writes them.
fn carry_out(
    job: &Repair,
    checkpoint: &Checkpoint,
    before: &Report<'_>,
    changes: audit::Repair,
    output: Output,
) -> Result<(), Failure> {
    refuse(&changes.refused, output)?;
    if changes.is_empty() {
        return Err(nothing_to_do(job));
    }
    let reasons = changes.reasons.clone();
    let plan = rewrite::plan(&OsDisk, checkpoint, &edits(changes), &job.options)?;
    look_once_more(job, before, &plan)?;
    for note in plan.notes.iter().take(MAX_NOTES) {
        output.remark(note);
    }
    let files = match job.mode {
        Mode::DryRun => plan.files(),
        Mode::Run => rewrite::run(&plan, &OsDisk)?,
    };
    report::print(job, &reasons, &plan.documents, &files, output)
}

/// What all rules say, as deep as the rules that are repaired need.
fn audit<'a>(
    job: &Repair,
    checkpoint: &'a Checkpoint,
    problems: Vec<safequant::container::Error>,
) -> Report<'a> {
    let depth = job.rules.iter().map(|rule| rule.depth()).max();
    let options = Options {
        depth: depth.unwrap_or(audit::Depth::Headers),
        rules: all_rules().collect(),
    };
    let subject = Subject::new(checkpoint, problems, Wanted::default());
    audit::audit(subject, &options)
}

/// Everything that cannot be repaired, if there is anything.
fn refuse(refused: &[Reason], output: Output) -> Result<(), Failure> {
    let Some((first, rest)) = refused.split_first() else {
        return Ok(());
    };
    for reason in rest.iter().take(MAX_NOTES) {
        output.remark(&format!("{}: {}", reason.rule, reason.text));
    }
    Err(Failure::Library {
        code: "not_repairable",
        group: ErrorGroup::Refused,
        message: format!("{} cannot be repaired: {}", first.rule, first.text),
        help: Some(format!(
            "`safequant explain {}` says what else to do",
            first.rule
        )),
    })
}

fn nothing_to_do(job: &Repair) -> Failure {
    let rules: Vec<&str> = job.rules.iter().map(|rule| rule.id).collect();
    Failure::Library {
        code: "nothing_to_repair",
        group: ErrorGroup::Refused,
        message: format!(
            "nothing to repair: {} found nothing that must change",
            rules.join(", ")
        ),
        help: Some("`safequant audit SRC` shows what rules find".to_owned()),
    }
}

/// Audits the result before it is written: what was to go is gone, and nothing got worse.
fn look_once_more(job: &Repair, before: &Report<'_>, plan: &RepairPlan<'_>) -> Result<(), Failure> {
    let (checkpoint, problems) = plan.preview()?;
    let after = audit(job, &checkpoint, problems);
    let key =
        |finding: &Finding| -> (&'static str, Place) { (finding.rule, finding.place.clone()) };
    let known: BTreeSet<(&str, Place)> = before.findings.iter().map(key).collect();
    let is_chosen = |finding: &Finding| job.rules.iter().any(|rule| rule.id == finding.rule);
    let is_wrong = |finding: &&Finding| match finding.severity {
        Severity::Note => is_chosen(finding) && !known.contains(&key(finding)),
        Severity::Warning => is_chosen(finding),
        Severity::Error => is_chosen(finding) || !known.contains(&key(finding)),
    };
    let wrong: Vec<&Finding> = after.findings.iter().filter(is_wrong).collect();
    let Some(first) = wrong.first() else {
        return Ok(());
    };
    let place = audit::report::place_text(&first.place);
    Err(Failure::Library {
        code: "repair_incomplete",
        group: ErrorGroup::Refused,
        message: format!(
            "the repaired checkpoint would have {}, first {} {place}: {}",
            counted(len(wrong.len()), "finding"),
            first.rule,
            first.message
        ),
        help: Some(format!(
            "repair {} as well, or see `safequant explain {}`",
            first.rule, first.rule
        )),
    })
}
