//! SC: scales, zero points and codes.

use crate::Rule;

mod common;

mod activation_scale_not_positive;
mod block_size_inferred;
mod code_not_finite;
mod code_range_half_used;
mod code_saturation;
mod constant_row;
mod constant_weight;
mod e8m0_not_a_number;
mod expert_activation_scale_missing;
mod expert_scale_outlier;
mod fp8_scale_direction;
mod fp8_weight_without_scale;
mod fused_scale_mismatch;
mod fused_scheme_mismatch;
mod global_scale_direction;
mod grid_ambiguous;
mod grid_shape;
mod grid_transposed;
mod kv_scale_missing;
mod kv_scale_not_positive;
mod kv_scale_partial;
mod nonstandard_scale_name;
mod padding_not_zero;
mod scale_layout;
mod scale_negative;
mod scale_not_finite;
mod scale_not_power_of_two;
mod scale_outlier;
mod scale_outside_f16;
mod scale_placeholder;
mod scale_subnormal;
mod scale_zero;
mod u8_scale_is_e8m0;
mod weight_implausibly_large;
mod zero_point_constant;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &fp8_weight_without_scale::RULE,
    &nonstandard_scale_name::RULE,
    &scale_not_finite::RULE,
    &scale_zero::RULE,
    &scale_negative::RULE,
    &scale_subnormal::RULE,
    &scale_outlier::RULE,
    &scale_placeholder::RULE,
    &fused_scale_mismatch::RULE,
    &fused_scheme_mismatch::RULE,
    &expert_activation_scale_missing::RULE,
    &expert_scale_outlier::RULE,
    &activation_scale_not_positive::RULE,
    &global_scale_direction::RULE,
    &scale_layout::RULE,
    &fp8_scale_direction::RULE,
    &weight_implausibly_large::RULE,
    &u8_scale_is_e8m0::RULE,
    &e8m0_not_a_number::RULE,
    &scale_not_power_of_two::RULE,
    &grid_shape::RULE,
    &grid_ambiguous::RULE,
    &grid_transposed::RULE,
    &block_size_inferred::RULE,
    &kv_scale_partial::RULE,
    &kv_scale_not_positive::RULE,
    &kv_scale_missing::RULE,
    &scale_outside_f16::RULE,
    &code_not_finite::RULE,
    &code_range_half_used::RULE,
    &code_saturation::RULE,
    &constant_row::RULE,
    &constant_weight::RULE,
    &padding_not_zero::RULE,
    &zero_point_constant::RULE,
];
