//! IX: the index against the shards.

use crate::Rule;

mod index_contradicts_shards;
mod shard_not_in_index;
mod tensor_in_several_shards;
mod tensor_not_in_index;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &index_contradicts_shards::RULE,
    &tensor_not_in_index::RULE,
    &tensor_in_several_shards::RULE,
    &shard_not_in_index::RULE,
];
