//! Faults for the rules of `crates/audit/src/rules/index`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
