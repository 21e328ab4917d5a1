//! Faults for the rules of `crates/audit/src/rules/parallel`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
