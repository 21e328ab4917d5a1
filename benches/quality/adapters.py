"""Runs the adapters of ``peers/``, each in its own environment, and judges what they make."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import results
from formats import Format

PEERS = Path(__file__).resolve().parent / "peers"
NAMES = tuple(sorted(path.stem for path in PEERS.glob("*.py") if path.stem != "common"))


@dataclass(frozen=True)
class Task:
    """What peers are to do.

    Attributes:
        work: The work folder.
        formats: What is asked for.
        variants: Names of variants; none stands for all.
        ggml: ggml's library.
        is_renewed: What was done before is done again.
    """

    work: Path
    formats: Sequence[Format]
    variants: Sequence[str]
    ggml: Path | None
    is_renewed: bool


def run_all(task: Task, pythons: Mapping[str, str]) -> int:
    """Runs all peers that were given a Python; an exit status."""
    for name in pythons:
        if name not in NAMES:
            print(f"{name}: no such peer; there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
    judge = measure.Judge(task.work)
    for name in NAMES:
        if name in pythons:
            run(name, pythons[name], task, judge)
        else:
            print(f"SKIPPED: {name}: no --python {name}=PATH", file=sys.stderr)
    return 0


def run(peer: str, python: str, task: Task, judge: measure.Judge) -> None:
    """Runs one peer; each result is saved as it comes."""
    by_name = {form.name: form for form in task.formats}
    with tempfile.TemporaryDirectory(dir=task.work) as scratch:
        written = {
            "work": str(task.work),
            "out": scratch,
            "ggml": None if task.ggml is None else str(task.ggml),
            "variants": list(task.variants),
            "formats": [described(form, [] if task.is_renewed else done(task.work, peer, form)) for form in task.formats],
        }
        path = Path(scratch, "task.json")
        path.write_text(json.dumps(written))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEERS), "CUDA_VISIBLE_DEVICES": ""}
        command = [python, str(PEERS / f"{peer}.py"), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            count = sum(receive(line, peer, task.work, by_name, judge) for line in process.stdout)
        if process.returncode != 0:
            print(f"SKIPPED: {peer}: exit status {process.returncode}", file=sys.stderr)
        print(f"{peer}: {count} new results", file=sys.stderr, flush=True)


def described(form: Format, done_before: list[str]) -> dict[str, Any]:
    """A format as adapters read it."""
    return {
        "name": form.name,
        "slug": form.slug,
        "family": form.family,
        "bits": form.bits,
        "group": form.group,
        "symmetric": form.symmetric,
        "kind": form.kind,
        "layout": "joined" if form.joined else "plain",
        "done": done_before,
    }


def done(work: Path, peer: str, form: Format) -> list[str]:
    """Variants that have a result."""
    return [results.load(path).variant for path in (work / "results" / peer / form.slug).glob("*.json")]


def receive(line: str, peer: str, work: Path, formats: Mapping[str, Format], judge: measure.Judge) -> int:
    """Judges what a line of an adapter tells of; 1 if it was a result. Lines that are not JSON are a library's chatter."""
    if not line.startswith("{"):
        return 0
    answer = json.loads(line)
    if "failed" in answer:
        print(f"SKIPPED: {peer}: {answer['format']}, {answer['variant']}: {answer['failed']}", file=sys.stderr, flush=True)
        return 0
    path = Path(answer["path"])
    form = formats[answer["format"]]
    figures = judge.judge(measure.weights_in(path), best_peer(work, form, answer["statistics"] != "none"))
    path.unlink()
    result = results.Result(
        peer,
        answer["variant"],
        answer["format"],
        answer["statistics"],
        figures,
        answer["bits"],
        answer["seconds"],
        answer["version"],
        answer["counts"],
    )
    results.save(work, form.slug, result)
    print(results.line(result), flush=True)
    return 1


def best_peer(work: Path, form: Format, is_informed: bool) -> float:
    """The least error of a peer with, or without, statistics so far: only what is better can get into the table of embeddings."""
    found = [results.load(path) for peer in NAMES for path in (work / "results" / peer / form.slug).glob("*.json")]
    errors = [r.figures.evaluation for r in found if r.counts and (r.statistics != "none") == is_informed]
    return min(errors, default=math.inf)
