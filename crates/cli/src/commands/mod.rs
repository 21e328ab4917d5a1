//! One file per verb; `quantize` and `dequantize` are both a [`job`].

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod inspect;
pub(crate) mod job;
