//! Faults for the rules of `crates/audit/src/rules/config`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
