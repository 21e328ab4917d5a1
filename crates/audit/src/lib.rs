//! Rules about a checkpoint: is it complete, does it match its config, how much was lost.
//!
//! An empty shell until the audit's own issue: it fixes the crate's place in the import table (it may use `schemes`,
//! `kernels` and `container`, and never `quantize`, `rewrite` or `cli`). An audit never changes a file.
#![forbid(unsafe_code)]
