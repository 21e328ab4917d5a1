//! Calibration statistics as the engine reads them, and llama.cpp's importance matrix written.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};
use safequant::rewrite::calibration::imatrix::{self, ImatrixForm, ImatrixModule, ImatrixOptions};
use safequant::rewrite::calibration::{self, Detail, SecondMoment, Statistics};
use safequant::{Limits, OsDisk, rewrite};

use crate::errors::Failure;

/// An opened file of statistics: ours, or llama.cpp's in either form.
#[pyclass(frozen, module = "safequant._native")]
pub(crate) struct Calibration {
    inner: calibration::Calibration,
}

fn failed(error: calibration::Error) -> Failure {
    Failure::from(rewrite::Error::from(error))
}

/// What `Calibration::modules` says of one.
type Row = (String, Option<u64>, u64, Option<u64>, &'static str);

#[pymethods]
impl Calibration {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(|| calibration::Calibration::open(&path, &Limits::default()));
        Ok(Self {
            inner: opened.map_err(failed)?,
        })
    }

    /// Name, `in_features` (or `None`), values of the diagonal, token count (or `None`) and `"full"` or `"diagonal"` of each.
    fn modules(&self) -> Vec<Row> {
        let listed = self.inner.modules();
        let row = |m: calibration::Module| {
            let detail = match m.detail {
                Detail::Full => "full",
                Detail::Diagonal => "diagonal",
            };
            (m.name, m.in_features, m.n_values, m.token_count, detail)
        };
        listed.map(row).collect()
    }

    /// The statistics of a module, or of one expert of a stack, as F32 bytes; `None` if the file has none.
    #[pyo3(signature = (name, in_features, expert = None))]
    fn statistics<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        in_features: u64,
        expert: Option<u64>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let read = py.detach(|| match expert {
            None => self.inner.statistics(name, in_features),
            Some(expert) => self.inner.expert_statistics(name, expert, in_features),
        });
        let found = read.map_err(failed)?;
        found.map(|found| as_dict(py, &found)).transpose()
    }

    /// Keys and values that say how the statistics came about; a key may occur more than once.
    fn provenance(&self) -> Vec<(String, String)> {
        self.inner.provenance()
    }
}

fn as_dict<'py>(py: Python<'py>, found: &Statistics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("token_count", found.token_count)?;
    let (name, values) = match &found.second_moment {
        SecondMoment::Full(values) => ("hessian", values),
        SecondMoment::Diagonal(values) => ("hessian_diagonal", values),
    };
    dict.set_item(name, as_bytes(py, values)?)?;
    for (name, values) in [
        ("mean_abs_input", &found.mean_abs),
        ("mean_input", &found.mean),
    ] {
        if let Some(values) = values {
            dict.set_item(name, as_bytes(py, values)?)?;
        }
    }
    Ok(dict)
}

/// Little-endian, as NumPy takes them by `np.frombuffer`.
fn as_bytes<'py>(py: Python<'py>, values: &[f32]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, 4 * values.len(), |out| {
        for (word, value) in out.chunks_exact_mut(4).zip(values) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    })
}

/// Writes an importance matrix. `modules`: name, token count, and mean squares as F32 bytes; `form`: `"gguf"` or `"dat"`.
#[pyfunction]
pub(crate) fn write_imatrix(
    py: Python<'_>,
    path: PathBuf,
    modules: Vec<(String, u64, PyBackedBytes)>,
    form: &str,
    datasets: Vec<String>,
    chunk_tokens: u32,
) -> PyResult<()> {
    let form = match form {
        "gguf" => ImatrixForm::Gguf,
        "dat" => ImatrixForm::Binary,
        other => {
            let text = format!("form: expected 'gguf' or 'dat', found {other:?}");
            return Err(Failure::usage(text).into());
        }
    };
    let options = ImatrixOptions {
        form,
        datasets,
        chunk_tokens,
    };
    let written = py.detach(|| {
        let module = |(name, token_count, bytes): (String, u64, PyBackedBytes)| ImatrixModule {
            name,
            token_count,
            mean_squares: floats(&bytes),
        };
        let modules: Vec<_> = modules.into_iter().map(module).collect();
        imatrix::write(&OsDisk, &path, &modules, &options)
    });
    Ok(written.map_err(failed)?)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}
