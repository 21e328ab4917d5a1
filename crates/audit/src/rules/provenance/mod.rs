//! PV: where a checkpoint comes from.

use crate::Rule;

mod license_missing;
mod manifest_contradicts_tensors;
mod pickle_beside_weights;
mod quantizer_not_named;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &manifest_contradicts_tensors::RULE,
    &pickle_beside_weights::RULE,
    &license_missing::RULE,
    &quantizer_not_named::RULE,
];
