//! Faults for the rules of `crates/audit/src/rules/tensors`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
