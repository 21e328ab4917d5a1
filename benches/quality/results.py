"""Figures that were measured, one JSON file each in the work folder, so that what is there need not run again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figures:
    """Of one way to quantize all layers: percent output error on both texts, ratio of weights to errors in dB, and cosine of
    embeddings, ``None`` where it was not measured."""

    evaluation: float
    calibration: float
    sqnr: float
    cosine: float | None


@dataclass(frozen=True)
class Result:
    """One tool's way to one format.

    Attributes:
        tool: Who made it: ``safequant`` or a peer.
        variant: With which method and settings.
        format: A name of ``formats.FORMATS``.
        statistics: What it was given: ``none``, ``diagonal`` or ``full``.
        figures: What is left of the model.
        bits: Bits per weight as stored.
        seconds: CPU seconds of the quantizer; of the engine, of its process.
        version: Of the tool; of the engine, the digest of its binary.
        counts: Whether it is a bar: layouts with ``g_idx`` are listed only.
        note: What the tool said that it chose.
    """

    tool: str
    variant: str
    format: str
    statistics: str
    figures: Figures
    bits: float
    seconds: float
    version: str
    counts: bool = True
    note: str = ""


def path_of(work: Path, tool: str, slug: str, variant: str) -> Path:
    """Where a result lies."""
    safe = "".join(c if c.isalnum() or c in "-.=" else "-" for c in variant)
    return work / "results" / tool / slug / f"{safe}.json"


def save(work: Path, slug: str, result: Result) -> None:
    """Writes a result in place of an older one."""
    path = path_of(work, result.tool, slug, result.variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=1) + "\n")


def load(path: Path) -> Result:
    """Reads one."""
    given = json.loads(path.read_text())
    return Result(**{**given, "figures": Figures(**given["figures"])})


def everything(work: Path) -> list[Result]:
    """All results of a work folder."""
    return [load(path) for path in sorted((work / "results").glob("*/*/*.json"))]


def line(result: Result) -> str:
    """One result in words."""
    f = result.figures
    cosine = "" if f.cosine is None else f"cosine {f.cosine:.5f} "
    return (
        f"{result.format:24} {result.tool:20} {result.variant:44} {result.statistics:9} {result.bits:6.3f} bits "
        f"{f.evaluation:9.4f} % (calibration {f.calibration:9.4f} %) {cosine}{result.seconds:7.1f} s"
    )
