"""What every adapter of a peer shares: reading the task, writing weights, one line of JSON for each result.

An adapter runs in the peer's own environment, where ``safequant`` need not be installed: it needs torch, NumPy and safetensors. It is
given one argument, a JSON file: ``work`` (the work folder; evaluation statistics are not named in it), ``out`` (where weights go),
``variants`` (names; none: all), ``formats`` (members of ``formats.FORMATS`` as objects, with ``layout`` and the variants that are ``done``), ``ggml`` (a library).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@dataclass
class Module:
    """A linear layer with what is known of its inputs.

    Attributes:
        name: In the checkpoint.
        weight: F32 ``[N, K]``, exact in BF16.
        hessian: ``X^T X / n`` of calibration text, F32 ``[K, K]``.
        tokens: ``n``.
    """

    name: str
    weight: torch.Tensor
    hessian: torch.Tensor
    tokens: int

    @property
    def diagonal(self) -> torch.Tensor:
        """Mean squares of the inputs, ``[K]``."""
        return torch.diagonal(self.hessian).contiguous()


#: Dequantized F32 weights, and the bytes that the tool stores for them.
Quantized = tuple[torch.Tensor, float]


@dataclass(frozen=True)
class Variant:
    """One way to quantize: name, statistics that it looks at, a function of a module, and whether its layout is a bar."""

    name: str
    statistics: str
    function: Callable[[Module], Quantized]
    counts: bool = True


@dataclass(frozen=True)
class Form:
    """A format, with the fields of ``formats.Format`` that adapters look at."""

    name: str
    slug: str
    family: str
    bits: int
    group: int
    symmetric: bool
    kind: str
    layout: str
    done: tuple[str, ...]


def modules(work: Path, layout: str) -> dict[str, Module]:
    """The layers of a layout with calibration statistics."""
    found = {}
    with safe_open(work / f"{layout}/model.safetensors", "pt") as weights, safe_open(
        work / f"statistics/{layout}-full.safetensors", "pt"
    ) as statistics:
        shares = json.loads(statistics.metadata().get("shares", "{}"))
        hessians: dict[str, torch.Tensor] = {}
        for key in weights.keys():
            name = key.removesuffix(".weight")
            source = shares.get(name, name)
            if source not in hessians:
                hessians[source] = statistics.get_tensor(f"{source}.hessian")
            tokens = int(statistics.get_tensor(f"{source}.token_count"))
            found[name] = Module(name, weights.get_tensor(key).float(), hessians[source], tokens)
    return found


def main(package: str, variants: Callable[[Form, Any], Iterator[Variant]]) -> None:
    """Works off the task that the command line names.

    Args:
        package: Whose version is reported.
        variants: The ways that the peer has for a format, given the format and the task; none if it does not know it.
    """
    torch.set_num_threads(1)
    task = json.loads(Path(sys.argv[1]).read_text())
    work, out = Path(task["work"]), Path(task["out"])
    layers: dict[str, dict[str, Module]] = {}
    for given in task["formats"]:
        form = Form(**{**given, "done": tuple(given["done"])})
        for variant in variants(form, task):
            if variant.name in form.done or (task["variants"] and variant.name not in task["variants"]):
                continue
            if form.layout not in layers:
                layers[form.layout] = modules(work, form.layout)
            answer = {"format": form.name, "variant": variant.name, "statistics": variant.statistics, "counts": variant.counts}
            print(json.dumps({**answer, **attempt(variant, layers[form.layout], out), "version": version_of(package)}), flush=True)


def attempt(variant: Variant, layers: dict[str, Module], out: Path) -> dict[str, Any]:
    """Runs a variant on all layers; a failure is an answer too."""
    weights, stored, count = {}, 0.0, 0
    start = time.process_time()
    try:
        for name, module in layers.items():
            copy = Module(module.name, module.weight.clone(), module.hessian.clone(), module.tokens)
            weight, size = variant.function(copy)
            weights[f"{name}.weight"] = weight.detach().float().reshape(module.weight.shape).contiguous()
            stored += size
            count += module.weight.numel()
    except Exception as error:  # a peer may fail in any way; the table says that it did
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    seconds = time.process_time() - start
    path = out / f"{number()}.safetensors"
    save_file(weights, path)
    while len(list(out.glob("*.safetensors"))) > 2:  # whoever judges them is behind, and each is 40 MB
        time.sleep(0.05)
    return {"path": str(path), "bits": 8 * stored / count, "seconds": seconds}


def number(counter: Iterator[int] = itertools.count()) -> int:
    """Another one each time."""
    return next(counter)


def version_of(package: str) -> str:
    """``name version``."""
    return f"{package} {version(package)}" if package else "unknown"


def packed_bytes(weight: torch.Tensor, bits: int) -> float:
    """Bytes of codes packed densely."""
    return weight.numel() * bits / 8
