"""torch: tensors over the engine's memory, and checkpoints as state dicts that are never whole in memory.

Importing this module imports torch. Nothing here knows a format: what a rank holds of a weight, and what the weight is, the
engine says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, KeysView
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy.typing as npt
import torch
import torch.utils.dlpack

from . import _native
from .array import _ELEMENTS, Array
from .checkpoint import Checkpoint, DenseDtype, open
from .errors import MissingError, UnsupportedError, UsageError

__all__ = ["StateDict", "as_tensor", "numpy_view", "state_dict"]

#: torch's names for safetensors' dtypes. A version of torch may lack some of them.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}

#: What the engine computes weights in, by torch's dtype.
_DENSE: dict[torch.dtype, DenseDtype] = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

#: Bytes of rows that are decoded at once where columns are cut, or a device is filled from pinned memory.
_TILE_BYTES = 16 << 20

#: Where a tensor is cut: the dimension, and the ranges along it that are the rank's.
_Cut = tuple[int, list[tuple[int, int]]]


def dtype_of(dtype: str) -> torch.dtype:
    """torch's dtype for safetensors' spelling of one (``"BF16"``).

    Raises:
        UnsupportedError: This version of torch has none.
    """
    found = getattr(torch, _NAMES.get(dtype, ""), None)
    if not isinstance(found, torch.dtype):
        raise UnsupportedError(f"torch {torch.__version__} has no dtype for {dtype}", "torch_dtype")
    return found


def as_tensor(array: Array) -> torch.Tensor:
    """An array as a CPU tensor of its shape over the same memory, which lives as long as the tensor does.

    Writing into the tensor writes into the array. Every dtype that torch has is given as itself, by way of bytes: DLPack has
    numbers for the 8-bit floats, which consumers learn one version at a time.

    Raises:
        UnsupportedError: This version of torch lacks the dtype; ``array.view_bytes()`` is a way around.
    """
    dtype = dtype_of(array.dtype)
    flat = torch.utils.dlpack.from_dlpack(array.view_bytes())
    return flat.reshape(-1).view(dtype).reshape(array.shape)


def numpy_view(tensor: torch.Tensor, dtype: str) -> npt.NDArray[Any]:
    """A CPU tensor's memory as a writable NumPy array of its shape, in the dtype that ``dtype`` (``"BF16"``) is in NumPy.

    Raises:
        UsageError: The tensor is not of this dtype, or does not lie together in C order on the CPU.
    """
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise UsageError("the tensor must lie together in C order on the CPU", "out")
    if tensor.is_conj() or tensor.is_neg():
        raise UsageError("the tensor is a view that computes: call resolve_conj() and resolve_neg() on it", "out")
    if tensor.dtype != dtype_of(dtype):
        raise UsageError(f"the tensor is {tensor.dtype}: expected {dtype_of(dtype)}", "out")
    flat: npt.NDArray[Any] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return flat.view(_ELEMENTS[dtype].numpy).reshape(tuple(tensor.shape))


@overload
def state_dict(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    as_dtype: torch.dtype | None = None,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    packed: Literal[False] = False,
) -> StateDict: ...
@overload
def state_dict(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    packed: Literal[True],
) -> StateDict: ...
def state_dict(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    as_dtype: torch.dtype | None = None,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    packed: bool = False,
) -> StateDict:
    """The weights of a checkpoint as torch tensors, one at a time: what a loader's ``load_weights`` iterates.

    A tensor is decoded when it is asked for and belongs to the caller; the state dict keeps none. Names are those of the dense
    checkpoint, in the order of their layers; a weight whose runtime multiplies its inputs by factors is given with the factors
    applied, so that a dense model computes what the quantized one does. Headers are read and judged at once, so that what cannot
    be given is refused here.

    Args:
        path: What ``safequant.open`` takes, or what it gave.
        as_dtype: The dtype of weights that are quantized: ``torch.bfloat16``, ``float16`` or ``float32``, computed in F32 and
            rounded once. ``None``: the dtype and the very bits of the convention's own reference. Other tensors stay as they are.
        rank, world: Tensor-parallel share: rows of q, k, v, gate, up, embeddings and head, columns of o and down, fused weights
            by their parts; norms, routers and other tensors are whole. Only the rank's rows are decoded.
        device: Where tensors are made. A CUDA device is filled through two pinned buffers, in turn.
        packed: The stored tensors under their stored names instead, as views of the mapped files; whole ones only.

    Raises:
        MalformedError, UnsupportedError, StorageError: As ``safequant.open``.
        UsageError: The options do not go together, or a weight cannot be shared among so many ranks; the message names it.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open(path)
    target = torch.device(device)
    if target.type == "cuda" and target.index is None:
        target = torch.device("cuda", torch.cuda.current_device())
    if packed:
        if as_dtype is not None or (rank, world) != (0, 1):
            raise UsageError("packed tensors are given whole and as they are stored: leave out as_dtype, rank and world", "packed")
        return StateDict(_Packed(checkpoint), target)
    if as_dtype is not None and as_dtype not in _DENSE:
        known = ", ".join(map(str, _DENSE))
        raise UsageError(f"as_dtype is {as_dtype}: weights are computed in {known}", "as_dtype")
    dtype = "auto" if as_dtype is None else _DENSE[as_dtype]
    return StateDict(_Dense(checkpoint, dtype, rank, world, target), target)


class StateDict:
    """Pairs of names and tensors, made one by one.

    ``for name, tensor in weights`` is what loaders do; ``weights[name]``, ``weights.keys()``, ``.items()`` and ``.values()`` are
    those of a mapping, and ``dict(weights)`` makes all of it.
    """

    def __init__(self, source: _Packed | _Dense, device: torch.device) -> None:
        """Used by ``state_dict``."""
        self._source = source
        self.device = device

    @property
    def checkpoint(self) -> Checkpoint:
        """What the tensors are read from."""
        return self._source.checkpoint

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._source.cuts.keys()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Pairs, made as they are asked for."""
        return iter(self)

    def values(self) -> Iterator[torch.Tensor]:
        """Tensors, made as they are asked for."""
        return (tensor for _, tensor in self)

    def describe(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of a tensor; nothing is read.

        Raises:
            MissingError: There is none of this name.
        """
        self._check(name)
        dtype, shape = self._source.describe(name)
        return dtype_of(dtype), shape

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor.

        Raises:
            MissingError: There is none of this name.
            MalformedError, StorageError: Its parts hold what no reader accepts, or cannot be read.
        """
        self._check(name)
        return self._source.read(name).to(self.device)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.keys():
            yield name, self[name]

    def __len__(self) -> int:
        return len(self._source.cuts)

    def __contains__(self, name: object) -> bool:
        return name in self._source.cuts

    def __repr__(self) -> str:
        return f"StateDict({self.checkpoint!r}, {len(self)} tensors on {self.device})"

    def _check(self, name: str) -> None:
        if name not in self._source.cuts:
            raise MissingError(f"there is no tensor {name}", "missing")


class _Packed:
    """The stored tensors: views of the mapped files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.cuts: dict[str, _Cut | None] = dict.fromkeys(sorted(checkpoint.tensors, key=_natural))

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        array = self.checkpoint.tensors[name]
        return array.dtype, array.shape

    def read(self, name: str) -> torch.Tensor:
        return as_tensor(self.checkpoint.tensors[name])


class _Dense:
    """A rank's share of the dense checkpoint."""

    def __init__(self, checkpoint: Checkpoint, dtype: DenseDtype, rank: int, world: int, device: torch.device) -> None:
        if world < 1 or not 0 <= rank < world:
            raise UsageError(f"there is no rank {rank} of {world}: ranks count from 0", "rank")
        self.checkpoint = checkpoint
        self._dense = checkpoint.dense(dtype)
        # What is not quantized is a stored tensor, of which there is a view.
        self._quantized = {module.weight for module in checkpoint.modules.values()}
        # Derived weights: those with the factors of their inputs applied stand in the place of those without.
        self._applied = {name: name + "_effective" for name in self._quantized if name + "_effective" in self._dense}
        derived = set(self._applied.values())
        shares: dict[str, _Cut | None] = {}
        if world > 1:
            shares = dict(_native.shares(os.fspath(checkpoint.path), rank, world))
        names = sorted((name for name in self._dense if name not in derived), key=_natural)
        self.cuts = {name: shares.get(name) for name in names}
        self._stage = _Pinned(device) if device.type == "cuda" else _Plain()

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        dense = self._dense[name] if name in self._quantized else self.checkpoint.tensors[name]
        return dense.dtype, _Rows.of(dense.shape, self.cuts[name]).shape

    def read(self, name: str) -> torch.Tensor:
        cut, dense = self.cuts[name], self._dense[self._applied.get(name, name)]
        on_cpu = isinstance(self._stage, _Plain)
        # Scalars, and elements narrower than a byte, have no rows that a buffer could hold.
        has_rows = bool(dense.shape) and dense.dtype in _NAMES
        if name not in self._quantized and (on_cpu or not has_rows):
            return _narrowed(as_tensor(self.checkpoint.tensors[name]), cut)
        if cut is None and on_cpu:
            return as_tensor(dense.read())
        rows = _Rows.of(dense.shape, cut)
        out = torch.empty(rows.shape, dtype=dtype_of(dense.dtype), device=self._stage.device)
        flat, width = out.view(rows.count, rows.shape[-1]), dense.shape[-1]
        for at, start, stop in rows.tiles(max(_TILE_BYTES // max(width * out.itemsize, 1), 1)):
            place = flat[at : at + stop - start]
            if rows.columns is None and on_cpu:
                dense.rows(start, stop, out=place)
                continue
            staged = self._stage.take(stop - start, width, out.dtype)
            dense.rows(start, stop, out=staged)
            self._stage.give(staged, place, rows.columns)
        self._stage.finish()
        return out


@dataclass(frozen=True)
class _Rows:
    """A share as runs of rows, counted through all dimensions but the last, and of columns; ``None`` for all columns."""

    shape: tuple[int, ...]
    runs: list[tuple[int, int]]
    columns: list[tuple[int, int]] | None

    @classmethod
    def of(cls, shape: tuple[int, ...], cut: _Cut | None) -> _Rows:
        n_rows = math.prod(shape[:-1])
        if cut is None:
            return cls(shape, [(0, n_rows)], None)
        axis, ranges = cut
        length = sum(stop - start for start, stop in ranges)
        ours = (*shape[:axis], length, *shape[axis + 1 :])
        if axis == len(shape) - 1:
            return cls(ours, [(0, n_rows)], ranges)
        # Rows below one index of this axis lie together.
        inner = math.prod(shape[axis + 1 : -1])
        # A header may claim any number of matrices that have no elements.
        outer = range(0 if 0 in shape else math.prod(shape[:axis]))
        runs = [((i * shape[axis] + start) * inner, (i * shape[axis] + stop) * inner) for i in outer for start, stop in ranges]
        return cls(ours, runs, None)

    @property
    def count(self) -> int:
        """How many rows the share has."""
        return sum(stop - start for start, stop in self.runs)

    def tiles(self, n: int) -> Iterator[tuple[int, int, int]]:
        """At most ``n`` rows at a time: where they go, and the first and last of them."""
        at = 0
        for first, last in self.runs:
            for start in range(first, last, n):
                stop = min(start + n, last)
                yield at, start, stop
                at += stop - start


class _Plain:
    """Rows on their way to a CPU tensor that holds a part of their columns."""

    device = torch.device("cpu")

    def take(self, n_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((n_rows, width), dtype=dtype)

    def give(self, staged: torch.Tensor, place: torch.Tensor, columns: list[tuple[int, int]] | None) -> None:
        place.copy_(staged if columns is None else _narrowed(staged, (1, columns)))

    def finish(self) -> None:
        pass


class _Pinned:
    """Rows on their way to a CUDA device: while one pinned buffer is copied on a stream of its own, the other one is filled."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch does not annotate what makes these two.
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._turn = 0

    def take(self, n_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        self._turn = 1 - self._turn
        # An event that was never recorded is free.
        self._free[self._turn].synchronize()
        n_bytes = n_rows * width * dtype.itemsize
        if self._buffers[self._turn].numel() < n_bytes:
            self._buffers[self._turn] = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        return self._buffers[self._turn][:n_bytes].view(dtype).view(n_rows, width)

    def give(self, staged: torch.Tensor, place: torch.Tensor, columns: list[tuple[int, int]] | None) -> None:
        # The destination's memory may have served the current stream before.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            if columns is None:
                place.copy_(staged, non_blocking=True)
            else:
                # Whole rows go over the bus: what does not lie together would first be copied on the CPU.
                place.copy_(_narrowed(staged.to(self.device, non_blocking=True), (1, columns)))
            self._free[self._turn].record(self._stream)

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self._stream)


def _narrowed(tensor: torch.Tensor, cut: _Cut | None) -> torch.Tensor:
    """The ranges of a tensor, behind each other; without a copy where they lie together."""
    if cut is None:
        return tensor
    axis, ranges = cut
    pieces = [tensor.narrow(axis, start, stop - start) for start, stop in ranges]
    # Elements are moved as bytes: concatenating 8-bit floats is not there in every version.
    return pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces, axis)


def _natural(name: str) -> list[tuple[int, str]]:
    """Names by their words, numbers by their size: layer 2 comes before layer 10. Python refuses numbers of thousands of digits."""
    return [(int(word), "") if word.isdecimal() and len(word) < 20 else (-1, word) for word in name.split(".")]
