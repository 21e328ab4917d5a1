//! QT: the sets of tensors that quantized weights are stored as.

use crate::Rule;

/// By id.
pub(crate) static RULES: &[&Rule] = &[];
