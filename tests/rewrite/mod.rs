//! Writing jobs: plans, faults, kills and resumption.

mod biases;
mod calibrated;
mod faults;
mod folded;
mod gguf;
mod jobs;
mod mixed;
mod nested;
mod parts;
mod places;
mod recipes;
mod refined;
mod resume;
mod statistics;
mod tiny;
