//! RT: what a runtime takes. The limits are data (`crate::profile`); each rule here is one topic of them.

use crate::profile::{Topic, objections, profile};
use crate::{Findings, Rule, Subject};

mod activation_order_not_taken;
mod codes_not_taken;
mod convention_not_taken;
mod dtype_not_taken;
mod experts_not_taken;
mod files_not_taken;
mod groups_not_taken;
mod part_name_not_known;
mod quantized_where_dense_is_needed;
mod settings_not_taken;
mod shape_not_taken;
mod zero_points_not_taken;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &convention_not_taken::RULE,
    &codes_not_taken::RULE,
    &groups_not_taken::RULE,
    &zero_points_not_taken::RULE,
    &dtype_not_taken::RULE,
    &shape_not_taken::RULE,
    &activation_order_not_taken::RULE,
    &quantized_where_dense_is_needed::RULE,
    &experts_not_taken::RULE,
    &part_name_not_known::RULE,
    &settings_not_taken::RULE,
    &files_not_taken::RULE,
];

/// Every objection of the runtimes asked for, under one topic.
fn report(subject: &Subject<'_>, findings: &mut Findings<'_>, topic: Topic) {
    for profile in subject.wanted.runtimes.iter().filter_map(|r| profile(r)) {
        for objection in objections(profile, subject, topic) {
            let message = objection.message(profile);
            let help = objection.help();
            let severity = objection.severity();
            let finding = findings.add(objection.place, message);
            finding.severity = severity;
            finding
                .instead(objection.expected, objection.found)
                .help(help);
        }
    }
}
