//! An open checkpoint: its tensors as bytes, its weights as what they mean.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use safequant::container::MappedCheckpoint;
use safequant::schemes::{Axis, DenseTensor, OutputDtype, Selection, dtype_of, slice};
use safequant::views::{SlicedPart, slice_parts};
use safequant::{
    AlignedBuffer, Backend, CancelToken, Decoder, Float, Limits, Model, QuantizedTensor, TensorRef,
    parallel,
};

use crate::errors::Failure;
use crate::memory::{Memory, open_mapped};
use crate::{metadata, work};

/// Outputs of so many bytes are worth a thread that can be interrupted.
const LONG_BYTES: usize = 32 << 20;

/// A checkpoint with its weights.
pub(crate) struct Opened {
    files: Files,
    model: Model,
    /// Where a dense name is found.
    dense: HashMap<String, Place>,
    /// What did not bind.
    problems: Vec<safequant::schemes::Error>,
}

enum Files {
    Mapped(MappedCheckpoint),
    Read(safequant::Checkpoint),
}

#[derive(Clone, Copy)]
enum Place {
    Quantized(usize),
    Effective(usize),
    Plain,
}

impl Opened {
    pub(crate) fn checkpoint(&self) -> &safequant::Checkpoint {
        match &self.files {
            Files::Mapped(mapped) => mapped.checkpoint(),
            Files::Read(checkpoint) => checkpoint,
        }
    }

    fn new(files: Files, bind: Bind) -> Result<Self, Failure> {
        let checkpoint = match &files {
            Files::Mapped(mapped) => mapped.checkpoint(),
            Files::Read(checkpoint) => checkpoint,
        };
        let (model, problems) = match bind {
            Bind::All => (Model::bind(checkpoint)?, Vec::new()),
            Bind::WhatBinds => Model::survey(checkpoint),
        };
        let named = |list: &[QuantizedTensor], place: fn(usize) -> Place| {
            let named = list.iter().enumerate();
            named
                .map(|(i, tensor)| (tensor.weight.clone(), place(i)))
                .collect::<Vec<_>>()
        };
        let plain = model.plain.iter().map(|name| (name.clone(), Place::Plain));
        let dense = plain
            .chain(named(&model.quantized, Place::Quantized))
            .chain(named(&model.effective, Place::Effective))
            .collect();
        Ok(Self {
            files,
            model,
            dense,
            problems,
        })
    }

    fn dense(&self, name: &str, dtype: OutputDtype) -> Result<DenseTensor<'_>, Failure> {
        let quantized = |tensor| -> Result<DenseTensor<'_>, Failure> {
            let decoder = Decoder::new(tensor, self.checkpoint(), Backend::detect())?;
            Ok(DenseTensor::of(decoder, dtype))
        };
        let found = match self.dense.get(name) {
            Some(Place::Quantized(i)) => return quantized(&self.model.quantized[*i]),
            Some(Place::Effective(i)) => return quantized(&self.model.effective[*i]),
            Some(Place::Plain) => self.checkpoint().tensor(name).map(DenseTensor::plain),
            None => None,
        };
        found.ok_or_else(|| Failure::missing(name))
    }
}

/// What has to bind.
#[derive(Clone, Copy)]
enum Bind {
    All,
    WhatBinds,
}

/// One stored tensor of a quantized weight.
#[pyclass(frozen, get_all, module = "safequant._native")]
pub(crate) struct Part {
    /// What it is for.
    role: &'static str,
    /// Its name in the file.
    name: String,
    /// Its dtype, as safetensors spells it.
    dtype: &'static str,
    /// Its shape.
    shape: Vec<u64>,
}

/// A quantized weight, described.
#[expect(
    clippy::struct_field_names,
    reason = "the dense tensor is called a weight"
)]
#[pyclass(frozen, get_all, module = "safequant._native")]
pub(crate) struct Weight {
    /// The module.
    module: String,
    /// The dense tensor that it stands for.
    weight: String,
    /// The convention that it is written in.
    convention: &'static str,
    /// The scheme in words.
    scheme: String,
    /// The logical shape, `[.., out_features, in_features]`.
    shape: Vec<u64>,
    /// Bits of a code.
    bits: u32,
    /// Input features that share a scale; none where a scale serves a row, a block or all.
    group_size: Option<u64>,
    /// The dtype that the convention's own reference gives.
    dtype: &'static str,
    /// The stored tensors.
    parts: Vec<Py<Part>>,
}

impl Weight {
    fn new(py: Python<'_>, tensor: &QuantizedTensor) -> PyResult<Self> {
        let parts = tensor.parts.iter().map(|part| {
            let described = Part {
                role: part.role.name(),
                name: part.name.clone(),
                dtype: part.dtype.name(),
                shape: part.shape.clone(),
            };
            Py::new(py, described)
        });
        Ok(Self {
            module: tensor.module.clone(),
            weight: tensor.weight.clone(),
            convention: tensor.convention,
            scheme: tensor.scheme.to_string(),
            shape: tensor.shape.clone(),
            bits: tensor.scheme.code.bits(),
            group_size: tensor.scheme.granularity.group_size(),
            dtype: dtype_of(tensor.reference_dtype).name(),
            parts: parts.collect::<PyResult<_>>()?,
        })
    }
}

/// An open checkpoint.
#[pyclass(frozen, module = "safequant._native")]
pub(crate) struct Checkpoint(Arc<Opened>);

#[pymethods]
impl Checkpoint {
    /// Opens a file, a directory or an index. `mapped`: tensors are views of the mapped files, which nobody may cut short or
    /// write to meanwhile; otherwise they are read. `strict`: everything has to bind.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, mapped: bool, strict: bool) -> PyResult<Self> {
        let bind = if strict { Bind::All } else { Bind::WhatBinds };
        let open = || -> Result<Opened, Failure> {
            let is_gguf = path.extension().is_some_and(|e| e == "gguf");
            let files = if mapped && !is_gguf {
                Files::Mapped(open_mapped(&path)?)
            } else {
                Files::Read(safequant::Checkpoint::open(&path, &Limits::default())?)
            };
            Opened::new(files, bind)
        };
        Ok(Self(Arc::new(py.detach(open)?)))
    }

    /// The names of all stored tensors, in the order of the files.
    fn tensor_names(&self) -> Vec<&str> {
        self.0.checkpoint().tensors().map(TensorRef::name).collect()
    }

    /// Dtype, shape, bytes and file of a stored tensor.
    fn tensor_info(&self, name: &str) -> PyResult<(&'static str, Vec<u64>, u64, String)> {
        let tensor = self.0.checkpoint().tensor(name);
        let tensor = tensor.ok_or_else(|| Failure::missing(name))?;
        let info = tensor.info;
        Ok((
            info.dtype.name(),
            info.shape.to_vec(),
            info.len_bytes(),
            tensor.shard.name.clone(),
        ))
    }

    /// The bytes of a stored tensor: a view of the mapping where they lie on a multiple of `alignment`, else a copy.
    fn tensor(&self, py: Python<'_>, name: &str, alignment: usize) -> PyResult<Memory> {
        let opened = &self.0;
        if let Files::Mapped(mapped) = &opened.files
            && let Some(view) = mapped.tensor(name)
            && view.bytes.as_ptr().addr().is_multiple_of(alignment.max(1))
        {
            return Ok(Memory::mapped(Arc::clone(opened), view.bytes));
        }
        let tensor = opened.checkpoint().tensor(name);
        let tensor = tensor.ok_or_else(|| Failure::missing(name))?;
        let read = || -> Result<AlignedBuffer, Failure> {
            let mut buffer = AlignedBuffer::zeroed(tensor.info.len_bytes(), name)?;
            tensor.read_exact_at(0, &mut buffer)?;
            Ok(buffer)
        };
        Ok(Memory::owned(py.detach(read)?))
    }

    /// A document beside the weights (`config.json`).
    fn document(&self, name: &str) -> Option<&[u8]> {
        self.0.checkpoint().document(name)
    }

    /// The keys of a GGUF file's metadata, in its order; none of other checkpoints.
    fn metadata_keys(&self) -> Vec<&str> {
        let metadata = self.0.checkpoint().gguf();
        metadata.map_or_else(Vec::new, |found| found.iter().map(|(key, _)| key).collect())
    }

    /// A value of that metadata: a number, a truth value, text (bytes where it is not UTF-8) or a list of these; `None` where there
    /// is no such key.
    fn metadata<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let metadata = self.0.checkpoint().gguf();
        let value = metadata.and_then(|found| found.get(key));
        value.map(|value| metadata::object(py, value)).transpose()
    }

    /// The names of the files that hold tensors.
    fn files(&self) -> Vec<&str> {
        let shards = self.0.checkpoint().shards().iter();
        shards.map(|shard| shard.name.as_str()).collect()
    }

    /// The conventions found.
    fn conventions(&self) -> Vec<&'static str> {
        self.0.model.conventions.iter().map(|(id, _)| *id).collect()
    }

    /// What did not bind, a sentence each.
    fn problems(&self) -> Vec<String> {
        self.0.problems.iter().map(ToString::to_string).collect()
    }

    /// The names of all quantized modules.
    fn modules(&self) -> Vec<&str> {
        let weights = self.0.model.quantized.iter();
        weights.map(|weight| weight.module.as_str()).collect()
    }

    /// A quantized module, described; none where there is no such module.
    fn module(&self, py: Python<'_>, name: &str) -> PyResult<Option<Weight>> {
        let found = self.0.model.module(name);
        found.map(|tensor| Weight::new(py, tensor)).transpose()
    }

    /// The names of the dense checkpoint that this one stands for, by name.
    fn dense_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.dense.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Dtype and shape of a tensor of that dense checkpoint.
    fn dense_info(&self, name: &str, dtype: &str) -> PyResult<(&'static str, Vec<u64>)> {
        let tensor = self.0.dense(name, output_dtype(dtype)?)?;
        Ok((tensor.dtype.name(), tensor.shape.to_vec()))
    }

    /// Rows of a tensor of that dense checkpoint: of all dimensions but the last, counted through. `out`: memory of exactly their
    /// bytes; none for fresh memory. `threads`: none for one per core.
    #[pyo3(signature = (name, dtype, rows=None, out=None, threads=None))]
    fn dense(
        &self,
        py: Python<'_>,
        name: &str,
        dtype: &str,
        rows: Option<(u64, u64)>,
        out: Option<Py<Memory>>,
        threads: Option<usize>,
    ) -> PyResult<Option<Memory>> {
        let tensor = self.0.dense(name, output_dtype(dtype)?)?;
        let rows = range(rows, tensor.n_rows())?;
        let n_rows = rows.end - rows.start;
        let needed = n_rows.checked_mul(tensor.row_bytes());
        let needed = needed.and_then(|n| usize::try_from(n).ok());
        let needed =
            needed.ok_or_else(|| Failure::usage(format!("{name} is larger than memory")))?;
        let Some(out) = out else {
            let mut fresh = py
                .detach(|| AlignedBuffer::zeroed(needed as u64, name))
                .map_err(Failure::from)?;
            fill(py, &tensor, rows, &mut fresh, threads)?;
            return Ok(Some(Memory::owned(fresh)));
        };
        if out.get().len() != needed {
            let text = format!("out has {} bytes, {name} needs {needed}", out.get().len());
            return Err(Failure::usage(text).into());
        }
        out.get()
            .fill(|bytes| fill(py, &tensor, rows, bytes, threads))?;
        Ok(None)
    }

    /// A rank's share of a quantized module along `axis` ("out", "in"), still packed: its description, and for each part its
    /// bytes, borrowed from the mapping where they lie together.
    fn slice(
        &self,
        py: Python<'_>,
        module: &str,
        axis: &str,
        rank: u64,
        world: u64,
    ) -> PyResult<(Weight, Vec<Memory>)> {
        let opened = &self.0;
        let weight = opened.model.module(module);
        let weight = weight.ok_or_else(|| Failure::missing(module))?;
        let axis = match axis {
            "out" => Axis::Out,
            "in" => Axis::In,
            other => {
                let text = format!("axis {other}: expected \"out\" or \"in\"");
                return Err(Failure::usage(text).into());
            }
        };
        let cut = || -> Result<_, Failure> {
            let selection = Selection::of_rank(weight, axis, rank, world)?;
            let share = slice(weight, &selection)?;
            let parts = match &opened.files {
                Files::Mapped(mapped) => {
                    let parts = slice_parts(mapped, weight, &share)?.into_iter();
                    parts.map(|part| memory_of(opened, part)).collect()
                }
                Files::Read(checkpoint) => {
                    let parts = share.read(weight, checkpoint, Backend::detect())?;
                    parts.into_iter().map(Memory::owned).collect()
                }
            };
            Ok((share.tensor, parts))
        };
        let (tensor, parts) = py.detach(cut)?;
        Ok((Weight::new(py, &tensor)?, parts))
    }
}

fn memory_of(opened: &Arc<Opened>, part: SlicedPart<'_>) -> Memory {
    match part {
        SlicedPart::Borrowed(bytes) => Memory::mapped(Arc::clone(opened), bytes),
        SlicedPart::Gathered(buffer) => Memory::owned(buffer),
    }
}

/// Decodes without the interpreter's lock; what takes long can be interrupted.
fn fill(
    py: Python<'_>,
    tensor: &DenseTensor<'_>,
    rows: Range<u64>,
    out: &mut [u8],
    threads: Option<usize>,
) -> PyResult<()> {
    let cancel = CancelToken::default();
    let is_long = out.len() >= LONG_BYTES;
    let decode = || -> Result<(), Failure> {
        let read = || parallel::rows_into(tensor, rows, out, &cancel);
        let done = match threads {
            None => read(),
            Some(n) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
                let pool = pool.map_err(|e| Failure::usage(format!("{n} threads: {e}")))?;
                pool.install(read)
            }
        };
        Ok(done?)
    };
    let done = if is_long {
        work::run_quietly(py, &cancel, decode)?
    } else {
        py.detach(decode)
    };
    Ok(done?)
}

/// The rows asked for, which must be there.
fn range(rows: Option<(u64, u64)>, n_rows: u64) -> Result<Range<u64>, Failure> {
    let (start, end) = rows.unwrap_or((0, n_rows));
    if start <= end && end <= n_rows {
        return Ok(start..end);
    }
    let text = format!("rows {start} to {end} are not among {n_rows} rows");
    Err(Failure::usage(text))
}

/// `auto`, or a float as safetensors spells it.
pub(crate) fn output_dtype(name: &str) -> Result<OutputDtype, Failure> {
    match name {
        "auto" => Ok(OutputDtype::Auto),
        "BF16" => Ok(OutputDtype::Float(Float::Bf16)),
        "F16" => Ok(OutputDtype::Float(Float::F16)),
        "F32" => Ok(OutputDtype::Float(Float::F32)),
        other => Err(Failure::usage(format!(
            "dtype {other}: expected auto, BF16, F16 or F32"
        ))),
    }
}
