//! What was asked for, as data: the runtimes' verdicts and the tensor-parallel plans.

use safequant_schemes::Axis;
use serde_json::{Value, json};

use crate::parallel::{DegreePlan, Obstacle, Plan, plan};
use crate::profile::{Reason, Verdict, verdicts};
use crate::{Report, Subject};

use super::place_text;

/// The verdict of every runtime that was asked for.
pub(super) fn runtimes(report: &Report<'_>) -> Value {
    verdicts(&report.subject).iter().map(verdict).collect()
}

fn verdict(verdict: &Verdict) -> Value {
    json!({
        "runtime": verdict.runtime,
        "profile": verdict.profile.map(|profile| profile.title.as_str()),
        "from": verdict.profile.map(|profile| profile.versions.from.as_str()),
        "before": verdict.profile.and_then(|profile| profile.versions.before.as_deref()),
        "loads": verdict.loads,
        "reasons": verdict.reasons.iter().map(reason).collect::<Vec<_>>(),
    })
}

fn reason(reason: &Reason) -> Value {
    json!({
        "effect": reason.effect.name(),
        "message": reason.message,
        "place": place_text(&reason.place),
        "count": reason.count,
        "expected": reason.expected,
        "help": reason.help,
        "source": reason.source,
    })
}

/// The plans of every degree that was asked for; null where none was.
pub(super) fn tensor_parallel(report: &Report<'_>) -> Value {
    let degrees = &report.subject.wanted.tensor_parallel;
    if degrees.is_empty() {
        return Value::Null;
    }
    plan_record(&plan(&report.subject, degrees))
}

/// The plans of some degrees (specs/cli/tp-plan.schema.json, without its head).
pub fn tp_plan(subject: &Subject<'_>, degrees: &[u64]) -> Value {
    plan_record(&plan(subject, degrees))
}

fn plan_record(plan: &Plan) -> Value {
    json!({
        "total_bytes": plan.total_bytes,
        "degrees": plan.degrees.iter().map(degree).collect::<Vec<_>>(),
    })
}

fn degree(plan: &DegreePlan) -> Value {
    json!({
        "degree": plan.degree,
        "works": plan.works,
        "rank_bytes": plan.rank_bytes,
        "obstacles": plan.obstacles.iter().map(obstacle).collect::<Vec<_>>(),
    })
}

fn obstacle(obstacle: &Obstacle) -> Value {
    let axis = obstacle.axis.map(|axis| match axis {
        Axis::Out => "out_features",
        Axis::In => "in_features",
    });
    json!({
        "kind": obstacle.kind.name(),
        "part": obstacle.part.name(),
        "axis": axis,
        "module": obstacle.module,
        "count": obstacle.count,
        "features": obstacle.features,
        "share": obstacle.share,
        "unit": obstacle.unit,
        "message": obstacle.message,
        "fix": obstacle.fix,
    })
}
