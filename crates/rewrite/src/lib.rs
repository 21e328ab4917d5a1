//! Every verb that writes a checkpoint: plan, stream in bounded memory, journal, commit.
#![forbid(unsafe_code)]

pub mod commit;
mod error;
pub mod events;
pub mod journal;
pub mod plan;
pub mod recipe;
pub mod stream;

pub use error::Error;
pub use events::{CancelToken, Event, Events};
pub use plan::{Action, Destination, JobOptions, Plan, PlannedModule, Verb, plan};
pub use recipe::{DequantizeRecipe, OutputDtype, QuantizeRecipe};
pub use stream::{ModuleSummary, Summary, run};
