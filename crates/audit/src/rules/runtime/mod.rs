//! RT: what a runtime takes.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
