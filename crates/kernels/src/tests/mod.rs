//! Every backend against portable: one runner, one list of cases. A new backend is tested by its line in `BACKENDS`.

mod cases;
mod encode;
mod rows;
mod runner;
