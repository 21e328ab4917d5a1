"""The writing verbs: quantize, refine, convert, dequantize, with the command line's options as keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import _native
from .checkpoint import DtypeLike, dense_dtype
from .errors import StorageError, UsageError

__all__ = [
    "Event",
    "ModuleSummary",
    "Plan",
    "PlannedModule",
    "Request",
    "Summary",
    "convert",
    "convert_request",
    "dequantize",
    "dequantize_request",
    "plan",
    "quantize",
    "quantize_request",
    "refine",
    "refine_request",
    "run",
]

#: What to do when the destination exists or an earlier job was interrupted.
Destination = Literal["new", "replace", "resume"]


@dataclass(frozen=True)
class Event:
    """Something happened in a running job.

    Attributes:
        kind: ``"start"`` (``bytes`` to read, ``modules`` to handle), ``"module"`` (work on ``name`` begins), ``"advance"`` (so
            many more ``bytes`` of the source are done), ``"file"`` (``name`` is complete and durable), ``"commit"`` (the result is
            being published), ``"note"`` (``name`` is a line worth reading).
        name: See ``kind``; names of modules are hostile input.
        bytes: See ``kind``.
        modules: See ``kind``.
    """

    kind: str
    name: str
    bytes: int
    modules: int


#: Called with each event, on the thread that called the verb. An exception that it raises cancels the job.
Progress = Callable[[Event], None]


@dataclass(frozen=True)
class Request:
    """A job that is asked for, as plain values: it can be kept, compared, pickled and sent to another machine.

    ``quantize_request`` and its siblings make one; ``plan`` and ``run`` take it.
    """

    verb: Literal["quantize", "refine", "convert", "dequantize"]
    source: str
    output: str
    scheme: str | None = None
    recipe: str | None = None
    schemes: tuple[str, ...] = ()
    target_bpw: float | None = None
    group_size: int | None = None
    convention: str | None = None
    method: str | None = None
    calibration: str | None = None
    reference: str | None = None
    effort: str | None = None
    order: str | None = None
    damping: float | None = None
    bias_correction: bool = False
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    division: str = "source"
    nonfinite: str = "refuse"
    allow_lossy: bool = False
    dtype: str = "auto"
    memory: str = "1GiB"
    threads: int | None = None
    max_shard_size: str = "5GB"
    destination: Destination = "new"


@dataclass(frozen=True)
class PlannedModule:
    """What becomes of one module or plain tensor.

    Attributes:
        action: ``"copy"``, ``"quantize"``, ``"dequantize"``, ``"convert"``, ``"respell"``, ``"drop"``, ``"fold"`` or ``"refine"``.
        scheme_or_convention: What it is quantized to, or dequantized from.
        label: Of a conversion: ``"exact"``, ``"cast"``, ``"lossy"`` or ``"impossible"``.
        method: The quantizer of what is quantized; several joined by ``+`` in a stack that is not quantized alike.
        effort: How hard it tries; ``None`` for methods without one.
    """

    name: str
    action: str
    scheme_or_convention: str | None
    label: str | None
    method: str | None
    effort: str | None
    shape: list[int]
    source_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a job would write; the run then writes exactly this.

    Attributes:
        files: Names and exact bytes.
        peak_memory_bytes: Bytes of buffers at the peak.
        scratch_bytes: Bytes that the file system must have free.
        peak_statistics_bytes: Bytes beside that budget, for the largest second moment of a module's inputs and what is derived
            from it.
    """

    files: list[tuple[str, int]]
    modules: list[PlannedModule]
    peak_memory_bytes: int
    scratch_bytes: int
    notes: list[str]
    peak_statistics_bytes: int = 0

    @property
    def output_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


@dataclass(frozen=True)
class ModuleSummary:
    """What became of one module or plain tensor.

    Attributes:
        weights: Logical parameters.
        sqnr_db: Ratio of signal to noise in decibels, where codes were chosen; infinite where nothing was lost.
        max_error: Largest absolute error, where codes were chosen.
        method: The quantizer, where codes were chosen; several joined by ``+`` in a stack that was not quantized alike.
        effort: How hard it tried; ``None`` for methods without one.
        corrected_bias: The bias that makes up for what the mean input loses.
        output_error: Squared error of the outputs on the calibration inputs as a share of these; ``None`` where they are not known.
        output_error_before: The same with the codes that the source had, where ``refine`` chose them anew.
        seconds: Seconds of work, those of all threads added up; ``None`` where nothing was done. No part of equality.
    """

    name: str
    action: str
    scheme_or_convention: str | None
    label: str | None
    weights: int
    source_bytes: int
    output_bytes: int
    sqnr_db: float | None
    max_error: float | None
    method: str | None = None
    effort: str | None = None
    corrected_bias: str | None = None
    output_error: float | None = None
    output_error_before: float | None = None
    seconds: float | None = field(default=None, compare=False)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a logical parameter takes, scales and all included."""
        return 8 * self.output_bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Summary:
    """What a job wrote.

    Attributes:
        files: Names and bytes.
        peak_buffer_bytes: Largest sum of buffers that were held at once.
        resumed_modules: Taken over from an interrupted job.
    """

    files: list[tuple[str, int]]
    modules: list[ModuleSummary]
    peak_buffer_bytes: int = 0
    resumed_modules: int = 0

    @property
    def output_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a logical parameter takes on average, scales and all included."""
        weights = sum(module.weights for module in self.modules)
        return 8 * sum(module.output_bytes for module in self.modules) / weights if weights else 0.0

    def worst(self, n: int = 5) -> list[ModuleSummary]:
        """The modules that lost most, worst first: by the error of their outputs where any is known, else by ``sqnr_db``."""
        known = [m for m in self.modules if m.output_error is not None and m.output_error > 0]
        if known:
            return sorted(known, key=lambda m: (-(m.output_error or 0.0), m.name))[:n]
        lossy = [m for m in self.modules if m.sqnr_db is not None and m.sqnr_db < float("inf")]
        return sorted(lossy, key=lambda m: (m.sqnr_db, m.name))[:n]


def quantize_request(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    scheme: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    schemes: Sequence[str] = (),
    target_bpw: float | None = None,
    group_size: int | None = None,
    convention: str | None = None,
    method: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    effort: Literal["fast", "default", "high", "max"] | None = None,
    order: Literal["natural", "activation", "group-aware", "min-pivot"] | None = None,
    damping: float | None = None,
    bias_correction: bool = False,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    division: Literal["source", "f32"] = "source",
    nonfinite: Literal["refuse", "clamp"] = "refuse",
    memory: str | int = "1GiB",
    threads: int | None = None,
    max_shard_size: str | int = "5GB",
    resume: bool = False,
    force: bool = False,
) -> Request:
    """The request that ``quantize`` runs.

    ``recipe`` is a file, which is read here: the request carries its text. With ``target_bpw`` and ``schemes`` every module is measured
    here, which reads the source once for each scheme; the request carries the recipe that was found, as its ``recipe``.

    Raises:
        SafequantError: What measuring meets.
    """
    request = Request(
        verb="quantize",
        source=os.fspath(source),
        output=os.fspath(output),
        scheme=scheme,
        recipe=None if recipe is None else _text(recipe),
        schemes=_patterns(schemes),
        target_bpw=target_bpw,
        group_size=group_size,
        convention=convention,
        method=method,
        calibration=None if calibration is None else os.fspath(calibration),
        effort=effort,
        order=order,
        damping=damping,
        bias_correction=bias_correction,
        targets=_patterns(targets),
        ignore=_patterns(ignore),
        division=division,
        nonfinite=nonfinite,
        memory=str(memory),
        threads=threads,
        max_shard_size=str(max_shard_size),
        destination=_destination(resume, force),
    )
    if target_bpw is None:
        if schemes:
            raise UsageError("schemes are mixed to keep to bits per weight: target_bpw says to how many", "usage")
        return request
    found = _native.mixed_recipe(request)
    return replace(request, recipe=found, schemes=(), target_bpw=None, targets=(), method=None, effort=None, order=None, damping=None, bias_correction=False)


def refine_request(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str],
    calibration: str | os.PathLike[str],
    effort: Literal["fast", "default", "high", "max"] | None = None,
    order: Literal["natural", "activation", "group-aware", "min-pivot"] | None = None,
    damping: float | None = None,
    ignore: Sequence[str] = (),
    memory: str | int = "1GiB",
    threads: int | None = None,
    max_shard_size: str | int = "5GB",
    resume: bool = False,
    force: bool = False,
) -> Request:
    """The request that ``refine`` runs."""
    return Request(
        verb="refine",
        source=os.fspath(source),
        output=os.fspath(output),
        calibration=os.fspath(calibration),
        reference=os.fspath(reference),
        effort=effort,
        order=order,
        damping=damping,
        ignore=_patterns(ignore),
        memory=str(memory),
        threads=threads,
        max_shard_size=str(max_shard_size),
        destination=_destination(resume, force),
    )


def convert_request(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str,
    allow_lossy: bool = False,
    ignore: Sequence[str] = (),
    memory: str | int = "1GiB",
    threads: int | None = None,
    max_shard_size: str | int = "5GB",
    resume: bool = False,
    force: bool = False,
) -> Request:
    """The request that ``convert`` runs."""
    return Request(
        verb="convert",
        source=os.fspath(source),
        output=os.fspath(output),
        convention=to,
        allow_lossy=allow_lossy,
        ignore=_patterns(ignore),
        memory=str(memory),
        threads=threads,
        max_shard_size=str(max_shard_size),
        destination=_destination(resume, force),
    )


def dequantize_request(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: DtypeLike = "auto",
    memory: str | int = "1GiB",
    threads: int | None = None,
    max_shard_size: str | int = "5GB",
    resume: bool = False,
    force: bool = False,
) -> Request:
    """The request that ``dequantize`` runs."""
    return Request(
        verb="dequantize",
        source=os.fspath(source),
        output=os.fspath(output),
        dtype=dense_dtype(dtype),
        memory=str(memory),
        threads=threads,
        max_shard_size=str(max_shard_size),
        destination=_destination(resume, force),
    )


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Quantizes a checkpoint: dense (or quantized) in, quantized out.

    Keyword arguments are those of ``quantize_request``: ``scheme`` (``"W4A16"``; ``safequant.registries()["schemes"]`` lists
    them) or ``recipe`` (a YAML or JSON file with several schemes, each with its modules; llm-compressor's are taken, too) or ``target_bpw`` with ``schemes`` (a mixture of them that keeps to so many bits per weight) is required; ``group_size``, ``convention``, ``method`` (``"rtn"`` by default, with ``calibration`` ``"auto"``),
    ``calibration`` (a file of statistics: what ``safequant.calibrate`` writes, or llama.cpp's imatrix), ``effort``, ``order``,
    ``damping``, ``bias_correction`` (biases make up for what the mean input loses; of methods that search), ``targets``, ``ignore`` (globs, or ``re:`` and a regular
    expression, on module names), ``division``, ``nonfinite``, ``memory``, ``threads``, ``max_shard_size``, ``resume`` (continue an interrupted job), ``force``
    (replace the output, at the end and atomically).

    The output appears complete or not at all. Ctrl-C stops at the next tile and raises ``KeyboardInterrupt``; what is done is
    kept, and ``resume=True`` goes on.

    Raises:
        UsageError: An option names what does not exist, or does not go with the others.
        RefusedError: The output exists (``force=True`` replaces it), or a weight is not finite.
        MalformedError, UnsupportedError, StorageError: About the source or the disk.
    """
    return run(quantize_request(source, output, **options), progress=progress)


def refine(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Gives a quantized checkpoint better codes, whoever quantized it: scales and everything else stay, byte for byte.

    Keyword arguments are those of ``refine_request``: ``reference`` (the dense checkpoint that ``source`` was made of) and
    ``calibration`` (a file of statistics with the whole second moment, as ``safequant.calibrate`` writes it) are required;
    ``effort``, ``order``, ``damping``, ``ignore`` (modules that keep their codes), ``memory``, ``threads``, ``max_shard_size``, ``resume``,
    ``force``. The summary has for each module the error of its outputs before (``output_error_before``) and now; none loses more.

    Raises:
        RefusedError: Nothing can be refined, the reference is another model, or the output exists.
        UsageError, MalformedError, UnsupportedError, StorageError: As ``quantize``.
    """
    return run(refine_request(source, output, **options), progress=progress)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Writes the same codes and scales in another convention.

    Keyword arguments are those of ``convert_request``: ``to`` (``"gptq"``; ``safequant.registries()["written_conventions"]``
    lists them) is required; ``allow_lossy``, ``ignore``, ``memory``, ``threads``, ``max_shard_size``, ``resume``, ``force``. The
    summary labels each module ``exact``, ``cast`` or ``lossy``.

    Raises:
        RefusedError: Codes would change (unless ``allow_lossy``), or the output exists.
        UsageError, MalformedError, UnsupportedError, StorageError: As ``quantize``.
    """
    return run(convert_request(source, output, **options), progress=progress)


def dequantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Writes the dense checkpoint that a quantized one stands for.

    Keyword arguments are those of ``dequantize_request``: ``dtype`` (``"auto"`` gives the very bits of the convention's own
    reference; BF16, F16 or F32), ``memory``, ``threads``, ``max_shard_size``, ``resume``, ``force``.

    Raises:
        RefusedError, MalformedError, UnsupportedError, StorageError: As ``quantize``.
    """
    return run(dequantize_request(source, output, **options), progress=progress)


def plan(
    verb: Literal["quantize", "refine", "convert", "dequantize"] | Request,
    source: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Plan:
    """What a verb with these options would write: ``plan("quantize", source, output, scheme="W4A16")``. Nothing is touched.

    A request, as ``quantize_request`` and its siblings make one, is taken as well.

    Raises:
        SafequantError: Whatever the verb would refuse before the first byte.
    """
    planned = _native.plan(_request(verb, source, output, options))
    modules = [PlannedModule(**module) for module in planned.pop("modules")]
    return Plan(modules=modules, **planned)


def _request(
    verb: str | Request,
    source: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Request:
    if isinstance(verb, Request):
        return verb
    makers: dict[str, Callable[..., Request]] = {
        "quantize": quantize_request,
        "refine": refine_request,
        "convert": convert_request,
        "dequantize": dequantize_request,
    }
    if verb not in makers:
        raise UsageError(f"there is no verb {verb}: there are {', '.join(makers)}", "usage")
    if source is None or output is None:
        raise UsageError(f"{verb} goes from a source to an output: both are needed", "usage")
    return makers[verb](source, output, **options)


def run(request: Request, *, progress: Progress | None = None) -> Summary:
    """Carries a request out. See ``quantize``."""

    def tell(told: dict[str, Any]) -> None:
        if progress is not None:
            progress(Event(**told))

    return summary(_native.run(request, tell if progress is not None else None))


def summary(record: dict[str, Any]) -> Summary:
    """The dataclass of what the engine says of a finished job."""
    modules = [ModuleSummary(**module) for module in record.pop("modules")]
    return Summary(modules=modules, **record)


def _text(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{os.fspath(path)}: {error}", "io") from error


def _patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _destination(resume: bool, force: bool) -> Destination:
    if resume and force:
        raise UsageError("resume continues a job, force replaces its output: one of them", "usage")
    return "resume" if resume else "replace" if force else "new"
