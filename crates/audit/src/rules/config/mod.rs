//! QC: configuration against tensors, and against itself.

use crate::Rule;

mod activation_scales;
mod cache_scales;
mod config_contradicts_tensors;
mod config_missing;
mod config_value;
mod count_differs;
mod declared_but_dense;
mod dense_but_unlisted;
mod documents_disagree;
mod dtype_differs;
mod format_unknown;
mod ignore_entry_matches_nothing;
mod ignored_but_quantized;
mod lm_head_flag;
mod mixed_prefix;
mod override_matches_nothing;
mod pattern_semantics_differ;
mod pattern_unusable;
mod quantized_but_undeclared;
mod tie_flag;
mod unknown_key;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &documents_disagree::RULE,
    &unknown_key::RULE,
    &declared_but_dense::RULE,
    &config_contradicts_tensors::RULE,
    &quantized_but_undeclared::RULE,
    &config_value::RULE,
    &format_unknown::RULE,
    &config_missing::RULE,
    &ignored_but_quantized::RULE,
    &dense_but_unlisted::RULE,
    &ignore_entry_matches_nothing::RULE,
    &pattern_semantics_differ::RULE,
    &override_matches_nothing::RULE,
    &pattern_unusable::RULE,
    &lm_head_flag::RULE,
    &count_differs::RULE,
    &mixed_prefix::RULE,
    &tie_flag::RULE,
    &dtype_differs::RULE,
    &cache_scales::RULE,
    &activation_scales::RULE,
];
