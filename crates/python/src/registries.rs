//! What there is: the registries of the engine, for lists that nobody has to keep up.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use safequant::audit::all_rules;
use safequant::audit::profile::{Profile, profiles};
use safequant::{CONVENTIONS, Dtype, PRESETS};

/// Names of dtypes, conventions (read and written), schemes, methods, audit rules and runtimes.
#[pyfunction]
pub(crate) fn registries(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let list = |names: &mut dyn Iterator<Item = &'static str>| names.collect::<Vec<_>>();
    let written = CONVENTIONS.iter().filter(|c| c.writer().is_some());
    let dict = PyDict::new(py);
    dict.set_item("dtypes", list(&mut Dtype::ALL.iter().map(|d| d.name())))?;
    dict.set_item("conventions", list(&mut CONVENTIONS.iter().map(|c| c.id())))?;
    dict.set_item("written_conventions", list(&mut written.map(|c| c.id())))?;
    dict.set_item("schemes", list(&mut PRESETS.iter().map(|p| p.name)))?;
    dict.set_item(
        "methods",
        list(&mut safequant::options::methods().map(|(id, _)| id)),
    )?;
    dict.set_item("rules", list(&mut all_rules().map(|r| r.id)))?;
    let runtimes: Vec<String> = profiles().iter().map(Profile::name).collect();
    dict.set_item("runtimes", runtimes)?;
    dict.set_item("version", env!("CARGO_PKG_VERSION"))?;
    Ok(dict)
}
