//! The fuzz targets' common part; `harness` is also run by `tests/hostile` over the crashes found so far.
#![forbid(unsafe_code)]

pub mod harness;
