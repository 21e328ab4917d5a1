//! `DLPack` capsules: how torch, JAX and `CuPy` take memory without a copy.
//!
//! The structures are those of `dlpack.h`, version 1.0 (github.com/dmlc/dlpack), the protocol that of the Python array API
//! standard: a capsule named `dltensor` (or `dltensor_versioned`) holds a pointer; who consumes it renames it and calls the
//! deleter later, who drops it unconsumed leaves that to the capsule's destructor.

use std::ffi::{CStr, c_void};

use pyo3::ffi;
use pyo3::prelude::*;

use super::Memory;

/// `kDLCPU`.
const CPU: i32 = 1;

/// What is handed over: a compact tensor in C order.
pub(super) struct Tensor {
    /// Of the first element.
    pub(super) address: usize,
    /// Kind and bits of an element, in `DLPack`'s numbers.
    pub(super) element: (u8, u8),
    /// Dimensions, outermost first.
    pub(super) shape: Vec<i64>,
    /// Keeps the elements where they are.
    pub(super) owner: Py<Memory>,
}

/// What lives until the consumer is done.
struct Context {
    shape: Vec<i64>,
    strides: Vec<i64>,
    _owner: Py<Memory>,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Unversioned {
    tensor: DlTensor,
    context: *mut Context,
    deleter: unsafe extern "C" fn(*mut Self),
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut Context,
    deleter: unsafe extern "C" fn(*mut Self),
    flags: u64,
    tensor: DlTensor,
}

/// What the two have in common.
trait Managed: Sized {
    /// The capsule's name until it is consumed.
    const NAME: &'static CStr;
    fn new(tensor: DlTensor, context: *mut Context) -> Self;
    fn context(&self) -> *mut Context;
}

impl Managed for Unversioned {
    const NAME: &'static CStr = c"dltensor";

    fn new(tensor: DlTensor, context: *mut Context) -> Self {
        Self {
            tensor,
            context,
            deleter: delete::<Self>,
        }
    }

    fn context(&self) -> *mut Context {
        self.context
    }
}

impl Managed for Versioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn new(tensor: DlTensor, context: *mut Context) -> Self {
        Self {
            major: 1,
            minor: 0,
            context,
            deleter: delete::<Self>,
            flags: 0,
            tensor,
        }
    }

    fn context(&self) -> *mut Context {
        self.context
    }
}

/// A capsule for consumers that know version 1.
pub(super) fn versioned(py: Python<'_>, tensor: Tensor) -> PyResult<Py<PyAny>> {
    capsule::<Versioned>(py, tensor)
}

/// A capsule for all others.
pub(super) fn unversioned(py: Python<'_>, tensor: Tensor) -> PyResult<Py<PyAny>> {
    capsule::<Unversioned>(py, tensor)
}

fn capsule<M: Managed>(py: Python<'_>, tensor: Tensor) -> PyResult<Py<PyAny>> {
    let mut strides = vec![1; tensor.shape.len()];
    for i in (1..tensor.shape.len()).rev() {
        // Sizes were held against the bytes there are; beside a dimension of 0 nobody looks.
        strides[i - 1] = tensor.shape[i].saturating_mul(strides[i]);
    }
    let ndim = i32::try_from(tensor.shape.len()).unwrap_or(i32::MAX);
    let mut context = Box::new(Context {
        shape: tensor.shape,
        strides,
        _owner: tensor.owner,
    });
    let described = DlTensor {
        data: std::ptr::with_exposed_provenance_mut(tensor.address),
        device_type: CPU,
        device_id: 0,
        ndim,
        code: tensor.element.0,
        bits: tensor.element.1,
        lanes: 1,
        shape: context.shape.as_mut_ptr(),
        strides: context.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let managed = Box::into_raw(Box::new(M::new(described, Box::into_raw(context))));
    // SAFETY: the name is a static string, and the destructor fits the pointer.
    let made = unsafe { ffi::PyCapsule_New(managed.cast(), M::NAME.as_ptr(), Some(destroy::<M>)) };
    // SAFETY: PyCapsule_New gives an owned reference, or null with an exception set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) };
    match made {
        Ok(capsule) => Ok(capsule.unbind()),
        Err(error) => {
            // SAFETY: no capsule holds the pointer.
            unsafe { delete(managed) };
            Err(error)
        }
    }
}

/// Frees a managed tensor. May be called on any thread, attached to the interpreter or not.
///
/// # Safety
/// - `managed` comes from [`capsule`];
/// - this is the only call for it.
unsafe extern "C" fn delete<M: Managed>(managed: *mut M) {
    // SAFETY: `capsule` made both with `Box::into_raw`, and they are freed once.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: as above.
    drop(unsafe { Box::from_raw(managed.context()) });
}

/// What a capsule does when it dies: frees the tensor, unless it was consumed.
///
/// # Safety
/// `capsule` is a capsule made by [`capsule`] for this kind of tensor.
unsafe extern "C" fn destroy<M: Managed>(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls this with the capsule that dies. A consumer has renamed it.
    let is_ours = unsafe { ffi::PyCapsule_IsValid(capsule, M::NAME.as_ptr()) } == 1;
    if is_ours {
        // SAFETY: it is valid under this name, so the pointer is the one of `capsule`, and nobody has freed it.
        unsafe { delete::<M>(ffi::PyCapsule_GetPointer(capsule, M::NAME.as_ptr()).cast()) };
    }
}
