"""Calibration statistics as arrays, and as a file in the layout of ``specs/calibration.md``. NumPy only.

``safequant.calibrate`` makes them, the calibrated quantizers consume them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import MalformedError, UsageError

__all__ = ["Detail", "ModuleStatistics", "Statistics", "StatisticsWriter"]

#: How much of ``X^T X / n`` is kept.
Detail = Literal["full", "diagonal"]

F32 = npt.NDArray[np.float32]

FORMAT = "safequant-calibration"
VERSION = "1"

#: Statistics by what follows the last dot of a tensor's name, in the order in which a file has them.
_VECTORS = ("mean_abs_input", "mean_input")
_NAMES = ("hessian", "hessian_diagonal", *_VECTORS, "token_count")

#: What the metadata must hold (clause 8), with the values that mean something.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "format": (FORMAT,),
    "format_version": (VERSION,),
    "hessian": ("full", "diagonal"),
    "accumulation": ("F32", "F64"),
    "sequential": ("true", "false"),
}

#: Room that a header keeps for the metadata that is known only at the end.
_HEADER_SLACK_BYTES = 4096

#: Longest header that the official parser reads.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, eq=False)
class ModuleStatistics:
    """What a linear layer saw of ``token_count`` tokens ``x``; ``K`` stands for its in_features.

    Attributes:
        token_count: How many tokens; 0 means that nothing is known, and everything else is zeros. ``None`` only for what comes from
            an importance matrix in its old form, which does not count them.
        hessian: ``X^T X / n``, F32 ``[K, K]``, exactly symmetric; ``None`` if only its diagonal was kept.
        hessian_diagonal: The mean of ``x^2``, F32 ``[K]``.
        mean_abs_input: The mean of ``|x|``, F32 ``[K]``; ``None`` where a file lacks it.
        mean_input: The mean of ``x``, F32 ``[K]``; ``None`` where a file lacks it.
    """

    token_count: int | None
    hessian: F32 | None
    hessian_diagonal: F32
    mean_abs_input: F32 | None
    mean_input: F32 | None

    @property
    def in_features(self) -> int:
        """``K``."""
        return int(self.hessian_diagonal.shape[0])

    def part(self, name: str) -> F32 | None:
        """The array that is stored under this name, which is one of ``specs/calibration.md``, clause 1."""
        found: F32 | None = getattr(self, name)
        return found


class Statistics(Mapping[str, ModuleStatistics]):
    """The statistics of a model: module names to :class:`ModuleStatistics`, and ``provenance``, the metadata of the file.

    What was loaded lies in a mapping of the file, and is read where it is touched.
    """

    def __init__(self, modules: Mapping[str, ModuleStatistics], provenance: Mapping[str, str]) -> None:
        self._modules = dict(modules)
        self.provenance = dict(provenance)

    def __getitem__(self, module: str) -> ModuleStatistics:
        return self._modules[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        detail = self.provenance.get("hessian", "?")
        return f"<safequant.Statistics: {len(self)} modules, {detail}, {self.provenance.get('tokens', '?')} tokens>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file: under a temporary name, made durable, then renamed over ``path``.

        Raises:
            UsageError: Modules differ in what they hold, or the metadata lacks what every file has.
            OSError: The system refused.
        """
        groups: dict[int, list[str]] = {}
        for name, module in self._modules.items():
            groups.setdefault(id(module), []).append(name)
        widths = {name: module.in_features for name, module in self._modules.items()}
        vectors = [v for v in _VECTORS if all(m.part(v) is not None for m in self._modules.values())]
        detail: Detail = "full" if self.provenance.get("hessian") == "full" else "diagonal"
        with StatisticsWriter(path, widths, detail, vectors, self.provenance) as writer:
            for names in groups.values():
                writer.write(names, self._modules[names[0]])
            writer.commit(self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Opens a file. Arrays are views of a mapping of it, so it must not be changed while they live.

        Raises:
            MalformedError: The file is not in the layout of ``specs/calibration.md``, clause 12; numbers are not looked at (the
                engine does that where they are used).
            OSError: The system refused.
        """
        return cls(*_load(os.fspath(path)))


class StatisticsWriter:
    """Writes a file module by module, so that only one module's statistics have to be in memory.

    The file gets its name in :meth:`commit`; leaving the ``with`` block without that removes it.

    Args:
        path: The file's name in the end.
        modules: Every module that will be written, and its in_features: there must be room for all of them in the header, which
            comes first and is written last.
        detail: What is kept of the second moment.
        vectors: Which vectors are kept beside it.
        metadata: What is known of the metadata beforehand, so that there is room for it too.

    Raises:
        UsageError: In_features are 0, or the header would be longer than readers take.
        OSError: The system refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        modules: Mapping[str, int],
        detail: Detail,
        vectors: Sequence[str] = _VECTORS,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._widths = dict(modules)
        self._detail = detail
        self._parts = ("hessian" if detail == "full" else "hessian_diagonal", *vectors)
        self._shares: dict[str, str] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._counts: dict[str, int] = {}
        self._data_bytes = 0
        for name, width in modules.items():
            if width < 1:
                raise UsageError(f"{name}: expected at least one input feature")
        self._header_bytes = self._room(metadata or {})
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise UsageError(f"{self.path}: a header of {self._header_bytes} bytes; readers take {_MAX_HEADER_BYTES}")
        folder, name = os.path.split(self.path)
        self._folder = folder or "."
        self._partial = os.path.join(self._folder, f".{name}.safequant-partial")
        self._file: IO[bytes] | None = open(self._partial, "wb")
        self._file.seek(8 + self._header_bytes)

    def _room(self, metadata: Mapping[str, str]) -> int:
        """The length of the longest header that can come of this: every module with tensors of its own, far away.

        (One that shares takes less: its name once more instead of four entries.)
        """
        far = [10**18, 10**18]
        entries: dict[str, Any] = {}
        for module, width in self._widths.items():
            for part in (*self._parts, "token_count"):
                entries[f"{module}.{part}"] = {"dtype": "F32", "shape": [width, width], "data_offsets": far}
        return len(self._header(metadata, entries)) + _HEADER_SLACK_BYTES

    def _header(self, metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
        own = {"__metadata__": dict(sorted({**metadata, **self._own_metadata()}.items()))}
        return json.dumps({**own, **entries}, separators=(",", ":"), ensure_ascii=False).encode()

    def _own_metadata(self) -> dict[str, str]:
        own = {"format": FORMAT, "format_version": VERSION, "hessian": self._detail}
        if self._shares:
            own["shares"] = json.dumps(self._shares, separators=(",", ":"), ensure_ascii=False)
        return own

    def write(self, names: Sequence[str], statistics: ModuleStatistics) -> None:
        """Writes what is known of a module, under the first of its names; the others share it.

        Raises:
            UsageError: A name was written before or not announced, an array is missing or has another shape, the token count is
                not known.
            OSError: The system refused.
        """
        first = names[0]
        for name in names:
            if name not in self._widths or name in self._counts or name in self._shares:
                raise UsageError(f"{name}: expected a module that was announced, once")
            if name != first:
                self._shares[name] = first
        if statistics.token_count is None:
            raise UsageError(f"{first}: its token count is not known")
        for part in self._parts:
            array = statistics.part(part)
            dims = 2 if part == "hessian" else 1
            expected = (self._widths[first],) * dims
            if array is None or array.shape != expected:
                found = None if array is None else array.shape
                raise UsageError(f"{first}.{part}: expected an array of {expected}, found {found}")
            self._append(f"{first}.{part}", np.ascontiguousarray(array, dtype="<f4"), "F32")
        self._counts[first] = statistics.token_count

    def _append(self, name: str, array: npt.NDArray[Any], dtype: str) -> None:
        start, end = self._data_bytes, self._data_bytes + array.nbytes
        self._entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        self._open().write(array.reshape(-1).view(np.uint8).data)
        self._data_bytes = end

    def _open(self) -> IO[bytes]:
        if self._file is None:
            raise UsageError(f"{self.path}: it is closed")
        return self._file

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Writes header and counts, makes all durable, and gives the file its name.

        Args:
            metadata: Clause 8; what the writer knows itself (format, version, shares) may be missing, or must agree.

        Raises:
            UsageError: The metadata lacks what every file has, or contradicts the file.
            OSError: The system refused.
        """
        missing = [name for name in self._widths if name not in self._counts and name not in self._shares]
        if missing:
            raise UsageError(f"{self.path}: {missing[0]} was announced, and not written")
        own = self._own_metadata()
        given = {key: value for key, value in metadata.items() if key != "shares"}
        for key, value in own.items():
            if key != "shares" and given.get(key, value) != value:
                raise UsageError(f"{self.path}: {key}: expected {value!r}, found {given[key]!r}")
        _check_metadata(self.path, {**given, **own}, UsageError)
        for module, count in self._counts.items():
            self._append(f"{module}.token_count", np.array(count, dtype="<i8"), "I64")
        header = self._header(given, self._entries)
        if len(header) > self._header_bytes:
            raise UsageError(f"{self.path}: metadata that grew by more than {_HEADER_SLACK_BYTES} bytes")
        file = self._open()
        file.seek(0)
        file.write(self._header_bytes.to_bytes(8, "little") + header.ljust(self._header_bytes))
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._partial, self.path)
        self._file = None
        _sync_folder(self._folder)

    def __enter__(self) -> StatisticsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            os.unlink(self._partial)


def _sync_folder(folder: str) -> None:
    """Makes the new name durable, where folders can be opened at all."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_metadata(path: str, metadata: Mapping[str, str], error: type[MalformedError] | type[UsageError]) -> None:
    for key, allowed in _REQUIRED.items():
        if metadata.get(key) not in allowed:
            raise error(f"{path}: {key}: expected {' or '.join(allowed)}, found {metadata.get(key)!r}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise error(f"{path}: {key}: expected text, found {value!r}")


def _load(path: str) -> tuple[dict[str, ModuleStatistics], dict[str, str]]:
    header, data = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise MalformedError(f"{path}: __metadata__: expected an object")
    _check_metadata(path, metadata, MalformedError)
    parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, entry in header.items():
        module, _, statistic = name.rpartition(".")
        if not module or statistic not in _NAMES:
            raise MalformedError(f"{path}: {name!r}: expected a module, a dot and one of {', '.join(_NAMES)}")
        parts.setdefault(module, {})[statistic] = _view(path, name, statistic, entry, data)
    full = metadata["hessian"] == "full"
    modules = {module: _module(path, module, found, full) for module, found in sorted(parts.items())}
    for name, of in _shares(path, metadata).items():
        if name in parts or of not in parts:
            raise MalformedError(f"{path}: shares: {name!r} cannot stand for {of!r}")
        modules[name] = modules[of]
    return dict(sorted(modules.items())), metadata


def _read_header(path: str) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise MalformedError(f"{path}: expected a safetensors file: the header does not fit its {size} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{path}: expected a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise MalformedError(f"{path}: expected a safetensors file: the header is no object")
    if size == 8 + length:
        return header, np.empty(0, np.uint8)
    return header, np.memmap(path, np.uint8, "r", offset=8 + length)


def _view(path: str, name: str, statistic: str, entry: Any, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    dtype, width = ("I64", 8) if statistic == "token_count" else ("F32", 4)
    dims = {"token_count": 0, "hessian": 2}.get(statistic, 1)
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    shape = _counts(fields.get("shape"), dims)
    if fields.get("dtype") != dtype or shape is None or len(set(shape)) > 1 or 0 in shape:
        raise MalformedError(f"{path}: {name!r}: expected {dtype} of {dims} equal dimensions, found {entry!r:.200}")
    size = width
    for dim in shape:
        size *= dim
    offsets = _counts(fields.get("data_offsets"), 2)
    if offsets is None or offsets[1] - offsets[0] != size or offsets[1] > data.size:
        raise MalformedError(f"{path}: {name!r}: expected {size} bytes within the file, found {entry!r:.200}")
    values: npt.NDArray[Any] = data[offsets[0] : offsets[1]].view(f"<{'i' if width == 8 else 'f'}{width}")
    return values.reshape(shape)


def _counts(values: Any, n: int) -> list[int] | None:
    """The value of a header's key, if it is a list of ``n`` numbers that are not negative."""
    if isinstance(values, list) and len(values) == n and all(type(value) is int and value >= 0 for value in values):
        return values
    return None


def _module(path: str, module: str, found: Mapping[str, npt.NDArray[Any]], full: bool) -> ModuleStatistics:
    wanted, unwanted = ("hessian", "hessian_diagonal") if full else ("hessian_diagonal", "hessian")
    if wanted not in found or "token_count" not in found or unwanted in found:
        raise MalformedError(f"{path}: {module!r}: expected {wanted} and token_count, found {', '.join(sorted(found))}")
    matrix = found[wanted]
    widths = {array.shape[0] for name, array in found.items() if name != "token_count"}
    if len(widths) != 1:
        raise MalformedError(f"{path}: {module!r}: expected one number of input features, found {sorted(widths)}")
    count = int(found["token_count"][()])
    if count < 0:
        raise MalformedError(f"{path}: {module!r}: token_count: expected no negative number, found {count}")
    return ModuleStatistics(
        token_count=count,
        hessian=matrix if full else None,
        hessian_diagonal=matrix.diagonal() if full else matrix,
        mean_abs_input=found.get("mean_abs_input"),
        mean_input=found.get("mean_input"),
    )


def _shares(path: str, metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        shares = json.loads(metadata.get("shares", "{}"))
    except (ValueError, RecursionError):
        shares = None
    if not isinstance(shares, dict) or not all(isinstance(of, str) for of in shares.values()):
        raise MalformedError(f"{path}: shares: expected a JSON object from names to names")
    return shares
