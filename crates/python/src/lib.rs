//! The Python package `safequant`: a thin layer over the facade that holds no rule of any format.
//!
//! An empty shell until the bindings' own issue: it fixes the crate's place in the import table (it may use `safequant`
//! and `pyo3`, and nothing else of ours).
#![forbid(unsafe_code)]
