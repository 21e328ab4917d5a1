//! IX: the index against the shards.

use std::collections::HashSet;

use safequant_container::{Checkpoint, Index, TensorRef};

use crate::Rule;

mod companions_in_several_shards;
mod index_ambiguous;
mod index_contradicts_shards;
mod index_lists_nothing;
mod numbered_series_gap;
mod shard_not_in_index;
mod tensor_in_several_shards;
mod tensor_in_unlisted_shards;
mod tensor_not_in_index;
mod total_size_wrong;

/// By id.
pub(crate) static RULES: &[&Rule] = &[
    &index_contradicts_shards::RULE,
    &tensor_not_in_index::RULE,
    &tensor_in_several_shards::RULE,
    &shard_not_in_index::RULE,
    &total_size_wrong::RULE,
    &numbered_series_gap::RULE,
    &tensor_in_unlisted_shards::RULE,
    &index_ambiguous::RULE,
    &index_lists_nothing::RULE,
    &companions_in_several_shards::RULE,
];

/// The names of tensors that the index does not list. Both lists are in order, so that each step goes on in one of them.
fn unlisted<'a>(checkpoint: &'a Checkpoint, index: &Index) -> HashSet<&'a str> {
    let mut listed = index
        .weight_map
        .iter()
        .map(|(name, _)| name.as_str())
        .peekable();
    let is_unlisted = |name: &&str| {
        while listed.next_if(|listed| *listed < *name).is_some() {}
        listed.next_if(|listed| *listed == *name).is_none()
    };
    let names = checkpoint.tensors().map(TensorRef::name);
    names.filter(is_unlisted).collect()
}
