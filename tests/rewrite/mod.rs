//! Writing jobs: plans, faults, kills and resumption.

mod faults;
mod gguf;
mod jobs;
mod parts;
mod places;
mod resume;
mod tiny;
