//! Values of a GGUF file's metadata as Python objects.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyList;
use safequant::container::GgufValue;

/// A number, a truth value, text (bytes where it is not UTF-8) or a list of these.
pub(crate) fn object<'py>(py: Python<'py>, value: GgufValue<'_>) -> PyResult<Bound<'py, PyAny>> {
    match value {
        GgufValue::U8(n) => n.into_bound_py_any(py),
        GgufValue::I8(n) => n.into_bound_py_any(py),
        GgufValue::U16(n) => n.into_bound_py_any(py),
        GgufValue::I16(n) => n.into_bound_py_any(py),
        GgufValue::U32(n) => n.into_bound_py_any(py),
        GgufValue::I32(n) => n.into_bound_py_any(py),
        GgufValue::F32(n) => n.into_bound_py_any(py),
        GgufValue::U64(n) => n.into_bound_py_any(py),
        GgufValue::I64(n) => n.into_bound_py_any(py),
        GgufValue::F64(n) => n.into_bound_py_any(py),
        GgufValue::Bool(is_so) => is_so.into_bound_py_any(py),
        GgufValue::String(bytes) => match value.as_str() {
            Some(text) => text.into_bound_py_any(py),
            None => bytes.into_bound_py_any(py),
        },
        // The container refuses lists of lists, so this goes one level down.
        GgufValue::Array(array) => {
            let list = PyList::empty(py);
            for element in array.iter() {
                list.append(object(py, element)?)?;
            }
            Ok(list.into_any())
        }
    }
}
