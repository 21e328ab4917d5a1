//! TP: slices for tensor-parallel ranks. What stands in the way of a degree is worked out in `crate::parallel`; a rule here is one
//! kind of obstacle.

use crate::parallel::{ObstacleKind, obstacles};
use crate::{Findings, Place, Rule, Subject};

mod activation_order_across_ranks;
mod features_do_not_divide;
mod heads_do_not_divide;
mod rank_cuts_block;
mod rank_cuts_group;
mod rank_cuts_packed_word;
mod rank_does_not_fit_kernel;
mod weight_cannot_be_cut;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &rank_cuts_group::RULE,
    &rank_cuts_block::RULE,
    &rank_cuts_packed_word::RULE,
    &features_do_not_divide::RULE,
    &heads_do_not_divide::RULE,
    &rank_does_not_fit_kernel::RULE,
    &activation_order_across_ranks::RULE,
    &weight_cannot_be_cut::RULE,
];

/// Every obstacle of one kind, for the degrees asked for.
fn report(subject: &Subject<'_>, findings: &mut Findings<'_>, kind: ObstacleKind) {
    obstacles(subject, kind, |module, degree, obstacle| {
        let place = module.map_or_else(|| Place::file("config.json"), Place::module);
        let expected = match (obstacle.unit, obstacle.share) {
            (2.., Some(_)) => format!("a multiple of {} for each rank", obstacle.unit),
            (_, _) => format!("something that divides among {degree} ranks"),
        };
        let found = obstacle.share.unwrap_or(obstacle.features).to_string();
        let message = format!("TP={degree}: {}", obstacle.message);
        findings
            .add(place, message)
            .instead(expected, found)
            .help(&obstacle.fix);
    });
}
