"""The engine through its command line: ``quantize``, ``inspect``, ``dequantize``."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import measure
import results
from formats import Format

#: Names of GGUF's tensors, by the parts of the checkpoint's.
GGUF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Weights of the 36 layers.
WEIGHTS = 10_616_832


@dataclass(frozen=True)
class Variant:
    """A way to run the engine, with what statistics; whether the table of embeddings has it."""

    name: str
    options: tuple[str, ...]
    statistics: str
    is_embedded: bool = True


VARIANTS = (
    Variant("rtn", ("--method", "rtn"), "none", False),
    Variant("mse", ("--method", "mse"), "none"),
    Variant("auto, diagonal", ("--method", "auto"), "diagonal", False),
    Variant("auto, effort default", ("--method", "auto", "--effort", "default"), "full"),
    Variant("auto, effort high", ("--method", "auto", "--effort", "high"), "full"),
    Variant("auto, effort max", ("--method", "auto", "--effort", "max"), "full"),
)


class Refused(Exception):
    """The engine does not do this; its words."""


class Engine:
    """A binary, and the work folder it is run on."""

    def __init__(self, binary: Path, work: Path, threads: int) -> None:
        self.binary, self.work, self.threads = binary, work, threads
        self.version = "sha256:" + hashlib.sha256(binary.read_bytes()).hexdigest()[:16]

    def call(self, *arguments: str | Path) -> Any:
        """Runs a verb and gives its JSON.

        Raises:
            Refused: It exits with an error.
        """
        done = subprocess.run([str(self.binary), *map(str, arguments), "--json"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(" ".join(done.stderr.split("\n\n")[0].split()) or f"exit status {done.returncode}")
        return json.loads(done.stdout)

    def run(self, form: Format, variant: Variant, judge: measure.Judge) -> results.Result:
        """Quantizes, reads back and judges.

        Raises:
            Refused: The engine does not know the format or the method.
        """
        if not form.engine:
            raise Refused("no option of the engine writes it")
        layout = "joined" if form.joined else "plain"
        calibration = ("--calibration", str(self.work / f"statistics/{layout}-{variant.statistics}.safetensors"))
        given = () if variant.statistics == "none" else calibration
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            quantized, dense = Path(scratch, "quantized"), Path(scratch, "dense")
            options = (*form.engine, *variant.options, *given, "--threads", str(self.threads), "--quiet")
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            summary = self.call("quantize", self.work / layout, "-o", quantized, *options)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            source = quantized / "model.gguf" if (quantized / "model.gguf").exists() else quantized
            bits = 8 * stored_bytes(self.call("inspect", source)) / WEIGHTS
            self.call("dequantize", source, "-o", dense, "--dtype", "f32", "--quiet")
            weights = {checkpoint_name(name): weight for name, weight in measure.weights_of(dense).items()}
        figures = judge.judge(weights, math.inf if variant.is_embedded else 0.0)
        return results.Result(
            "safequant", variant.name, form.name, variant.statistics, figures, bits, seconds, self.version, note=chosen_methods(summary)
        )


def stored_bytes(inspected: Any) -> int:
    """Bytes of all tensors of the files, by ``inspect``; headers are not counted."""
    quantized = inspected["totals"]["quantized"]
    if quantized["count"] != 36 or quantized["parameters"] != WEIGHTS:
        raise Refused(f"only {quantized['count']} of 36 layers, {quantized['parameters']} of {WEIGHTS} weights were quantized")
    return int(inspected["totals"]["bytes"])


def checkpoint_name(name: str) -> str:
    """A name of GGUF as the checkpoint has it; others as they are."""
    if not name.startswith("blk."):
        return name
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{GGUF_NAMES[part]}"


def chosen_methods(summary: Any) -> str:
    """What ``quantize`` says of the methods that it chose, each once."""
    said = {str(module.get("method", "")) for module in summary.get("modules", [])} - {""}
    return "; ".join(sorted(said))


class Wanted(Enum):
    """Whose results are kept."""

    ALL = "nothing"
    THIS = "this binary's"
    MISSING = "any binary's"

    def keeps(self, path: Path, version: str) -> bool:
        """Whether a result that may lie there is kept."""
        if self is Wanted.ALL or not path.exists():
            return False
        return self is Wanted.MISSING or results.load(path).version == version


def run_all(engine: Engine, formats: Sequence[Format], names: Sequence[str], wanted: Wanted) -> None:
    """Runs the variants named on the formats, but for results that are kept."""
    judge = measure.Judge(engine.work)
    variants = [variant for variant in VARIANTS if variant.name in names]
    if len(variants) != len(set(names)):
        raise SystemExit(f"--variants: expected some of {', '.join(v.name for v in VARIANTS)}; found {', '.join(names)}")
    refused = done = 0
    for variant in variants:
        for form in formats:
            path = results.path_of(engine.work, "safequant", form.slug, variant.name)
            if wanted.keeps(path, engine.version):
                done += 1
                continue
            try:
                result = engine.run(form, variant, judge)
            except Refused as why:
                refused += 1
                path.unlink(missing_ok=True)
                print(f"SKIPPED: {form.name}, {variant.name}: {why}", file=sys.stderr, flush=True)
                continue
            done += 1
            results.save(engine.work, form.slug, result)
            print(results.line(result), flush=True)
    print(f"engine: {done} results, {refused} refused", file=sys.stderr)
