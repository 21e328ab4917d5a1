//! Bytes that Python may see, and the one place of this crate with `unsafe` (this file and its folder; docs/adr/0010-python.md).
//!
//! A [`Memory`] is an address and a length, with the owner that keeps them valid: a mapping, a buffer of ours, or an object
//! of Python's. NumPy takes it by `__array_interface__`, every other library by `DLPack`.
#![expect(
    unsafe_code,
    reason = "addresses cross the border between two languages"
)]

mod dlpack;

use std::path::Path;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use safequant::container::{self, MappedCheckpoint};
use safequant::{AlignedBuffer, Limits};

use crate::checkpoint::Opened;

/// Bytes at a fixed address, as long as the object lives.
#[pyclass(frozen, module = "safequant._native")]
pub(crate) struct Memory {
    address: usize,
    len: usize,
    _owner: Owner,
}

/// Who keeps the bytes where they are.
#[expect(dead_code, reason = "an owner is there to be dropped, last")]
enum Owner {
    Mapping(Arc<Opened>),
    Buffer(AlignedBuffer),
    Object(Py<PyAny>),
}

impl Memory {
    /// Bytes of a mapping that `opened` holds. The mapping is private, so that whoever writes writes to a copy.
    pub(crate) fn mapped(opened: Arc<Opened>, bytes: &[u8]) -> Self {
        Self {
            address: bytes.as_ptr().expose_provenance(),
            len: bytes.len(),
            _owner: Owner::Mapping(opened),
        }
    }

    /// A buffer of its own.
    pub(crate) fn owned(mut buffer: AlignedBuffer) -> Self {
        Self {
            address: buffer.as_mut_ptr().expose_provenance(),
            len: buffer.len(),
            _owner: Owner::Buffer(buffer),
        }
    }

    /// Lets `write` fill the bytes. That no other thread of Python's touches an array which it has just handed over to be filled is
    /// the caller's side of `out=`, as it is in NumPy.
    pub(crate) fn fill<T>(&self, write: impl FnOnce(&mut [u8]) -> T) -> T {
        let start = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the owner keeps `len` writable bytes at this address, which is not null (`borrow`). Rust holds no other
        // reference to them: views of a mapping are read by address, and buffers of ours are only moved.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, self.len) };
        write(bytes)
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Opens a checkpoint and maps its files.
///
/// # Errors
/// As [`MappedCheckpoint::open`].
pub(crate) fn open_mapped(path: &Path) -> Result<MappedCheckpoint, container::Error> {
    // SAFETY: that nobody cuts the files short or writes to them is what `safequant.open(mmap=True)` asks of its caller, as
    // every reader of mapped files in Python does.
    unsafe { MappedCheckpoint::open(path, &Limits::default()) }
}

#[pymethods]
impl Memory {
    /// The memory of an object: `nbytes` writable bytes at `address`, which `owner` keeps valid as long as it lives.
    #[staticmethod]
    fn borrow(owner: Py<PyAny>, address: usize, nbytes: usize) -> PyResult<Self> {
        let end = address.checked_add(nbytes);
        if address == 0 && nbytes > 0 || end.is_none_or(|end| end > isize::MAX.unsigned_abs()) {
            return Err(PyValueError::new_err("no memory begins at this address"));
        }
        Ok(Self {
            // A slice of no bytes must begin somewhere too.
            address: address.max(1),
            len: nbytes,
            _owner: Owner::Object(owner),
        })
    }

    /// The address of the first byte.
    #[getter]
    fn address(&self) -> usize {
        self.address
    }

    /// How many bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.len
    }

    /// As NumPy sees it: unsigned bytes, writable.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", "|u1")?;
        interface.set_item("shape", (self.len,))?;
        interface.set_item("data", (self.address, false))?;
        Ok(interface)
    }

    /// A `DLPack` capsule of the whole memory, in C order, on the CPU.
    ///
    /// `code` and `bits`: the element, in `DLPack`'s numbers. `versioned`: whether the consumer knows version 1.
    fn dlpack(
        slf: Py<Self>,
        py: Python<'_>,
        code: u8,
        bits: u8,
        shape: Vec<i64>,
        versioned: bool,
    ) -> PyResult<Py<PyAny>> {
        let memory = slf.get();
        let n_bits = shape.iter().try_fold(u64::from(bits), |n, &d| {
            n.checked_mul(u64::try_from(d).ok()?)
        });
        if n_bits != Some(8 * memory.len as u64) {
            let text = format!("{} bytes do not fill the shape {shape:?}", memory.len);
            return Err(PyValueError::new_err(text));
        }
        let tensor = dlpack::Tensor {
            address: memory.address,
            element: (code, bits),
            shape,
            owner: slf.clone_ref(py),
        };
        if versioned {
            dlpack::versioned(py, tensor)
        } else {
            dlpack::unversioned(py, tensor)
        }
    }
}
