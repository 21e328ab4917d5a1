//! One file per verb; `quantize` and `dequantize` are both a [`job`].

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod inspect;
pub(crate) mod job;
pub(crate) mod repair;
pub(crate) mod tp_plan;
