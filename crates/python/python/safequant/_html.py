"""What notebooks show. Names are hostile input: everything is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audits import AuditReport
    from .checkpoint import Checkpoint

#: Rows of a table; the rest is counted.
_ROWS = 20

_COLORS = {"error": "#c62828", "warning": "#b26a00", "note": "#5f6b7a"}


def checkpoint(of: Checkpoint) -> str:
    """What there is: conventions, schemes, files."""
    native = of._native
    schemes: Counter[tuple[str, str]] = Counter()
    for name in of.modules:
        weight = native.module(name)
        if weight is not None:
            schemes[weight.convention, weight.scheme] += 1
    rows = [(convention, scheme, f"{n:,}") for (convention, scheme), n in schemes.most_common(_ROWS)]
    plain = len(of.dense()) - len(of.modules)
    if plain:
        rows.append(("", "not quantized", f"{plain:,}"))
    found = ", ".join(of.conventions) or "dense"
    files = f"{len(of.files):,} file{'s' if len(of.files) != 1 else ''}, {len(of.tensors):,} tensors"
    head = f"<b>{escape(str(of.path))}</b><br>{escape(found)}; {files}"
    return _block(head, _table(("convention", "scheme", "weights"), rows, len(schemes) - _ROWS))


def audit(report: AuditReport) -> str:
    """The verdict, and the worst findings."""
    counts = ", ".join(
        f'<span style="color:{_COLORS[severity]}">{report.count(severity)} {severity}{"s" if report.count(severity) != 1 else ""}</span>'
        for severity in ("error", "warning", "note")
    )
    head = f"<b>{escape(report.source)}</b><br>audit of its {escape(report.depth)}: {counts}"
    for verdict in report.runtimes:
        answer = "loads it" if verdict.loads else "does not load it: " + "; ".join(verdict.reasons[:3])
        head += f"<br>{escape(verdict.runtime)} {escape(answer)}"
    rows = [
        (finding.rule, finding.severity, finding.module or finding.tensor or finding.file or "", finding.message)
        for finding in report.findings[:_ROWS]
    ]
    return _block(head, _table(("rule", "severity", "where", "what"), rows, len(report.findings) - _ROWS))


def _block(head: str, table: str) -> str:
    return f'<div style="font-family:sans-serif">{head}{table}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left_out: int) -> str:
    cells = "".join(f'<th style="text-align:left">{escape(head)}</th>' for head in heads)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) + "</tr>")
    if len(lines) == 1:
        return ""
    more = f"<p>and {left_out:,} more</p>" if left_out > 0 else ""
    return f"<table>{''.join(lines)}</table>{more}"
