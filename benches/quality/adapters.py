"""Runs the adapters of ``peers/``, each in its own environment, and judges what they make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import results
from formats import Format

PEERS = Path(__file__).resolve().parent / "peers"
NAMES = tuple(sorted(path.stem for path in PEERS.glob("*.py") if path.stem != "common"))


def run_all(work: Path, formats: Sequence[Format], pythons: Mapping[str, str], ggml: Path | None, again: bool) -> int:
    """Runs all peers that were given a Python; an exit status."""
    for name in pythons:
        if name not in NAMES:
            print(f"{name}: no such peer; there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
    judge = measure.Judge(work)
    for name in NAMES:
        if name in pythons:
            run(name, pythons[name], work, formats, ggml, again, judge)
        else:
            print(f"SKIPPED: {name}: no --python {name}=PATH", file=sys.stderr)
    return 0


def run(
    peer: str, python: str, work: Path, formats: Sequence[Format], ggml: Path | None, again: bool, judge: measure.Judge
) -> None:
    """Runs one peer; each result is saved as it comes."""
    by_name = {form.name: form for form in formats}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        task = {
            "work": str(work),
            "out": scratch,
            "ggml": None if ggml is None else str(ggml),
            "formats": [described(form, done(work, peer, form, again)) for form in formats],
        }
        path = Path(scratch, "task.json")
        path.write_text(json.dumps(task))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEERS), "CUDA_VISIBLE_DEVICES": ""}
        command = [python, str(PEERS / f"{peer}.py"), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            count = sum(receive(line, peer, work, by_name, judge) for line in process.stdout)
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


def done(work: Path, peer: str, form: Format, again: bool) -> list[str]:
    """Variants that have a result."""
    if again:
        return []
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
    figures = judge.judge(measure.weights_in(path))
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
    results.save(work, formats[answer["format"]].slug, result)
    print(results.line(result), flush=True)
    return 1
