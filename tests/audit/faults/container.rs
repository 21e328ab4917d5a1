//! Faults for the rules of `crates/audit/src/rules/container`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
