//! ST: files and headers.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
