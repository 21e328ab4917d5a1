"""Opening a checkpoint: its tensors as they are stored, its weights as what they mean."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np

from . import _html, _native
from .array import Array, into
from .errors import MissingError, UsageError

__all__ = ["Checkpoint", "Dense", "Module", "Part", "Slice", "open"]

#: The dtype of dense weights: the reference's own, or one that is computed in F32 and rounded once.
DenseDtype = Literal["auto", "BF16", "F16", "F32"]

#: What is taken for one: these and their usual spellings (``"bfloat16"``, ``"bf16"``), NumPy's, ml_dtypes' and torch's dtypes.
DtypeLike = Any

#: The axis that a rank's share is cut along: rows (``out_features``, 0) or columns (``in_features``, 1) of the weight.
Axis = Literal["out", "in", 0, 1]

_SPELLINGS: dict[str, DenseDtype] = {
    "auto": "auto",
    "bf16": "BF16",
    "bfloat16": "BF16",
    "f16": "F16",
    "float16": "F16",
    "f32": "F32",
    "float32": "F32",
}


def dense_dtype(dtype: DtypeLike) -> DenseDtype:
    """The dense dtype that is meant.

    Raises:
        UsageError: Weights are not computed in it.
    """
    if dtype is None:
        return "auto"
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name.lower() not in _SPELLINGS:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            pass
    found = _SPELLINGS.get(name.lower())
    if found is None:
        raise UsageError(f"dtype {dtype}: weights are computed in BF16, F16 or F32, or in what \"auto\" gives", "dtype")
    return found


class Part:
    """One stored tensor of a quantized weight.

    Attributes:
        role: What it is for: ``"codes"``, ``"scale"``, ``"zero_point"``, ``"group_index"`` ...
        name: Its name in the file.
        dtype: Its dtype, as safetensors spells it.
        shape: Its shape in the file.
    """

    __slots__ = ("_array", "_checkpoint", "dtype", "name", "role", "shape")

    def __init__(self, checkpoint: _native.Checkpoint, part: _native.Part, array: Array | None = None) -> None:
        self._checkpoint = checkpoint
        self._array = array
        self.role: str = part.role
        self.name: str = part.name
        self.dtype: str = part.dtype
        self.shape: tuple[int, ...] = tuple(part.shape)

    @property
    def array(self) -> Array:
        """The stored elements: a view of the mapped file where they are aligned in it, else a copy."""
        return self._array if self._array is not None else _stored(self._checkpoint, self.name)

    def numpy(self) -> Any:
        """The stored elements as a NumPy array."""
        return self.array.numpy()

    def __repr__(self) -> str:
        return f"Part({self.role}, {self.name!r}, {self.dtype}, {list(self.shape)})"


class _Described:
    """What a quantized weight and a slice of one have in common."""

    def __init__(self, checkpoint: _native.Checkpoint, weight: _native.Weight, arrays: list[Array] | None) -> None:
        self._checkpoint = checkpoint
        self.name: str = weight.module
        self.weight: str = weight.weight
        self.convention: str = weight.convention
        self.scheme: str = weight.scheme
        self.shape: tuple[int, ...] = tuple(weight.shape)
        self.bits: int = weight.bits
        self.group_size: int | None = weight.group_size
        self.dtype: str = weight.dtype
        ready: list[Array | None] = [None] * len(weight.parts) if arrays is None else list(arrays)
        parts = [Part(checkpoint, part, array) for part, array in zip(weight.parts, ready, strict=True)]
        self.parts: list[Part] = parts

    def part(self, role: str) -> Part:
        """The part with this role.

        Raises:
            MissingError: There is none.
        """
        for part in self.parts:
            if part.role == role:
                return part
        roles = ", ".join(part.role for part in self.parts)
        raise MissingError(f"{self.name} has no part with the role {role}: it has {roles}", "missing")

    @property
    def codes(self) -> Array:
        """The stored codes, packed as they are. Of block formats (GGUF) the blocks."""
        return self.part("codes").array

    @property
    def scales(self) -> Array | None:
        """The stored scales; ``None`` where they are in the blocks, or there are none."""
        return self._optional("scale")

    @property
    def zero_points(self) -> Array | None:
        """The stored zero points, packed as they are; ``None`` where there are none."""
        return self._optional("zero_point")

    def _optional(self, role: str) -> Array | None:
        return next((part.array for part in self.parts if part.role == role), None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.convention}: {self.scheme}, {list(self.shape)})"


class Slice(_Described):
    """A rank's share of a quantized weight, still packed: the parts are those of a weight of the share's shape."""


class Module(_Described):
    """A quantized weight.

    Attributes:
        name: The module (``"model.layers.0.mlp.up_proj"``).
        weight: The dense tensor that it stands for (``"model.layers.0.mlp.up_proj.weight"``).
        convention: The convention that it is written in.
        scheme: What the numbers mean, in words.
        shape: The logical shape, ``[.., out_features, in_features]``, never transposed, without padding.
        bits: Bits of a code.
        group_size: Input features that share a scale; ``None`` where a scale serves a row, a block or all.
        dtype: What ``dequantize()`` gives: the dtype of the convention's own reference.
        parts: The stored tensors.
    """

    def dequantize(self, *, dtype: DtypeLike = "auto", out: Any = None, threads: int | None = None) -> Array:
        """The weight as dense numbers, ``[.., out_features, in_features]``.

        ``dtype="auto"`` gives the dtype and the very bits of the convention's own reference; BF16, F16 or F32 (in any spelling,
        NumPy's and torch's dtypes included) is computed in F32 and rounded once, to nearest even. ``out``: a NumPy array or a CPU tensor of that dtype and shape, which is filled and
        whose memory the result is. ``threads``: as many at most; one per core otherwise. Other Python threads run meanwhile.

        Raises:
            UsageError: ``out`` does not fit.
            MalformedError: The parts hold what no reader accepts.
        """
        return _dense(self._checkpoint, self.weight, dense_dtype(dtype), None, out, threads)

    def rows(self, start: int, stop: int, *, dtype: DtypeLike = "auto", out: Any = None) -> Array:
        """Rows ``start`` to ``stop`` of the dense weight, ``[stop - start, in_features]``; rows of a stack of matrices are counted
        through.

        Raises:
            UsageError: There are no such rows, or ``out`` does not fit.
        """
        return _dense(self._checkpoint, self.weight, dense_dtype(dtype), (start, stop), out, None)

    def slice(self, rank: int, world: int, axis: Axis = "out") -> Slice:
        """What rank ``rank`` of ``world`` holds of this weight, still packed. Parts are views where the bytes lie together.

        Raises:
            UnsupportedError, RefusedError, UsageError: A group, a block or a packed word would be cut; the message has the numbers.
        """
        named = {0: "out", 1: "in"}.get(axis, str(axis)) if isinstance(axis, int) else axis
        weight, memories = self._checkpoint.slice(self.name, named, rank, world)
        arrays = [Array(m, part.dtype, part.shape) for m, part in zip(memories, weight.parts, strict=True)]
        return Slice(self._checkpoint, weight, arrays)


class Dense:
    """A tensor of the dense checkpoint that a quantized one stands for. Nothing is read before it is asked for.

    Attributes:
        name, dtype, shape: As they would be after ``dequantize``.
    """

    __slots__ = ("_asked", "_checkpoint", "dtype", "name", "shape")

    def __init__(self, checkpoint: _native.Checkpoint, name: str, asked: DenseDtype) -> None:
        self._checkpoint = checkpoint
        self._asked: DenseDtype = asked
        self.name = name
        dtype, shape = checkpoint.dense_info(name, asked)
        self.dtype: str = dtype
        self.shape: tuple[int, ...] = tuple(shape)

    def read(self, *, out: Any = None, threads: int | None = None) -> Array:
        """All of it. See ``Module.dequantize``."""
        return _dense(self._checkpoint, self.name, self._asked, None, out, threads)

    def rows(self, start: int, stop: int, *, out: Any = None) -> Array:
        """Some rows: of all dimensions but the last, counted through."""
        return _dense(self._checkpoint, self.name, self._asked, (start, stop), out, None)

    def __repr__(self) -> str:
        return f"Dense({self.name!r}, {self.dtype}, {list(self.shape)})"


_Value = TypeVar("_Value")


class _ByName(Mapping[str, _Value]):
    """A mapping whose names are known, and whose values are made when they are asked for."""

    _names: dict[str, None]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class DenseView(_ByName[Dense]):
    """A checkpoint seen as the dense one that ``dequantize`` would write, with nothing written."""

    def __init__(self, checkpoint: _native.Checkpoint, dtype: DenseDtype) -> None:
        self._checkpoint = checkpoint
        self._dtype: DenseDtype = dtype
        self._names = dict.fromkeys(checkpoint.dense_names())

    def __getitem__(self, name: str) -> Dense:
        if name not in self._names:
            raise MissingError(f"there is no tensor {name}", "missing")
        return Dense(self._checkpoint, name, self._dtype)


class Tensors(_ByName[Array]):
    """The tensors as they are stored. A tensor is read, or mapped, when it is asked for."""

    def __init__(self, checkpoint: _native.Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(checkpoint.tensor_names())

    def __getitem__(self, name: str) -> Array:
        return _stored(self._checkpoint, name)

    def info(self, name: str) -> tuple[str, tuple[int, ...], str]:
        """Dtype, shape and file of a tensor, from the header alone.

        Raises:
            MissingError: There is no such tensor.
        """
        dtype, shape, _, file = self._checkpoint.tensor_info(name)
        return dtype, tuple(shape), file


class Metadata(_ByName[Any]):
    """The metadata of a GGUF model, by key, in the order of the file: numbers, truth values, texts (``bytes`` where one is not UTF-8)
    and lists of these. A value is made when it is asked for. Nothing in other checkpoints."""

    def __init__(self, checkpoint: _native.Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(checkpoint.metadata_keys())

    def __getitem__(self, key: str) -> Any:
        if key not in self._names:
            raise MissingError(f"there is no metadata {key}", "missing")
        return self._checkpoint.metadata(key)


class Modules(_ByName[Module]):
    """The quantized weights, by module."""

    def __init__(self, checkpoint: _native.Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(checkpoint.modules())

    def __getitem__(self, name: str) -> Module:
        weight = self._checkpoint.module(name)
        if weight is None:
            raise MissingError(f"there is no quantized module {name}", "missing")
        return Module(self._checkpoint, weight, None)


class Checkpoint(Mapping[str, "Module | Array"]):
    """An open checkpoint: a mapping of quantized modules and of stored tensors.

    ``checkpoint["model.layers.0.mlp.up_proj"]`` is a ``Module``, ``checkpoint["model.norm.weight"]`` an ``Array``.

    Attributes:
        path: What was opened.
        modules: The quantized weights alone.
        tensors: The stored tensors alone.
        metadata: The metadata of a GGUF model; that of its first file where there are several.
    """

    def __init__(self, path: str | os.PathLike[str], *, mmap: bool = True, strict: bool = True) -> None:
        """See ``safequant.open``."""
        self.path = Path(path)
        self._native = _native.Checkpoint(os.fspath(path), mmap, strict)
        self.modules = Modules(self._native)
        self.tensors = Tensors(self._native)
        self.metadata = Metadata(self._native)

    @property
    def files(self) -> list[str]:
        """The names of the files that hold tensors."""
        return self._native.files()

    @property
    def conventions(self) -> list[str]:
        """The conventions found; none of them in a dense checkpoint."""
        return self._native.conventions()

    @property
    def problems(self) -> list[str]:
        """What did not bind, a sentence each; empty unless it was opened with ``strict=False``."""
        return self._native.problems()

    def document(self, name: str) -> bytes | None:
        """A document beside the weights (``"config.json"``), as it is; ``None`` if there is none."""
        return self._native.document(name)

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``; empty where there is none."""
        text = self.document("config.json")
        parsed: Any = {} if text is None else json.loads(text)
        return parsed if isinstance(parsed, dict) else {}

    def dense(self, dtype: DtypeLike = "auto") -> DenseView:
        """The checkpoint as the dense one that ``dequantize`` would write: weights that are quantized in ``dtype``, everything
        else as it is."""
        return DenseView(self._native, dense_dtype(dtype))

    @overload
    def __getitem__(self, name: str) -> Module | Array: ...
    @overload
    def __getitem__(self, name: object) -> Module | Array: ...
    def __getitem__(self, name: object) -> Module | Array:
        if not isinstance(name, str):
            raise MissingError(f"a module or tensor is asked for by its name, not by {name!r}", "missing")
        if name in self.modules:
            return self.modules[name]
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.modules
        yield from (name for name in self.tensors if name not in self.modules)

    def __len__(self) -> int:
        return len(self.modules) + sum(name not in self.modules for name in self.tensors)

    def __repr__(self) -> str:
        found = ", ".join(self.conventions) or "dense"
        return f"Checkpoint({str(self.path)!r}, {found}: {len(self.modules)} modules, {len(self.tensors)} tensors)"

    def _repr_html_(self) -> str:
        return _html.checkpoint(self)


def open(path: str | os.PathLike[str], *, mmap: bool = True, strict: bool = True) -> Checkpoint:
    """Opens a ``.safetensors`` file, a directory in the Hugging Face layout, an index file or a ``.gguf`` file.

    Headers are validated once and completely; no weight is read. With ``mmap`` tensors are views of the mapped files: as long as
    the checkpoint or an array of it lives, nobody may cut the files short or write to them, which would end the process or
    change the arrays. ``mmap=False`` reads copies instead. ``strict=False`` opens what does not bind as well, and lists why in
    ``problems``.

    Raises:
        MalformedError: A file is truncated, contradicts itself or its documents.
        UnsupportedError: The checkpoint is quantized in a convention that this version does not know.
        StorageError: It cannot be read.
    """
    return Checkpoint(path, mmap=mmap, strict=strict)


def _stored(checkpoint: _native.Checkpoint, name: str) -> Array:
    dtype, shape, _, _ = checkpoint.tensor_info(name)
    # The widest element; what is narrower is aligned then as well. A header is padded so that this costs nothing as a rule.
    return Array(checkpoint.tensor(name, _ALIGNMENT.get(dtype, 1)), dtype, shape)


#: Bytes of the elements that are wider than one.
_ALIGNMENT = {"U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}


def _dense(
    checkpoint: _native.Checkpoint,
    name: str,
    dtype: DenseDtype,
    rows: tuple[int, int] | None,
    out: Any,
    threads: int | None,
) -> Array:
    found, shape = checkpoint.dense_info(name, dtype)
    if rows is not None:
        shape = [max(rows[1] - rows[0], 0), *shape[-1:]]
    target = None if out is None else into(out, found, shape)
    memory = checkpoint.dense(name, dtype, rows, target, threads)
    filled = target if memory is None else memory
    assert filled is not None
    return Array(filled, found, shape)
