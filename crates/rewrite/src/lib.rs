//! Every verb that writes a checkpoint: plan, stream in bounded memory, journal, commit.
#![forbid(unsafe_code)]

mod budget;
pub mod calibration;
mod commit;
mod config;
pub mod convert;
mod error;
pub mod events;
mod fold;
mod journal;
mod metadata;
pub mod mixed;
mod offsets;
mod outputs;
pub mod parts;
mod pipeline;
mod place;
pub mod plan;
mod prepare;
mod read_ahead;
pub mod recipe;
pub mod reference;
pub mod repair;
mod scratch;
mod select;
mod splice;
mod steps;
pub mod stream;
mod subtree;
mod tile;
mod workspace;

pub use calibration::CalibrationFile;
pub use convert::{Conversion, Label};
pub use error::{Error, ErrorGroup};
pub use events::{CancelToken, Event, Events};
pub use place::OutputKind;
pub use plan::{Action, Destination, JobOptions, Plan, PlannedModule, Verb, plan, plan_on};
pub use recipe::{
    AUTO, AWQ, ConvertRecipe, DequantizeRecipe, LossPolicy, OutputDtype, QuantizeRecipe,
    RefineRecipe, SchemeGroup,
};
pub use reference::Reference;
pub use stream::{ModuleSummary, Summary, run};
