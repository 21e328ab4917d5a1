//! ST: files and headers.

use crate::Rule;

mod beyond_limits;
mod bytes_after_last_tensor;
mod document_not_json;
mod dtype_unknown;
mod duplicate_key;
mod file_name_escapes;
mod file_truncated;
mod file_unreadable;
mod foreign_format;
mod gguf_keys_missing;
mod gguf_label_unlike_tensors;
mod gguf_malformed;
mod gguf_parts_disagree;
mod header_above_hub_limit;
mod header_too_large;
mod json_malformed;
mod metadata_empty;
mod metadata_format_unknown;
mod metadata_not_strings;
mod name_not_printable;
mod names_differ_by_case;
mod no_weights;
mod offsets_overlap_or_leave_holes;
mod rank_above_eight;
mod size_contradicts_shape;
mod tensor_empty;
mod tensor_entry_malformed;
mod tensors_misaligned;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &file_truncated::RULE,
    &bytes_after_last_tensor::RULE,
    &foreign_format::RULE,
    &header_too_large::RULE,
    &json_malformed::RULE,
    &duplicate_key::RULE,
    &metadata_not_strings::RULE,
    &tensor_entry_malformed::RULE,
    &dtype_unknown::RULE,
    &offsets_overlap_or_leave_holes::RULE,
    &size_contradicts_shape::RULE,
    &file_name_escapes::RULE,
    &no_weights::RULE,
    &document_not_json::RULE,
    &beyond_limits::RULE,
    &gguf_malformed::RULE,
    &gguf_parts_disagree::RULE,
    &file_unreadable::RULE,
    &tensors_misaligned::RULE,
    &metadata_format_unknown::RULE,
    &metadata_empty::RULE,
    &tensor_empty::RULE,
    &names_differ_by_case::RULE,
    &name_not_printable::RULE,
    &rank_above_eight::RULE,
    &header_above_hub_limit::RULE,
    &gguf_keys_missing::RULE,
    &gguf_label_unlike_tensors::RULE,
];
