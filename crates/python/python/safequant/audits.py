"""The auditing verbs: audit, diff, explain, tp_plan."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _html, _native

__all__ = ["AuditReport", "DiffReport", "Finding", "RuntimeVerdict", "audit", "diff", "explain", "tp_plan"]

Severity = Literal["error", "warning", "note"]

_WORST_FIRST = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: The rule's id, which never changes its meaning (``"SC001"``); ``safequant.explain(rule)`` is its page.
        name: The rule's name.
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        file, module, tensor: Where.
        entry: Row and column, where it is about one number.
        message: What is the matter, in a sentence.
        expected, found: As far as that can be said.
        help: What to do.
    """

    rule: str
    name: str | None
    severity: Severity
    file: str | None
    module: str | None
    tensor: str | None
    entry: list[int] | None
    message: str
    expected: str | None
    found: str | None
    help: str | None


@dataclass(frozen=True)
class RuntimeVerdict:
    """Whether a runtime loads it, and why not."""

    runtime: str
    loads: bool
    reasons: list[str]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        source: What was audited.
        depth: ``"headers"``, ``"scales"`` or ``"full"``.
        findings: The worst first.
        runtimes: One verdict for each runtime that was asked for.
        record: The whole report as ``safequant audit --format json`` prints it (specs/cli/audit.schema.json); losses against a
            reference and tensor-parallel plans are in there.
        html: The report as one self-contained page.
    """

    source: str
    depth: str
    findings: list[Finding]
    runtimes: list[RuntimeVerdict]
    record: dict[str, Any]
    html: str

    def count(self, severity: Severity) -> int:
        """How many findings there are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.count("error") == 0

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(s)} {s}s" for s in ("error", "warning", "note"))
        return f"AuditReport({self.source!r}, {self.depth}: {counts})"

    def _repr_html_(self) -> str:
        return _html.audit(self)


@dataclass(frozen=True)
class DiffReport:
    """What two checkpoints have in common and what not.

    Attributes:
        equal: Whether they differ in nothing that was compared.
        record: As ``safequant diff --json`` prints it (specs/cli/diff.schema.json).
    """

    equal: bool
    record: dict[str, Any]

    @property
    def differs(self) -> dict[str, bool | None]:
        """By level; ``None`` where it was not compared."""
        levels: dict[str, bool | None] = self.record["differs"]
        return levels

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all weights: codes, codes flipped, scales that differ, values that differ ..."""
        totals: dict[str, int] = self.record["totals"]
        return totals


@dataclass(frozen=True)
class _Question:
    """What the native side reads the attributes of."""

    source: str
    reference: str | None
    depth: str
    select: list[str]
    ignore: list[str]
    runtimes: list[str]
    tensor_parallel: list[int]


def audit(
    source: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    depth: Literal["headers", "scales", "full"] = "scales",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    tp: Sequence[int] = (),
) -> AuditReport:
    """Says whether a checkpoint is whole, means what its config says, and loads where it should.

    ``depth``: headers only, scales too (0.03 to 11 percent of the bytes), or everything. ``reference``: what it was made of; then
    the loss of each module is measured. ``select`` and ``ignore`` choose rules by id, name or family. ``runtimes`` (``"vllm"``)
    and ``tp`` (degrees of tensor parallelism) say what it should be able to do. A file that is broken is a finding, no exception.

    Raises:
        UsageError: There is no such rule or runtime.
        StorageError: The source cannot be read.
    """
    question = _Question(
        source=os.fspath(source),
        reference=None if reference is None else os.fspath(reference),
        depth=depth,
        select=list(select),
        ignore=list(ignore),
        runtimes=list(runtimes),
        tensor_parallel=list(tp),
    )
    text, page = _native.audit(question)
    record: dict[str, Any] = json.loads(text)
    verdicts = [
        RuntimeVerdict(verdict["runtime"], verdict["loads"], [reason["message"] for reason in verdict["reasons"]])
        for verdict in record["runtimes"]
    ]
    findings = [Finding(**finding) for finding in record["findings"]]
    findings.sort(key=lambda finding: _WORST_FIRST.index(finding.severity))
    return AuditReport(record["source"], record["depth"], findings, verdicts, record, page)


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    levels: Sequence[Literal["structure", "config", "codes", "values"]] = ("structure", "config", "codes", "values"),
    filter: str | None = None,
    tolerance: float = 0.0,
) -> DiffReport:
    """Compares two checkpoints, whatever conventions they are written in.

    ``filter``: a glob, or ``re:`` and a regular expression, on names. ``tolerance``: relative distance up to which values count
    as equal.

    Raises:
        UsageError: There is no such level, or the pattern does not compile.
        MalformedError, UnsupportedError, StorageError: One of them cannot be read.
    """
    text = _native.diff(os.fspath(a), os.fspath(b), list(levels), filter, tolerance)
    record: dict[str, Any] = json.loads(text)
    return DiffReport(record["equal"], record)


def tp_plan(source: str | os.PathLike[str], degrees: Sequence[int] = (1, 2, 4, 8, 16)) -> dict[str, Any]:
    """Which tensor-parallel degrees work, what stands in the way of the others, and what a rank holds
    (specs/cli/tp-plan.schema.json)."""
    record: dict[str, Any] = json.loads(_native.tp_plan(os.fspath(source), list(degrees)))
    return record


def explain(rule: str) -> str:
    """The page of an audit rule, by id or name, in Markdown.

    Raises:
        UsageError: There is no such rule.
    """
    return _native.explain(rule)
