//! TP: slices for tensor-parallel ranks.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
