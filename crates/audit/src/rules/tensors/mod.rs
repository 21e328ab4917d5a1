//! QT: the sets of tensors that quantized weights are stored as.

use crate::Rule;

mod block_incomplete;
mod codes_without_scale;
mod companion_missing;
mod companion_set_ragged;
mod companion_without_weight;
mod expert_set_ragged;
mod gptq_zero_convention;
mod group_index_ragged;
mod group_index_range;
mod group_index_trivial;
mod layer_missing;
mod mixed_expert_layout;
mod module_missing_in_layer;
mod part_dtype;
mod part_shape;
mod sparse_mask;
mod weight_stored_twice;
mod zero_out_of_range;
mod zero_product;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &companion_missing::RULE,
    &companion_without_weight::RULE,
    &part_dtype::RULE,
    &part_shape::RULE,
    &weight_stored_twice::RULE,
    &companion_set_ragged::RULE,
    &codes_without_scale::RULE,
    &layer_missing::RULE,
    &module_missing_in_layer::RULE,
    &block_incomplete::RULE,
    &expert_set_ragged::RULE,
    &mixed_expert_layout::RULE,
    &gptq_zero_convention::RULE,
    &zero_out_of_range::RULE,
    &zero_product::RULE,
    &group_index_trivial::RULE,
    &group_index_range::RULE,
    &group_index_ragged::RULE,
    &sparse_mask::RULE,
];
