//! Writing jobs: plans, faults, kills and resumption.

mod faults;
mod jobs;
mod places;
mod resume;
mod tiny;
