//! JSON of our own (specs/cli/audit.schema.json).

use safequant_container::ManifestModule;
use serde_json::{Value, json};

use super::{About, problems, wanted};
use crate::{Finding, Loss, Losses, Report, Severity};

/// The version of the record.
const SCHEMA_VERSION: u64 = 1;

/// The whole report.
pub fn json(report: &Report<'_>, about: &About) -> Value {
    let findings: Vec<Value> = report.findings.iter().map(finding).collect();
    let problems = problems(report);
    let problems = problems
        .iter()
        .map(|(code, message)| json!({"code": code, "message": message}));
    json!({
        "schema_version": SCHEMA_VERSION,
        "command": "audit",
        "version": about.version,
        "source": about.source,
        "depth": report.depth.name(),
        "summary": summary(report, about),
        "findings": findings,
        "problems": problems.collect::<Vec<_>>(),
        "loss": about.losses.as_ref().map(losses),
        "runtimes": wanted::runtimes(report),
        "tensor_parallel": wanted::tensor_parallel(report),
    })
}

/// What was lost: all together, by part, and weight by weight, the worst first.
fn losses(losses: &Losses) -> Value {
    let parts = losses.by_part();
    let parts = parts.iter().map(|part| {
        let mut record = loss(&part.sum);
        record["part"] = part.part.name().into();
        record["of_experts"] = part.of_experts.into();
        record["n_modules"] = part.n_modules.into();
        record["worst_module"] = record["module"].take();
        if let Some(record) = record.as_object_mut() {
            record.remove("module");
        }
        record
    });
    let mut total = losses.total().as_ref().map(loss);
    if let Some(total) = total.as_mut().and_then(Value::as_object_mut) {
        total.remove("module");
    }
    let unmatched = losses.unmatched.iter();
    json!({
        "total": total,
        "parts": parts.collect::<Vec<_>>(),
        "modules": losses.modules.iter().map(loss).collect::<Vec<_>>(),
        "recorded": losses.recorded.iter().map(recorded).collect::<Vec<_>>(),
        "unmatched": unmatched.map(|(module, why)| json!({"module": module, "reason": why})).collect::<Vec<_>>(),
    })
}

/// What the manifest says of a module.
fn recorded(module: &ManifestModule) -> Value {
    json!({
        "module": module.name,
        "scheme": module.scheme,
        "method": module.method,
        "effort": module.effort,
        "output_error": module.losses.output_error(),
    })
}

/// One weight's loss. Infinite decibels (nothing is lost) are null.
pub(super) fn loss(loss: &Loss) -> Value {
    let finite = |value: f64| value.is_finite().then_some(value);
    json!({
        "module": loss.module,
        "n_values": loss.n_values,
        "relative_l2": finite(loss.relative_l2()),
        "sqnr_db": finite(loss.sqnr_db()),
        "cosine": finite(loss.cosine()),
        "max_error": finite(f64::from(loss.max_error)),
        "saturated_share": loss.saturated,
    })
}

fn summary(report: &Report<'_>, about: &About) -> Value {
    let model = &report.subject.model;
    json!({
        "errors": report.count(Severity::Error),
        "warnings": report.count(Severity::Warning),
        "notes": report.count(Severity::Note),
        "known": about.known,
        "rules_run": report.ran.len(),
        "rules_skipped": report.skipped.iter().map(|rule| rule.id).collect::<Vec<_>>(),
        "files": report.subject.checkpoint.shards().len(),
        "tensors": report.subject.checkpoint.tensors().len(),
        "quantized_modules": model.quantized.len(),
        "conventions": model.conventions.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
    })
}

/// One finding.
pub(super) fn finding(finding: &Finding) -> Value {
    let name = crate::rule(finding.rule).map(|rule| rule.name);
    json!({
        "rule": finding.rule,
        "name": name,
        "severity": finding.severity.name(),
        "file": finding.place.file,
        "module": finding.place.module,
        "tensor": finding.place.tensor,
        "entry": finding.place.entry,
        "message": finding.message,
        "expected": non_empty(&finding.expected),
        "found": non_empty(&finding.found),
        "help": non_empty(&finding.help),
    })
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
