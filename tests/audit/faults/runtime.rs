//! Faults for the rules of `crates/audit/src/rules/runtime`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
