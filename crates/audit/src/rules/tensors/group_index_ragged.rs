//! QT062: a group index that no quantizer writes.

use crate::group_index::{Order, is_declared, orders};
use crate::measure::Measured;
use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "QT062",
    name: "group-index-ragged",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "a group index gives groups the wrong number of input features, or an order that the configuration denies",
    doc: DOC,
    check: Check::AllScales(check),
};

const DOC: &str = "\
## What it checks
Every group of `g_idx` has as many input features as the group size says, but for one that may have fewer. Where the configuration says
`desc_act: false`, the groups are in order (else a warning).

## Why it matters
An index of another module, of zeros, or one that was cut applies scales to the wrong columns: the weight is nonsense, and the shapes
agree. Loaders take an index of zeros for \"no order\" and others do not. With `desc_act: false` many runtimes drop the index unread.

## What to do
Take the tensor from the original checkpoint; if the index is right, set `desc_act` to true.

## References
- ml-explore/mlx-lm#730, turboderp/exllama#32, vllm-project/vllm#6358
";

fn check(subject: &Subject<'_>, _: &Measured, findings: &mut Findings<'_>) {
    for (tensor, order) in orders(subject) {
        let place = Place::module(&*tensor.module);
        match order {
            Order::Trivial | Order::Unknown => {}
            Order::Scattered => {
                if is_declared(subject, tensor) == Some(false) {
                    let finding = findings.add(
                        place,
                        "the group index is not in order, but the configuration says desc_act: false",
                    );
                    finding.severity = Severity::Warning;
                    finding
                        .instead("groups in order", "groups in another order")
                        .help("set desc_act to true");
                }
            }
            Order::Ragged {
                group,
                members,
                size,
            } => {
                findings
                    .add(
                        place,
                        format!("{members} input features are of group {group}"),
                    )
                    .instead(format!("{size}"), members.to_string())
                    .help("take the group index from the original checkpoint");
            }
        }
    }
}
