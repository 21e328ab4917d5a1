//! Writing jobs: plans, faults, kills and resumption.

mod faults;
mod gguf;
mod jobs;
mod places;
mod resume;
mod tiny;
