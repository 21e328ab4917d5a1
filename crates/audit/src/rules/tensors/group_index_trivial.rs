//! QT060: a group index says what its absence would say.

use crate::group_index::{Order, orders};
use crate::measure::Measured;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT060",
    name: "group-index-trivial",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "the configuration asks for activation order, but the group index is in order",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Where the configuration says `desc_act: true` (or `actorder: group`), some `g_idx` is not in order. An index in order everywhere, under
such a configuration, is reported for each module; an index in order under `desc_act: false` is the rule and is not.

## Why it matters
With `static_groups` the index is in order whatever `desc_act` says. Runtimes go by the configuration: they refuse the checkpoint
(`desc_act=True is not supported`), or take the slower kernel and need all scales on every rank.

## What to do
Set `desc_act` to false, and drop the `g_idx` tensors if the reader allows it.

## References
- vllm-project/vllm#8741, vllm-project/llm-compressor#2616
";

fn check(subject: &Subject<'_>, _: &Measured, findings: &mut Findings<'_>) {
    let orders = orders(subject);
    let is_trivial = |order: &Order| *order == Order::Trivial;
    if orders.is_empty() || !orders.iter().all(|(_, order)| is_trivial(order)) {
        return;
    }
    for (tensor, _) in &orders {
        if crate::group_index::is_declared(subject, tensor) != Some(true) {
            continue;
        }
        findings
            .add(
                Place::module(&*tensor.module),
                "the configuration asks for activation order, but the group index is in order",
            )
            .instead("groups in the order of activations", "groups in order")
            .help("set desc_act to false; the index can be dropped");
    }
}
