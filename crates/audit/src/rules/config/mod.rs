//! QC: configuration against tensors, and against itself.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
