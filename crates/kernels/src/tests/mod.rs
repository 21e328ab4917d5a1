//! Every backend against portable: one runner, one list of cases. A new backend is tested by its line in `BACKENDS`.

mod blocks;
mod cases;
mod encode;
mod indexed;
mod rows;
mod runner;
