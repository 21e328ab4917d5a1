//! The native part of the Python package `safequant`: the facade behind functions and a few opaque objects.
//!
//! It holds no rule of any format. Names, defaults and results are given their Python form in `python/safequant/*.py`; what
//! is here moves bytes, releases the interpreter's lock around work, and turns errors into exceptions.
#![deny(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "what Python passes is converted, and handed over"
)]

mod audits;
mod calibration;
mod checkpoint;
mod errors;
mod jobs;
mod memory;
mod metadata;
mod parallel;
mod parts;
mod program;
mod registries;
mod work;

#[pyo3::pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::audits::{audit, diff, explain, tp_plan};
    #[pymodule_export]
    use crate::calibration::{Calibration, write_imatrix};
    #[pymodule_export]
    use crate::checkpoint::{Checkpoint, Part, Weight};
    #[pymodule_export]
    use crate::jobs::{mixed_recipe, plan, run};
    #[pymodule_export]
    use crate::memory::Memory;
    #[pymodule_export]
    use crate::parallel::shares;
    #[pymodule_export]
    use crate::parts::{begin_parts, discard_parts, finish_parts, run_part};
    #[pymodule_export]
    use crate::program::main;
    #[pymodule_export]
    use crate::registries::registries;
}
