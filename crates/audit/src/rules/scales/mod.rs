//! SC: scales, zero points and codes.

use crate::Rule;

mod scale_not_finite;
mod scale_zero;

/// By id.
pub(crate) static RULES: &[&Rule] = &[&scale_not_finite::RULE, &scale_zero::RULE];
