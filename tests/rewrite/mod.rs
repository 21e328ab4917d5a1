//! Writing jobs: plans, faults, kills and resumption.

mod calibrated;
mod faults;
mod gguf;
mod jobs;
mod parts;
mod places;
mod recipes;
mod resume;
mod statistics;
mod tiny;
