//! Faults for the rules of `crates/audit/src/rules/provenance`.

use super::Fault;

pub(super) const FAULTS: &[Fault] = &[];
