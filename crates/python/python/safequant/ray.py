"""Jobs over a Ray cluster: ``pip install 'safequant[ray]'``.

    import safequant.ray

    safequant.ray.quantize("/storage/model", "/storage/model-fp8", scheme="FP8_DYNAMIC", max_shard_size="2GB")

A planner task makes the partial work ready and divides the job into parts, one task carries out each part, and one task
publishes the result, as atomically as the local verb and with the same bytes. Source and output must lie on storage that
every node reaches under the same path, and that keeps ``flock`` locks between machines (NFS does since Linux 2.6.12, flock(2);
CephFS does; Lustre does if it is mounted with ``flock``). No tensor passes through Ray's object store.

A part is a run of *whole output files*: two machines never write one file. There are hence no more parts than output files, and
``max_shard_size`` (5 GB by default) is what makes more of them.

What Ray does stays Ray's: it chooses nodes, and it retries the task of a node or worker that was lost (``max_retries`` in
``ray_options``). A part that was done is not done twice: a task that is asked again finds the files complete. Ctrl-C cancels the
tasks; what is done is kept, and ``resume=True`` goes on, here or by the local verb.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from . import _native, audits, jobs
from .audits import AuditReport
from .errors import LimitError, MalformedError, RefusedError, SafequantError, StorageError, UnsupportedError
from .jobs import Event, Progress, Request, Summary

__all__ = ["audit", "convert", "dequantize", "quantize", "refine", "run"]

T = TypeVar("T")

#: Seconds for which a task waits for a lock. A worker that Ray has given up may hold one until its system notices: a killed
#: process at once, a machine that vanished when the lease of its NFS client ends, which is 90 seconds unless configured
#: otherwise (Linux, fs/nfsd/nfsctl.c, ``nfsd4_lease``).
_PATIENCE_SECONDS = 120.0

#: Seconds that canceled tasks have to stop at their next tile before they are killed.
_GRACE_SECONDS = 20.0

#: Refusals that are about how parts run together, not about the source: going on can help.
_NOT_THE_END = frozenset(
    {
        "canceled",
        "destination_busy",
        "no_such_part",
        "part_differs",
        "part_missing",
        "parts_not_begun",
        "resume_differs",
    }
)


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num_parts: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """As ``safequant.quantize``, over a Ray cluster; see ``run`` for ``num_parts``, ``ray_options`` and ``progress``.

    Raises:
        What ``safequant.quantize`` and ``run`` raise.
    """
    request = jobs.quantize_request(source, output, **options)
    return run(request, num_parts=num_parts, ray_options=ray_options, progress=progress)


def refine(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num_parts: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """As ``safequant.refine``, over a Ray cluster; every node must reach the reference and the calibration file, too. See ``run``.

    Raises:
        What ``safequant.refine`` and ``run`` raise.
    """
    request = jobs.refine_request(source, output, **options)
    return run(request, num_parts=num_parts, ray_options=ray_options, progress=progress)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num_parts: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """As ``safequant.convert``, over a Ray cluster; see ``run``.

    Raises:
        What ``safequant.convert`` and ``run`` raise.
    """
    request = jobs.convert_request(source, output, **options)
    return run(request, num_parts=num_parts, ray_options=ray_options, progress=progress)


def dequantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    num_parts: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """As ``safequant.dequantize``, over a Ray cluster; see ``run``.

    Raises:
        What ``safequant.dequantize`` and ``run`` raise.
    """
    request = jobs.dequantize_request(source, output, **options)
    return run(request, num_parts=num_parts, ray_options=ray_options, progress=progress)


def audit(
    source: str | os.PathLike[str],
    *,
    ray_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> AuditReport:
    """As ``safequant.audit``, on a node of a Ray cluster.

    It is **one task, not divided**: rules compare modules with each other, and the engine measures a checkpoint in one pass. What
    this gives is the audit beside the data, on as many cores as ``ray_options["num_cpus"]`` asks for.

    Raises:
        What ``safequant.audit`` raises; ``ray.exceptions.RayError`` if the task was lost too often.
    """
    ray = _connected()
    absolute = {key: os.path.abspath(value) for key, value in options.items() if key == "reference" and value is not None}
    task = ray.remote(audits.audit).options(**_task_options(ray_options))
    report: AuditReport = _outcome(ray, task.remote(os.path.abspath(source), **{**options, **absolute}))
    return report


def run(
    request: Request,
    *,
    num_parts: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Carries a request out over a Ray cluster; the result has the bytes that ``safequant.run`` gives.

    Args:
        request: What ``safequant.quantize_request`` and its siblings make. Relative paths are taken from here. Without
            ``threads`` a task uses as many as it has CPUs; ``memory`` is the budget of *one* task.
        num_parts: At most so many parts. By default twice as many as tasks fit the cluster at once, so that nodes of
            different speed end together, and little is lost with one of them; a cluster that grows on demand does not know
            yet how many those are.
        ray_options: Passed to ``.options(...)`` of every task: ``num_cpus`` (1), ``max_retries`` (3), ``resources``,
            ``scheduling_strategy``, ``runtime_env`` ...
        progress: Called here with an ``Event`` when the job starts, and as parts are completed (``"advance"`` by the part's
            bytes of the source, ``"file"`` for each of its files, ``"note"``), and before the result is published.

    Raises:
        ImportError: Ray is not installed.
        SafequantError: What the local verb raises. As there, partial work that cannot be continued is removed.
        ray.exceptions.RayError: Tasks were lost more often than ``max_retries`` allows; the work done so far is kept.
    """
    ray = _connected()
    options = _task_options(ray_options)
    threads = max(1, int(options["num_cpus"])) if request.threads is None else request.threads
    request = dataclasses.replace(
        request,
        source=os.path.abspath(request.source),
        output=os.path.abspath(request.output),
        calibration=None if request.calibration is None else os.path.abspath(request.calibration),
        threads=threads,
    )
    tell = progress if progress is not None else _ignore
    n_parts = num_parts if num_parts is not None else _default_parts(ray, options)
    begin = ray.remote(_begin).options(**options)
    plan: dict[str, Any] = _outcome(ray, begin.remote(request, n_parts))
    parts: list[dict[str, Any]] = plan["parts"]
    for note in plan["notes"]:
        tell(Event("note", note, 0, 0))
    if len(parts) < n_parts and num_parts is not None:
        tell(Event("note", f"there are {len(parts)} parts, as many as output files; a smaller max_shard_size gives more", 0, 0))
    done: list[dict[str, Any]] = []
    if not plan["published"]:
        tell(Event("start", "", sum(part["source_bytes"] for part in parts), plan["modules"]))
        done = _run_parts(ray, request, n_parts, parts, options, tell)
    tell(Event("commit", "", 0, 0))
    finish = ray.remote(_finish).options(**options)
    summary = jobs.summary(_outcome(ray, finish.remote(request)))
    return dataclasses.replace(
        summary,
        peak_buffer_bytes=max((part["peak_buffer_bytes"] for part in done), default=0),
        resumed_modules=sum(part["resumed_modules"] for part in done) if done else summary.resumed_modules,
    )


def _run_parts(
    ray: Any,
    request: Request,
    n_parts: int,
    parts: list[dict[str, Any]],
    options: dict[str, Any],
    tell: Progress,
) -> list[dict[str, Any]]:
    """One task for each part, the largest first; what they say, in the order in which they end."""
    task = ray.remote(_part).options(**options)
    largest_first = sorted(parts, key=lambda part: (-part["source_bytes"] - part["output_bytes"], part["index"]))
    running = {task.remote(request, part["index"], n_parts): part for part in largest_first}
    done = []
    try:
        while running:
            (ref, *_), _rest = ray.wait(list(running), num_returns=1)
            summary = _outcome(ray, ref)
            part = running.pop(ref)
            done.append(summary)
            for note in summary["notes"]:
                tell(Event("note", note, 0, 0))
            for name, size in part["files"]:
                tell(Event("file", name, size, 0))
            tell(Event("advance", "", part["source_bytes"], 0))
    except BaseException as error:
        # Ctrl-C, what the callback raised, or a part that failed: the others stop at their next tile.
        _cancel(ray, list(running))
        if _is_the_end(error):
            _outcome(ray, ray.remote(_discard).options(**options).remote(request))
        raise
    return done


def _is_the_end(error: BaseException) -> bool:
    """Whether going on would fail again, so that the local verb would leave nothing (specs/journal.md)."""
    if isinstance(error, StorageError):
        return error.code == "disk_full"
    if isinstance(error, RefusedError):
        return error.code not in _NOT_THE_END
    return isinstance(error, (MalformedError, UnsupportedError, LimitError))


def _cancel(ray: Any, refs: list[Any]) -> None:
    """Lets tasks stop, and kills those that do not: a part that is killed can be continued, too."""
    for ref in refs:
        ray.cancel(ref, force=False)
    if refs:
        _, stubborn = ray.wait(refs, num_returns=len(refs), timeout=_GRACE_SECONDS)
        for ref in stubborn:
            ray.cancel(ref, force=True)


def _outcome(ray: Any, ref: Any) -> Any:
    """What a task gave. What it raised is raised as it was there, with Ray's account of it as the cause."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SafequantError):
            raise error.cause from error
        raise
    except KeyboardInterrupt:
        ray.cancel(ref, force=False)
        raise


def _begin(request: Request, n_parts: int) -> dict[str, Any]:
    begun: dict[str, Any] = _native.begin_parts(request, n_parts)
    return begun


def _part(request: Request, index: int, n_parts: int) -> dict[str, Any]:
    return _patiently(lambda: _native.run_part(request, index, n_parts))


def _finish(request: Request) -> dict[str, Any]:
    return _patiently(lambda: _native.finish_parts(request))


def _discard(request: Request) -> None:
    _patiently(lambda: _native.discard_parts(request))


def _patiently(work: Callable[[], T]) -> T:
    """Waits for a lock that a lost attempt may still hold."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return work()
        except RefusedError as error:
            if error.code != "destination_busy" or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _ignore(_event: Event) -> None:
    pass


def _task_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"num_cpus": 1, "max_retries": 3, **(given or {})}


def _default_parts(ray: Any, options: Mapping[str, Any]) -> int:
    cpus = float(ray.cluster_resources().get("CPU", 1.0))
    return max(1, 2 * int(cpus / max(float(options["num_cpus"]), 0.01)))


def _connected() -> Any:
    """Ray, connected to a cluster: the one that was initialized, or else what ``ray.init()`` finds or starts."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("safequant.ray needs Ray: pip install 'safequant[ray]'") from error
    if not ray.is_initialized():
        ray.init()
    return ray
