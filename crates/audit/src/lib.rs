//! Rules about a checkpoint: is it complete, does it match its config, how much was lost.
//!
//! An audit surveys (opens and binds what it can), measures (one pass over scales and codes makes plain numbers) and asks (every
//! [`Rule`] looks at those): docs/adr/0009-audit.md. It never changes a file.
#![forbid(unsafe_code)]

pub mod diff;
mod finding;
mod group_index;
mod ignore;
mod inventory;
pub mod loss;
pub mod measure;
pub mod names;
pub mod parallel;
mod problem;
pub mod profile;
pub mod repair;
pub mod report;
mod rule;
mod rules;
mod runner;
mod subject;

pub use finding::{Finding, Findings, Place};
pub use loss::{Loss, Losses, losses};
pub use names::{ModuleName, Part};
pub use repair::{Repair, repair};
pub use rule::{Check, Depth, Family, Rule, Severity, all as all_rules, rule};
pub use runner::{Options, Report, audit};
pub use subject::{Subject, Wanted, survey};
