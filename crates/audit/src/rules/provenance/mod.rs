//! PV: where a checkpoint comes from.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
