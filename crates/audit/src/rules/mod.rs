//! One file for each rule; [`crate::RULES`] lists them.

pub(crate) mod index_contradicts_shards;
pub(crate) mod scale_not_finite;
pub(crate) mod scale_zero;
pub(crate) mod shard_not_in_index;
pub(crate) mod tensor_in_several_shards;
pub(crate) mod tensor_not_in_index;
