//! One file for each rule, one folder for each family; [`crate::all_rules`] lists them.

pub(crate) mod config;
pub(crate) mod container;
pub(crate) mod index;
pub(crate) mod parallel;
pub(crate) mod provenance;
pub(crate) mod runtime;
pub(crate) mod scales;
pub(crate) mod tensors;
