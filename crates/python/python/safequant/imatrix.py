"""llama.cpp's importance matrix: the diagonal of ``X^T X``, in its GGUF and its old binary form (specs/imatrix.md). NumPy only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import UsageError
from .statistics import ModuleStatistics

__all__ = ["ImatrixForm", "read_imatrix", "write_imatrix"]

#: GGUF, or the old binary form.
ImatrixForm = Literal["gguf", "dat"]


def read_imatrix(path: str | os.PathLike[str]) -> dict[str, ModuleStatistics]:
    """Reads an importance matrix of either form; what it is shows in the file.

    Returns:
        Diagonals by module, named as in checkpoints (``model.layers.0.self_attn.q_proj``), experts one by one; what llama.cpp has
        no common name for keeps its own. The old form does not count tokens (``token_count`` is ``None``), and has stacks of
        experts as one module, whose diagonals lie one after the other: ``reshape(-1, in_features)`` takes them apart.

    Raises:
        MalformedError: The file breaks off, contradicts itself, or holds numbers that are no sums of squares.
        StorageError: The system refused.
    """
    opened = _native.Calibration(os.fspath(path))
    found: dict[str, ModuleStatistics] = {}
    for name, _, n_values, _, detail in opened.modules():
        statistics = opened.statistics(name, n_values)
        if detail != "diagonal" or statistics is None:
            raise UsageError(f"{os.fspath(path)}: expected an importance matrix, found other statistics")
        diagonal = np.frombuffer(statistics["hessian_diagonal"], dtype="<f4").astype(np.float32, copy=False)
        found[name] = ModuleStatistics(statistics["token_count"], None, diagonal, None, None)
    return found


def write_imatrix(
    path: str | os.PathLike[str],
    statistics: Mapping[str, ModuleStatistics],
    *,
    form: ImatrixForm = "gguf",
    datasets: Sequence[str] = (),
    chunk_size: int = 512,
) -> None:
    """Writes what ``llama-quantize --imatrix`` takes: under a temporary name, then renamed over ``path``.

    Args:
        path: The file.
        statistics: By module, named as in a checkpoint or in GGUF. Experts become stacks.
        form: ``"gguf"``, or ``"dat"`` for readers from before 2025.
        datasets: What the texts are called.
        chunk_size: Tokens of a chunk. llama.cpp counts in chunks.

    Raises:
        UsageError: A token count is not known.
        RefusedError: Modules that no file can hold: two of one name in GGUF, names that are too long, none at all.
        StorageError: The system refused.
    """
    rows: list[tuple[str, int, bytes]] = []
    for name, module in statistics.items():
        if module.token_count is None:
            raise UsageError(f"{name}: its token count is not known")
        diagonal: npt.NDArray[Any] = np.ascontiguousarray(module.hessian_diagonal, dtype="<f4")
        rows.append((name, module.token_count, diagonal.tobytes()))
    _native.write_imatrix(os.fspath(path), rows, form, list(datasets), chunk_size)
