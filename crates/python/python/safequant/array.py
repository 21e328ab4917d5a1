"""Elements of one dtype in C order, over memory that is kept alive: what every read gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from . import _native
from .errors import UsageError

__all__ = ["Array"]

#: DLPack's numbers for kinds of elements (``DLDataTypeCode``).
_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6


class _Element(NamedTuple):
    """What a dtype is to NumPy and to DLPack."""

    numpy: np.dtype[Any]
    dlpack: tuple[int, int]


def _element(scalar: Any, code: int) -> _Element:
    dtype = np.dtype(scalar)
    return _Element(dtype, (code, 8 * dtype.itemsize))


#: Elements by safetensors' spelling. Narrower ones than a byte are not here: they are handed out as the bytes that they lie in.
#: 8-bit floats have DLPack numbers since version 1.1 (10 to 17); consumers that lack them take ``array.view_bytes()``.
_ELEMENTS: dict[str, _Element] = {
    "BOOL": _element(np.bool_, _BOOL),
    "U8": _element(np.uint8, _UINT),
    "I8": _element(np.int8, _INT),
    "U16": _element(np.uint16, _UINT),
    "I16": _element(np.int16, _INT),
    "U32": _element(np.uint32, _UINT),
    "I32": _element(np.int32, _INT),
    "U64": _element(np.uint64, _UINT),
    "I64": _element(np.int64, _INT),
    "F16": _element(np.float16, _FLOAT),
    "BF16": _element(ml_dtypes.bfloat16, _BFLOAT),
    "F32": _element(np.float32, _FLOAT),
    "F64": _element(np.float64, _FLOAT),
    "C64": _element(np.complex64, _COMPLEX),
    "F8_E4M3": _element(ml_dtypes.float8_e4m3fn, 10),
    "F8_E4M3FNUZ": _element(ml_dtypes.float8_e4m3fnuz, 11),
    "F8_E5M2": _element(ml_dtypes.float8_e5m2, 12),
    "F8_E5M2FNUZ": _element(ml_dtypes.float8_e5m2fnuz, 13),
    "F8_E8M0": _element(ml_dtypes.float8_e8m0fnu, 14),
}


class Array:
    """Elements of one dtype in C order.

    NumPy takes it by ``np.asarray(array)`` (with ``ml_dtypes`` for BF16 and the 8-bit floats), any DLPack consumer by
    ``torch.from_dlpack(array)`` and the like, without a copy. Writing into either writes into this memory; where that is a
    mapped file the written pages become private copies, and the file stays as it is.

    Attributes:
        dtype: As safetensors spells it (``"BF16"``). Elements that are narrower than a byte are given as ``"U8"``.
        shape: Dimensions, outermost first.
        stored_dtype: The dtype in the file, where ``dtype`` stands for its bytes.
    """

    __slots__ = ("_memory", "dtype", "shape", "stored_dtype")

    def __init__(self, memory: _native.Memory, dtype: str, shape: Sequence[int]) -> None:
        """Used by the package; ``shape`` is that of the header."""
        self._memory = memory
        self.stored_dtype = dtype
        if dtype in _ELEMENTS:
            self.dtype = dtype
            self.shape = tuple(shape)
        else:
            self.dtype = "U8"
            self.shape = _byte_shape(memory.nbytes, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._memory.nbytes

    @property
    def address(self) -> int:
        """The address of the first byte."""
        return self._memory.address

    @property
    def data(self) -> memoryview:
        """The bytes, by the buffer protocol: writable, in place. From Python 3.12 on ``memoryview(array)`` is the same."""
        return np.asarray(self._memory).data

    def __buffer__(self, flags: int, /) -> memoryview:
        return self.data

    def numpy(self) -> npt.NDArray[Any]:
        """The elements as a NumPy array, without a copy."""
        flat: npt.NDArray[np.uint8] = np.asarray(self._memory)
        return flat.view(_ELEMENTS[self.dtype].numpy).reshape(self.shape)

    def view_bytes(self) -> Array:
        """The same memory as bytes, with the elements' bytes as the last dimension's: ``[.., n * itemsize]``."""
        return Array(self._memory, "U8", _byte_shape(self.nbytes, self.shape))

    def tobytes(self) -> bytes:
        """A copy of the bytes, little-endian."""
        return bytes(np.asarray(self._memory).data)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{self.dtype} cannot become {np.dtype(dtype)} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack_device__(self) -> tuple[int, int]:
        """The CPU, in DLPack's numbers."""
        return 1, 0

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over the same memory.

        Raises:
            BufferError: A stream, another device or a copy is asked for.
        """
        if stream is not None or copy or (dl_device is not None and dl_device != (1, 0)):
            raise BufferError("an array lies on the CPU, and is handed over without a copy")
        code, bits = _ELEMENTS[self.dtype].dlpack
        versioned = max_version is not None and max_version[0] >= 1
        return self._memory.dlpack(code, bits, list(self.shape), versioned)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array of no dimension has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        stored = "" if self.stored_dtype == self.dtype else f", bytes of {self.stored_dtype}"
        return f"Array({self.dtype}, {list(self.shape)}{stored})"


def _byte_shape(nbytes: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape with the last dimension in bytes; one dimension where rows end within a byte."""
    rows = math.prod(shape[:-1])
    if rows and nbytes % rows == 0 and shape:
        return (*shape[:-1], nbytes // rows)
    return (nbytes,)


def into(out: Any, dtype: str, shape: Sequence[int]) -> _native.Memory:
    """The memory of an array of the caller's that is to be filled.

    ``out`` is a NumPy array or anything on the CPU that gives one by DLPack (a torch tensor).

    Raises:
        UsageError: It is not C-contiguous and writable, or has another dtype or shape.
    """
    target = _as_numpy(out, dtype)
    wanted = _ELEMENTS[dtype].numpy
    if target.dtype != wanted or target.shape != tuple(shape):
        found = f"{target.dtype}{list(target.shape)}"
        raise UsageError(f"out is {found}: expected {wanted}{list(shape)}", "out")
    if not (target.flags.c_contiguous and target.flags.writeable):
        raise UsageError("out must be writable and lie together in C order", "out")
    return _native.Memory.borrow((out, target), target.ctypes.data, target.nbytes)


def _as_numpy(out: Any, dtype: str) -> npt.NDArray[Any]:
    if isinstance(out, np.ndarray):
        return out
    if hasattr(out, "data_ptr") and hasattr(out, "untyped_storage"):
        # torch: NumPy's own from_dlpack does not know BF16, so the tensor's bytes are looked at.
        from . import torch as for_torch

        return for_torch.numpy_view(out, dtype)
    return np.from_dlpack(out)
